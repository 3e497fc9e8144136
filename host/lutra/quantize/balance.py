"""Rotary pairs of queries and keys balanced before rounding, which leaves every score as it is.

Queries and keys become int8 with one scale per head and token. Where a pair of channels that rotate
together is far larger in keys than in queries (key biases make such pairs), the other channels of
the keys keep few bits. What keys are divided by, queries can be multiplied by: with the square root
of the ratio of their root mean squares both are of one size, pair by pair. Factors are powers of
two, so the model in floating point computes the same bits.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense, Grouped, Weight
from lutra.models.decoder import DecoderConfig, DecoderLayer
from lutra.models.layers import Float, rms_norm, split_heads

__all__ = ["balance", "pair_exponents"]

_LEAST = 2.0**-10  # of the largest pair of a head: smaller ones count as that


def balance(layer: DecoderLayer, x: Float, config: DecoderConfig) -> DecoderLayer:
    """A layer whose queries and keys are of one size in each rotary pair, for inputs like ``x``.

    ``x`` ``[T, D]`` is the residual stream in front of the layer. The factors go into the rows of
    ``q_proj`` and ``k_proj`` and their biases, or into the weights of the heads' norms, which all
    heads share. A layer whose matrices take no factor for a row (ternary ones) stays as it is.
    """
    d, normed = config.head_dim, layer.q_norm is not None and layer.k_norm is not None
    if not normed and not all(isinstance(w, Dense | Grouped) for w in (layer.q_proj, layer.k_proj)):
        return layer
    h = rms_norm(x, layer.input_layernorm, config.rms_norm_eps)
    q, k = (
        split_heads(h @ w.dequantized().T.astype(x.dtype) + (0 if b is None else b), d)
        for w, b in ((layer.q_proj, layer.q_bias), (layer.k_proj, layer.k_bias))
    )
    if layer.q_norm is not None and layer.k_norm is not None:
        q = rms_norm(q, layer.q_norm, config.rms_norm_eps)
        k = rms_norm(k, layer.k_norm, config.rms_norm_eps)
        by = np.ldexp(np.float32(1), pair_exponents(_joined(q), _joined(k))[0])
        return replace(layer, q_norm=layer.q_norm * by, k_norm=layer.k_norm / by)
    by = np.ldexp(np.float32(1), pair_exponents(q, k))  # [key heads, head_dim]
    keys, queries = by.reshape(-1), by.repeat(len(q) // len(k), axis=0).reshape(-1)
    return replace(
        layer,
        q_proj=_scaled(layer.q_proj, queries),
        k_proj=_scaled(layer.k_proj, np.reciprocal(keys)),
        q_bias=None if layer.q_bias is None else layer.q_bias * queries,
        k_bias=None if layer.k_bias is None else layer.k_bias / keys,
    )


def pair_exponents(q: Float, k: Float) -> NDArray[np.int64]:
    """Binary exponents ``[key heads, head_dim]`` of what keys are to be divided by.

    ``q`` ``[heads, T, head_dim]`` and ``k`` ``[key heads, T, head_dim]`` are queries and keys
    before or after rotation, which keeps the size of a pair. Of the queries that share a head of
    keys the largest counts. The median of a head's exponents is 0, as a factor common to a head
    changes nothing.
    """
    largest = _size(q).reshape(len(k), -1, q.shape[-1] // 2).max(axis=1)
    ratio = np.log2(_floored(_size(k)) / _floored(largest)) / 2
    ratio -= np.median(ratio, axis=1, keepdims=True)
    exponents = np.rint(ratio).astype(np.int64)
    return np.concatenate([exponents, exponents], axis=1)


def _size(x: Float) -> Float:
    """Root mean square of each rotary pair, ``[heads, head_dim / 2]``."""
    lo, hi = np.split(x, 2, axis=-1)
    return np.sqrt((lo * lo + hi * hi).mean(axis=1))


def _floored(size: Float) -> Float:
    """Sizes that are not zero, nor far below the largest of their head."""
    top = size.max(axis=1, keepdims=True)
    return np.maximum(size, np.where(top > 0, top * _LEAST, 1.0))


def _joined(x: Float) -> Float:
    """All heads as one of more tokens."""
    return x.reshape(1, -1, x.shape[-1])


def _scaled(weight: Weight, rows: NDArray[np.float32]) -> Weight:
    """A matrix with each row multiplied by its factor."""
    if isinstance(weight, Grouped):
        offset = None if weight.offset is None else weight.offset * rows[:, None]
        return replace(weight, scale=weight.scale * rows[:, None], offset=offset)
    return Dense(weight.dequantized() * rows[:, None])

"""Rotary pairs of queries and keys balanced before rounding, which leaves every softmax as it is.

Queries and keys become int8 with one scale per head and token. Where a pair of channels that rotate
together is far larger in keys than in queries (key biases make such pairs), the other channels of
the keys keep few bits. What keys are divided by, queries can be multiplied by: with the square root
of the ratio of their root mean squares both are of one size, pair by pair. Factors are powers of
two, so the model in floating point computes the same bits.

Most of what a bias makes large is common to all keys. A vector that is taken from every rotated key
changes all scores of a query by one number, which a softmax does not see: keys with biases have
their centre taken away, and the size of a pair is that of what is left.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense, Grouped, Weight
from lutra.models.decoder import DecoderConfig, DecoderLayer
from lutra.models.layers import Float, rms_norm, rotation, split_heads
from lutra_golden.vector.heads import FIXED_FRAC, FIXED_WIDTH

__all__ = ["balance", "key_centre", "pair_exponents"]

_LEAST = 2.0**-10  # of the largest pair of a head: smaller ones count as that
_CENTRE_MAX = 2.0 ** (FIXED_WIDTH - 1 - FIXED_FRAC) - 1  # that heads in fixed point can reach


def balance(layer: DecoderLayer, x: Float, config: DecoderConfig) -> DecoderLayer:
    """A layer whose queries and keys are of one size in each rotary pair, for inputs like ``x``.

    ``x`` ``[T, D]`` is the residual stream in front of the layer. The factors go into the rows of
    ``q_proj`` and ``k_proj`` and their biases, or into the weights of the heads' norms, which all
    heads share. A layer whose matrices take no factor for a row (ternary ones) stays as it is.
    Keys with biases, and without norms, have a centre, and are on the whole as large as queries:
    the largest of all biases decides on the fraction bits of all.
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
    centre = None
    if layer.q_bias is not None and layer.k_bias is not None:
        cos, sin = config.rope.table(
            config.max_position_embeddings, d, config.max_position_embeddings
        )
        centre = key_centre(k.mean(axis=1), cos, sin)  # [key heads, head_dim]
        exponents = pair_exponents(q, rotation(cos[: len(x)], sin[: len(x)])(k) - centre[:, None])
        exponents += _common_exponent(q, k, exponents)
    else:
        exponents = pair_exponents(q, k)
    by = np.ldexp(np.float32(1), exponents)  # [key heads, head_dim]
    keys, queries = by.reshape(-1), by.repeat(len(q) // len(k), axis=0).reshape(-1)
    if centre is not None:
        centre = np.clip(centre.reshape(-1) / keys, -_CENTRE_MAX, _CENTRE_MAX).astype(np.float32)
    return replace(
        layer,
        q_proj=_scaled(layer.q_proj, queries),
        k_proj=_scaled(layer.k_proj, np.reciprocal(keys)),
        q_bias=None if layer.q_bias is None else layer.q_bias * queries,
        k_bias=None if layer.k_bias is None else layer.k_bias / keys,
        k_centre=centre,
    )


def key_centre(mean: Float, cos: Float, sin: Float) -> Float:
    """Vectors ``[key heads, head_dim]`` in the middle of where the ``mean`` of a head's keys is
    rotated to, by the table ``cos``, ``sin`` ``[context, head_dim / 2]``.

    The mean of a slow pair stays near to where it is, and goes along an arc while positions pass.
    The centre of the least circle around an arc is the middle of its chord; around half a turn or
    more it is zero. So no position is further from the centre than from zero.
    """
    turned = np.arctan2(sin[min(1, len(sin) - 1)], cos[min(1, len(cos) - 1)]) * (len(cos) - 1)
    slow = np.abs(turned) < math.pi
    lo, hi = np.split(mean, 2, axis=-1)
    cos, sin = ((table[0] + table[-1]) / 2 * slow for table in (cos, sin))
    return np.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], axis=-1)


def _common_exponent(q: Float, k: Float, exponents: NDArray[np.int64]) -> int:
    """Binary exponent that makes the largest query, times what softmax multiplies by, and the
    largest key equal, once rotary pairs have theirs."""
    by = np.exp2(exponents.astype(np.float64))[:, None]
    key = float(np.abs(k / by).max())
    query = float(np.abs(q * by.repeat(len(q) // len(k), axis=0)).max())
    query *= math.log2(math.e) / math.sqrt(q.shape[-1])
    return round(math.log2(key / query) / 2) if key > 0 and query > 0 else 0


def pair_exponents(q: Float, k: Float) -> NDArray[np.int64]:
    """Binary exponents ``[key heads, head_dim]`` of what keys are to be divided by.

    ``q`` ``[heads, T, head_dim]`` and ``k`` ``[key heads, T, head_dim]`` are queries and keys
    before or after rotation, which keeps the size of a pair, or keys without their centre. Of the
    queries that share a head of
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
        return weight.scaled(rows[:, None])
    return Dense(weight.dequantized() * rows[:, None])

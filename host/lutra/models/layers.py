"""Layers in floating point that the architectures' forward passes share: the yardstick's, not the
token path's. What they compute has the dtype of what they are given."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.quantize import ActivationGroups

__all__ = [
    "Float",
    "causal_attention",
    "log_probabilities",
    "rms_norm",
    "rotation",
    "round_activations",
    "split_heads",
]

Float = NDArray[np.float64]


def rms_norm(x: Float, weight: NDArray[np.float32], eps: float) -> Float:
    """Root-mean-square normalisation of each row, times ``weight``."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def round_activations(
    x: Float, bits: int, groups: ActivationGroups | None = None, run: int = 0
) -> tuple[Float, Float]:
    """Each row rounded to integers of ``bits`` bits, ``[T, K]``, and their unit, ``[T, 1]``.

    With ``groups`` (in runs of ``run`` elements, the whole row if 0) each group has an exponent,
    and the integers are larger by up to ``shift_max`` bits.
    """
    q_max, size = (1 << (bits - 1)) - 1, np.abs(x)
    peak = np.maximum(size.max(axis=-1, keepdims=True), 1e-5)
    scale = q_max / peak
    if groups is None:
        return np.clip(np.rint(x * scale), -q_max - 1, q_max), 1 / scale
    starts = groups.starts(x.shape[-1], run or x.shape[-1])
    peaks = np.maximum.reduceat(size, starts, axis=-1)
    shifts = 2.0 ** np.arange(1, groups.shift_max + 1)
    e = (peaks[..., None] * shifts <= peak[..., None]).sum(axis=-1)
    by = np.ldexp(x.dtype.type(1), e).repeat(np.diff(starts, append=x.shape[-1]), axis=-1)
    top = 2.0**groups.shift_max
    q = np.clip(np.rint(x * scale * by), -q_max, q_max)
    return q * (x.dtype.type(top) / by), 1 / (scale * x.dtype.type(top))


def split_heads(x: Float, head_dim: int) -> Float:
    """``[T, heads * head_dim]`` to ``[heads, T, head_dim]``."""
    return x.reshape(len(x), -1, head_dim).transpose(1, 0, 2)


def rotation(cos: Float, sin: Float) -> Callable[[Float], Float]:
    """Rotary embedding of positions, by ``[T, head_dim / 2]`` tables: the first half of a head
    turns with the second."""

    def rotate(x: Float) -> Float:
        lo, hi = np.split(x, 2, axis=-1)
        return np.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], axis=-1)

    return rotate


def causal_attention(q: Float, k: Float, v: Float, window: int = 0) -> Float:
    """Softmax attention of ``[H, T, Dh]`` to the positions up to each one; ``[T, H * Dh]``.

    Several heads of ``q`` share one of ``k`` and ``v``. With a ``window`` a query sees only
    that many of the latest positions, its own included.
    """
    n = q.shape[1]
    share = len(q) // len(k)
    k, v = k.repeat(share, axis=0), v.repeat(share, axis=0)
    position: NDArray[np.int64] = np.arange(n, dtype=np.int64)
    age = position[:, None] - position
    hidden = np.where((age < 0) | ((age >= window) & (window > 0)), -np.inf, 0.0).astype(q.dtype)
    score = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2]) + hidden
    p = np.exp(score - score.max(axis=-1, keepdims=True))
    out = (p / p.sum(axis=-1, keepdims=True)) @ v
    return out.transpose(1, 0, 2).reshape(n, -1)


def log_probabilities(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Logarithms of the next token's probabilities, ``[T, V]``."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

"""Rotary position embedding and quantisation of queries, keys and values, in integers."""

import numpy as np

from lutra_golden.arith.fixed import Int, Saturation
from lutra_golden.arith.quantize import Q_MAX, quantize, quantize_factor, quantize_step
from lutra_golden.arith.scale import Scale, scale_mul
from lutra_golden.vector.heads import (
    FIXED_FRAC,
    FIXED_UNIT,
    HeadBias,
    HeadNorm,
    fixed_heads,
    head_norm,
)

__all__ = ["ROPE_FRAC", "rope_quantize", "rope_quantize_fixed", "rope_rotate", "rope_table"]

ROPE_FRAC = 14


def rope_table(n_positions: int, head_dim: int, theta: float) -> Int:
    """``[n_positions, head_dim]`` int16 Q14: cosines of the half's angles, then their sines."""
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angles = np.outer(np.arange(n_positions, dtype=np.float64), frequencies)
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    return np.rint(table * (1 << ROPE_FRAC)).astype(np.int64)


def rope_rotate(x: Int, table: Int) -> Int:
    """Rotate ``x`` ``[..., head_dim]`` by ``table`` ``[..., head_dim]`` (half-rotation order).

    ``lo' = lo * cos - hi * sin``, ``hi' = hi * cos + lo * sin``, exact, with 14 more fraction bits.
    """
    half = x.shape[-1] // 2
    lo, hi = x[..., :half], x[..., half:]
    cos, sin = table[..., :half], table[..., half:]
    return np.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], axis=-1)


def rope_quantize(
    x: Int, s: Scale, w_scale: Scale, table: Int | None, q_max: int = Q_MAX
) -> tuple[Int, Scale]:
    """Rotate and quantise accumulators ``x`` ``[M, heads, head_dim]`` with a scale per head.

    ``s`` ``[M]`` is the activation scale, ``w_scale`` the weight scale, ``table`` ``[M, head_dim]``
    of :func:`rope_table`, or None for values, which are not rotated but shifted by 14 bits so that
    both take the same way. Returns ``q`` ``[M, heads, head_dim]`` in -q_max..q_max and scales
    ``[M, heads]``: ``(y_max * (1/q_max) * 2**-14) * (s * w_scale)``.
    """
    unit = scale_mul(s, w_scale)
    return _quantize(_rotated(x, table), Scale(unit.m[:, None], unit.e[:, None]), q_max)


def rope_quantize_fixed(
    x: Int,
    s: Scale,
    w_scale: Scale,
    table: Int | None,
    bias: HeadBias | None = None,
    norm: HeadNorm | None = None,
    q_max: int = Q_MAX,
    saturation: Saturation | None = None,
) -> tuple[Int, Scale]:
    """Like :func:`rope_quantize`, but of heads that :func:`fixed_heads` gives, biases added.

    With ``norm`` the heads of :func:`head_norm` are rotated; their scales contain its root. Without
    it the centre of ``bias`` is taken from what was rotated. ``saturation`` is set as
    :func:`fixed_heads` sets it.
    """
    v, unit = fixed_heads(x, s, w_scale, bias, saturation), FIXED_UNIT
    if norm is not None:
        v, unit = head_norm(v, norm)
    y = _rotated(v, table)
    if norm is None and bias is not None and bias.centre is not None:
        y = y - (bias.centre << (FIXED_FRAC + ROPE_FRAC - bias.frac))
    return _quantize(y, unit, q_max)


def _rotated(x: Int, table: Int | None) -> Int:
    return x << ROPE_FRAC if table is None else rope_rotate(x, table[:, None, :])


def _quantize(y: Int, unit: Scale, q_max: int) -> tuple[Int, Scale]:
    """Quantise ``y`` ``[M, heads, head_dim]``, of which ``2**14`` is worth ``unit`` (broadcasts to
    ``[M, heads]``)."""
    y_max = np.abs(y).max(axis=-1)  # [M, heads]
    factor = quantize_factor(y_max, q_max)
    q = quantize(y, Scale(factor.m[..., None], factor.e[..., None]), q_max)
    step = quantize_step(y_max, q_max)
    step = Scale(step.m, step.e - np.where(step.m == 0, 0, ROPE_FRAC))
    return q, scale_mul(step, unit)

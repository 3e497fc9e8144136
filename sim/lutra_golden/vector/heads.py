"""Heads in fixed point, before rotation: biases of the projections, and RMSNorm of every head."""

from typing import NamedTuple

import numpy as np

from lutra_golden.arith.fixed import Int, Saturation, round_shift, saturate
from lutra_golden.arith.scale import Scale, scale_from_int, scale_mul, scale_rsqrt

__all__ = [
    "EPS_FRAC",
    "FIXED_FRAC",
    "FIXED_SHIFTS",
    "FIXED_UNIT",
    "FIXED_WIDTH",
    "NORM_HEAD_DIM_MAX",
    "NORM_SHIFT",
    "NORM_WIDTH",
    "SQUARES_WIDTH",
    "HeadBias",
    "HeadNorm",
    "fixed_heads",
    "head_norm",
]

FIXED_FRAC = 16
"""Fraction bits of a head's elements, and the most that a bias has."""
FIXED_WIDTH = 28
"""Bits of an element, saturated."""
FIXED_SHIFTS = (-17, 46)
"""Shifts of :func:`fixed_heads`; a smaller one saturates all but zero, whatever the bias, a larger
one leaves zero of accumulators of up to 30 bits."""
FIXED_UNIT = scale_from_int(1, -FIXED_FRAC)
"""Unit of an element of :func:`fixed_heads`."""
NORM_SHIFT = 12
"""Bits that an element loses when it is multiplied by gamma."""
NORM_WIDTH = 32
"""Bits that hold the rounded product; its magnitude is at most ``2**30``."""
EPS_FRAC = 32
"""Fraction bits of epsilon, the same as of a square."""
SQUARES_WIDTH = 63
"""Bits of a head's sum of squares and epsilons, unsigned."""
NORM_HEAD_DIM_MAX = 256
"""The largest head whose sum of squares fits."""


class HeadBias(NamedTuple):
    """Biases ``[heads, head_dim]``, int16 with ``frac`` fraction bits (at most 16).

    ``centre``, of the same shape and fraction bits, is taken from heads once they are rotated.
    """

    values: Int
    frac: int
    centre: Int | None = None


class HeadNorm(NamedTuple):
    """``gamma`` ``[head_dim]``, int16 with ``frac`` fraction bits; ``eps`` in ``2**-32``."""

    gamma: Int
    frac: int
    eps: int


def fixed_heads(
    x: Int,
    s: Scale,
    w_scale: Scale,
    bias: HeadBias | None = None,
    saturation: Saturation | None = None,
) -> Int:
    """Return accumulators ``x`` ``[M, heads, head_dim]`` times their scale, plus bias, in Q16.

    ``s`` ``[M]`` is the activation scale, ``w_scale`` the weight scale; with ``c = s * w_scale``,
    ``saturate28(round(x * c * 2**16) + bias * 2**16)``, rounded once; ``saturation`` is set where
    that limits an element.
    """
    c = scale_mul(s, w_scale)
    shift = np.clip(-(c.e + FIXED_FRAC), *FIXED_SHIFTS)
    v = round_shift(x * c.m[:, None, None], shift[:, None, None])
    if bias is not None:
        v = v + (bias.values << (FIXED_FRAC - bias.frac))
    out = saturate(v, FIXED_WIDTH)
    if saturation is not None:
        saturation.note(out != v)
    return out


def head_norm(v: Int, norm: HeadNorm) -> tuple[Int, Scale]:
    """RMSNorm of elements ``v`` ``[M, heads, head_dim]`` of :func:`fixed_heads`, times gamma.

    Returns ``round(v * gamma / 2**12)`` and what one of it is worth, ``[M, heads]``:
    ``2**-(4 + frac) * rsqrt(mean(v**2) + eps)``. ``head_dim`` is a power of two of at most 256.
    """
    head_dim = v.shape[-1]
    log2_dim = head_dim.bit_length() - 1
    squares = (v * v).sum(axis=-1) + head_dim * norm.eps
    root = scale_rsqrt(scale_from_int(squares, -(EPS_FRAC + log2_dim)))
    lowered = FIXED_FRAC - NORM_SHIFT + norm.frac
    unit = Scale(root.m, root.e - np.where(root.m == 0, 0, lowered))
    return round_shift(v * norm.gamma, NORM_SHIFT), unit

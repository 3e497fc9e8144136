"""Scales: unsigned 16-bit normalised mantissa and exponent, and their exact arithmetic.

A scale is ``m * 2**e`` with ``2**15 <= m < 2**16``, or zero (``m == 0``, ``e == 0``). Every
operation rounds its result once, by :func:`scale_from_int`.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lutra_golden.arith.fixed import Int, bit_length, round_shift

__all__ = [
    "SCALE",
    "Scale",
    "ScaleParams",
    "pack_scale",
    "packed_scale_to_float",
    "recip_table",
    "rsqrt_table",
    "scale_add",
    "scale_from_float",
    "scale_from_int",
    "scale_max",
    "scale_mul",
    "scale_recip",
    "scale_rsqrt",
    "scale_to_float",
    "unpack_scale",
]


@dataclass(frozen=True, kw_only=True)
class ScaleParams:
    """Widths of a scale."""

    m_width: int = 16
    e_width: int = 10  # signed, in hardware; 16 bits in memory and in registers
    e_min: int = -512


SCALE = ScaleParams()


class Scale(NamedTuple):
    """Mantissas and exponents of the same shape."""

    m: Int
    e: Int


def scale_from_int(x: ArrayLike, e: ArrayLike = 0) -> Scale:
    """Round ``x * 2**e`` (``0 <= x < 2**63``) to a scale, half up on the mantissa."""
    x = np.asarray(x, np.int64)
    n = bit_length(x) - 16
    m = round_shift(x, n)
    carry = m >> 16  # 0xFFFF.8 and above rounds up to the next power of two
    m, n = m >> carry, n + carry
    zero = x == 0
    return Scale(np.where(zero, 0, m), np.where(zero, 0, np.asarray(e, np.int64) + n))


def scale_mul(a: Scale, b: Scale) -> Scale:
    """Return ``a * b``."""
    return scale_from_int(a.m * b.m, a.e + b.e)


def scale_add(a: Scale, b: Scale) -> Scale:
    """Return ``a + b``; the smaller exponent's mantissa is first cut to 16 bits more than the
    larger one's last place."""
    swap = ((b.e > a.e) | (a.m == 0)) & (b.m != 0)
    large_m, large_e = np.where(swap, b.m, a.m), np.where(swap, b.e, a.e)
    small_m, small_e = np.where(swap, a.m, b.m), np.where(swap, a.e, b.e)
    # a zero has exponent 0, which may lie far above the other's: its mantissa makes it harmless
    d = np.clip(large_e - small_e, 0, 32)
    return scale_from_int((large_m << 16) + ((small_m << 16) >> d), large_e - 16)


def recip_table() -> Int:
    """``[256]`` 16-bit seeds: ``2**31 / m`` at the middle of each interval of ``m >> 7``."""
    middle = (np.arange(256, 512, dtype=np.int64) << 7) + 64
    return np.minimum(((1 << 31) + middle // 2) // middle, 0xFFFF)


def scale_recip(a: Scale) -> Scale:
    """Return ``1 / a`` within 4e-5 (table and one Newton step); zero for zero."""
    y0 = recip_table()[(a.m >> 7) & 0xFF]
    c = (1 << 32) - a.m * y0  # Q31 of 2 - m * y0
    y1 = round_shift(y0 * (c >> 15), 16)
    zero = a.m == 0
    return scale_from_int(np.where(zero, 0, y1), -31 - a.e)


def rsqrt_table() -> Int:
    """``[256]`` 16-bit seeds ``2**23 / sqrt(m << parity)``, index ``parity << 7 | m[14:8]``."""
    middle = ((np.arange(128, 256, dtype=np.int64) << 8) + 128).astype(np.float64)
    return np.concatenate(
        [np.rint(2.0**23 / np.sqrt(middle * (1 << p))).astype(np.int64) for p in (0, 1)]
    )


def scale_rsqrt(a: Scale) -> Scale:
    """Return ``1 / sqrt(a)`` within 5e-5 (table and one Newton step); zero for zero."""
    parity = a.e & 1
    x, e = a.m << parity, a.e - parity
    y0 = rsqrt_table()[(parity << 7) | ((a.m >> 8) & 0x7F)]
    c = (3 << 31) - x * ((y0 * y0) >> 15)  # Q31 of 3 - x * y0**2
    y1 = round_shift(y0 * (c >> 16), 16)
    zero = a.m == 0
    return scale_from_int(np.where(zero, 0, y1), -23 - (e >> 1))


def scale_max(a: Scale, b: Scale) -> Scale:
    """Return the larger of ``a`` and ``b``, element by element."""
    larger = (b.m != 0) & ((a.m == 0) | (b.e > a.e) | ((b.e == a.e) & (b.m > a.m)))
    return Scale(np.where(larger, b.m, a.m), np.where(larger, b.e, a.e))


def scale_from_float(x: float) -> Scale:
    """Round a non-negative finite float to a scale (offline: packing and compiling)."""
    if not (np.isfinite(x) and x >= 0):
        raise ValueError(f"a scale must be finite and not negative, not {x}")
    fraction = Fraction(float(x))
    shift = 80 - (fraction.numerator.bit_length() - fraction.denominator.bit_length())
    scaled = fraction * Fraction(2) ** (shift - 24)
    return scale_from_int(round(scaled), 24 - shift)


def scale_to_float(a: Scale) -> np.ndarray:
    """Return the value as float64 (sampling and reports, never the token path)."""
    return np.ldexp(a.m.astype(np.float64), a.e.astype(np.int64))


def pack_scale(a: Scale) -> Int:
    """32-bit word: mantissa in bits 15:0, exponent as signed 16 bits in 31:16."""
    return (a.m & 0xFFFF) | ((a.e & 0xFFFF) << 16)


def unpack_scale(word: ArrayLike) -> Scale:
    """Inverse of :func:`pack_scale`."""
    word = np.asarray(word).astype(np.int64)
    e = (word >> 16) & 0xFFFF
    return Scale(word & 0xFFFF, e - ((e & 0x8000) << 1))


def packed_scale_to_float(word: int) -> float:
    """Value of a packed scale as :func:`scale_to_float` gives it, without arrays."""
    e = (word >> 16) & 0xFFFF
    return math.ldexp(word & 0xFFFF, e - ((e & 0x8000) << 1))

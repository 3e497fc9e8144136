"""Scales as device functions: mantissa and exponent, both int32, as golden rounds them.

Model: :mod:`lutra_golden.arith.scale`. Mantissas are normalised, or zero with exponent zero.
"""

import numpy as np
import triton.language as tl

from lutra_golden.arith.scale import Scale, pack_scale
from lutra_kernels.arith.fixed import bit_length, round_shift, round_shift_right
from lutra_kernels.arith.tables import RSQRT_FIRST
from lutra_kernels.jit import jit

__all__ = [
    "scale_add",
    "scale_from_int",
    "scale_mul",
    "scale_pack",
    "scale_recip",
    "scale_rsqrt",
    "scale_unpack",
    "word",
]


@jit
def scale_from_int(x, e):
    """``x * 2**e`` as a scale; ``x`` is a non-negative int64."""
    n = bit_length(x) - 16
    m = round_shift(x, n).to(tl.int32)
    carry = m >> 16
    return m >> carry, tl.where(x == 0, 0, e + n + carry)


@jit
def scale_mul(a_m, a_e, b_m, b_e):
    """Product of two scales."""
    # of normalised mantissas it has 31 or 32 bits
    product = a_m.to(tl.uint32) * b_m.to(tl.uint32)
    top = product >> 31
    m = (((product >> (top + 14)) + 1) >> 1).to(tl.int32)
    carry = m >> 16
    return m >> carry, tl.where(m == 0, 0, a_e + b_e + 15 + top.to(tl.int32) + carry)


@jit
def scale_add(a_m, a_e, b_m, b_e):
    """Sum of two scales; the smaller one is cut to 16 bits below the larger one's last place."""
    swap = ((b_e > a_e) | (a_m == 0)) & (b_m != 0)
    large_m, large_e = tl.where(swap, b_m, a_m), tl.where(swap, b_e, a_e)
    small_m, small_e = tl.where(swap, a_m, b_m), tl.where(swap, a_e, b_e)
    d = tl.minimum(tl.maximum(large_e - small_e, 0), 32)
    total = (large_m.to(tl.int64) << 16) + ((small_m.to(tl.int64) << 16) >> d)
    return scale_from_int(total, large_e - 16)


@jit
def scale_recip(m, e):
    """Reciprocal by a seed and one Newton step; zero for zero."""
    # what golden's table holds, since a division is less than a load that waits for its address
    middle = (((m >> 7) << 7) + 64).to(tl.uint32)
    y = tl.minimum(((middle >> 1) + 0x80000000) // middle, 0xFFFF).to(tl.int64)
    c = (1 << 32) - m * y
    y = round_shift_right(y * (c >> 15), tl.full([], 16, tl.int32))
    return scale_from_int(tl.where(m == 0, 0, y), -31 - e)


@jit
def scale_rsqrt(m, e, tables_ptr):
    """Reciprocal square root by a table and one Newton step; zero for zero."""
    parity = e & 1
    x = (m << parity).to(tl.int64)
    y = tl.load(tables_ptr + RSQRT_FIRST + ((parity << 7) | ((m >> 8) & 0x7F))).to(tl.int64)
    c = (3 << 31) - x * ((y * y) >> 15)
    y = round_shift_right(y * (c >> 16), tl.full([], 16, tl.int32))
    return scale_from_int(tl.where(m == 0, 0, y), -23 - ((e - parity) >> 1))


@jit
def scale_pack(m, e):
    """Word of 32 bits: mantissa below, exponent above bit 16."""
    return m | (e << 16)


@jit
def scale_unpack(word):
    """Inverse of :func:`scale_pack`."""
    return word & 0xFFFF, word >> 16


def word(scale: Scale) -> int:
    """A scale as kernels take it: its packed word, signed."""
    return int(pack_scale(scale).astype(np.int32))

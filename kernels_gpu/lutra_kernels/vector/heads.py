"""Heads in fixed point, with biases and norms, before they are rotated.

Model: :mod:`lutra_golden.vector.heads`.
"""

import triton.language as tl

from lutra_golden.vector.heads import (
    EPS_FRAC,
    FIXED_FRAC,
    FIXED_SHIFTS,
    FIXED_UNIT,
    FIXED_WIDTH,
    NORM_SHIFT,
)
from lutra_kernels.arith.fixed import round_shift, round_shift_right, saturate
from lutra_kernels.arith.scale import scale_from_int, scale_rsqrt
from lutra_kernels.jit import jit

__all__ = ["FIXED_UNIT_E", "FIXED_UNIT_M", "fixed_heads", "head_root", "head_times_gamma"]

FIXED_UNIT_M = tl.constexpr(int(FIXED_UNIT.m))
"""Mantissa of the unit of an element in fixed point."""
FIXED_UNIT_E = tl.constexpr(int(FIXED_UNIT.e))
"""Exponent of it."""
_FRAC = tl.constexpr(FIXED_FRAC)
_WIDTH = tl.constexpr(FIXED_WIDTH)
_LEAST = tl.constexpr(FIXED_SHIFTS[0])
_MOST = tl.constexpr(FIXED_SHIFTS[1])
_EPS_FRAC = tl.constexpr(EPS_FRAC)
_NORM_SHIFT = tl.constexpr(NORM_SHIFT)
_LOWERED = tl.constexpr(FIXED_FRAC - NORM_SHIFT)


@jit
def fixed_heads(acc, c_m, c_e, bias, bias_frac):
    """Accumulators, int64, times their scale ``c``, plus int32 biases: 28 bits in Q16, int64.

    Also where that limits an element.
    """
    shift = tl.minimum(tl.maximum(-(c_e + _FRAC), _LEAST), _MOST)
    v = round_shift(acc * c_m, shift) + (bias.to(tl.int64) << (_FRAC - bias_frac))
    out = saturate(v, _WIDTH)
    return out, out != v


@jit
def head_root(squares, gamma_frac, eps, tables_ptr, LOG2_DIM: tl.constexpr):
    """Unit of :func:`head_times_gamma`, from the sum of squares of a head."""
    squares += eps.to(tl.int64) << LOG2_DIM
    m, e = scale_from_int(squares, tl.full([], -_EPS_FRAC - LOG2_DIM, tl.int32))
    m, e = scale_rsqrt(m, e, tables_ptr)
    return m, e - tl.where(m == 0, 0, _LOWERED + gamma_frac)


@jit
def head_times_gamma(v, gamma):
    """An element times gamma, rounded."""
    return round_shift_right(v * gamma, tl.full([], _NORM_SHIFT, tl.int32))

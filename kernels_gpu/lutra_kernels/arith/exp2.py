"""``2**-d`` as a device function. Model: :mod:`lutra_golden.arith.exp2`."""

import triton.language as tl

from lutra_golden.arith.exp2 import EXP2
from lutra_kernels.arith.tables import EXP2_FIRST
from lutra_kernels.jit import jit

__all__ = ["exp2_neg"]

_D_FRAC = tl.constexpr(EXP2.d_frac)
_D_MASK = tl.constexpr((1 << EXP2.d_frac) - 1)
_BASE_MASK = tl.constexpr((1 << EXP2.table_frac + 1) - 1)
_REST_MASK = tl.constexpr((1 << EXP2.rest_bits) - 1)
_REST_BITS = tl.constexpr(EXP2.rest_bits)
_GUARD = tl.constexpr(EXP2.table_frac - EXP2.y_frac)


@jit
def exp2_neg(d, tables_ptr):
    """``2**-d`` in Q15 of non-negative int32 ``d`` in Q12, int32."""
    fraction = d & _D_MASK
    word = tl.load(tables_ptr + EXP2_FIRST + (fraction >> _REST_BITS))
    rest = fraction & _REST_MASK
    y = (word & _BASE_MASK) - (((word >> 18) * rest) >> _REST_BITS)
    # 18 bits: from a whole part of 29 on, nothing is left
    n = tl.minimum(d >> _D_FRAC, 29) + _GUARD
    return ((y >> (n - 1)) + 1) >> 1

"""SiLU as a device function. Model: :mod:`lutra_golden.arith.silu`."""

import triton.language as tl

from lutra_golden.arith.silu import SILU
from lutra_kernels.arith.tables import SILU_BASE, SILU_RISE
from lutra_kernels.jit import jit

__all__ = ["silu"]

_FINE_LIMIT = tl.constexpr(1 << (SILU.x_frac + SILU.split_bits))
_LIMIT = tl.constexpr(1 << (SILU.x_frac + SILU.limit_bits))
_HALF = tl.constexpr(1 << SILU.half_bits)
_HALF_MASK = tl.constexpr((1 << SILU.half_bits) - 1)
_FINE_REST = tl.constexpr(SILU.x_frac - SILU.fine_bits)
_REST = tl.constexpr(SILU.rest_bits)
_FINE_MASK = tl.constexpr((1 << SILU.x_frac - SILU.fine_bits) - 1)
_FINE_SCALE = tl.constexpr(SILU.rest_bits - (SILU.x_frac - SILU.fine_bits))
_MASK = tl.constexpr((1 << SILU.rest_bits) - 1)
_SHIFT = tl.constexpr(SILU.table_frac + SILU.rest_bits - SILU.x_frac)


@jit
def silu(x, tables_ptr):
    """``x / (1 + exp(-x))`` of int32 ``x``, ``signed(27)`` in Q16, int32."""
    u = tl.abs(x)
    fine = u < _FINE_LIMIT
    segment = tl.where(fine, u >> _FINE_REST, _HALF + ((u >> _REST) & _HALF_MASK))
    rest = tl.where(fine, (u & _FINE_MASK) << _FINE_SCALE, u & _MASK)
    base = tl.load(tables_ptr + SILU_BASE + segment)
    rise = tl.load(tables_ptr + SILU_RISE + segment)
    # base has 19 bits, the rest 12: up to 2**31 without sign
    y = (base.to(tl.int64) << _REST) + rise * rest
    gap = (((y >> (_SHIFT - 1)) + 1) >> 1).to(tl.int32)
    return tl.maximum(x, 0) - tl.where(u >= _LIMIT, 0, gap)

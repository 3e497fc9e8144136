"""Dequantisation into the residual stream. Model: :mod:`lutra_golden.vector.residual`."""

import triton.language as tl

from lutra_golden.vector.residual import RESIDUAL_WIDTH
from lutra_kernels.arith.fixed import round_shift_right, saturate
from lutra_kernels.arith.scale import scale_mul
from lutra_kernels.jit import jit

__all__ = ["residual_add"]

_WIDTH = tl.constexpr(RESIDUAL_WIDTH)


@jit
def residual_add(x, acc, s_m, s_e, w_m, w_e, frac):
    """``x + round(acc * s * w * 2**frac)`` of int32, clamped to 32 bits, and where it was.

    Or where ``acc`` would have to be shifted to the left.
    """
    c_m, c_e = scale_mul(s_m, s_e, w_m, w_e)
    shift = tl.minimum(tl.maximum(-(c_e + frac), 0), 63)
    added = round_shift_right(acc.to(tl.int64) * c_m, shift)
    clamped = saturate(x + added, _WIDTH)
    lost = (x + added != clamped) | ((c_e + frac > 0) & (added != 0))
    return clamped.to(tl.int32), lost

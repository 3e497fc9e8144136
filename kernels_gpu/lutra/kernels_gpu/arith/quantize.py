"""Symmetric quantisation as device functions. Model: :mod:`lutra.sim.golden.arith.quantize`."""

import triton.language as tl

from lutra.kernels_gpu.arith.fixed import round_shift_right
from lutra.kernels_gpu.arith.scale import scale_from_int, scale_mul, scale_recip
from lutra.kernels_gpu.jit import jit

__all__ = ["quantize", "quantize_factor", "quantize_step"]


@jit
def quantize_factor(y_max, Q_MAX: tl.constexpr):
    """The factor ``Q_MAX / y_max`` of an int64 maximum, a scale."""
    zero = tl.zeros([], tl.int32)
    q_m, q_e = scale_from_int(tl.full([], Q_MAX, tl.int64), zero)
    m, e = scale_from_int(y_max, zero)
    m, e = scale_recip(m, e)
    return scale_mul(m, e, q_m, q_e)


@jit
def quantize_step(y_max, Q_MAX: tl.constexpr):
    """``y_max / Q_MAX``, what one step is worth, a scale."""
    zero = tl.zeros([], tl.int32)
    q_m, q_e = scale_from_int(tl.full([], Q_MAX, tl.int64), zero)
    q_m, q_e = scale_recip(q_m, q_e)
    m, e = scale_from_int(y_max, zero)
    return scale_mul(m, e, q_m, q_e)


@jit
def quantize(y, f_m, f_e, Q_MAX: tl.constexpr):
    """``round(y * factor)`` within -Q_MAX..Q_MAX; ``y`` is int64."""
    q = round_shift_right(y * f_m, tl.minimum(tl.maximum(-f_e, 0), 63))
    return tl.minimum(tl.maximum(q, -Q_MAX), Q_MAX)

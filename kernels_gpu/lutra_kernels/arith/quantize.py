"""Symmetric quantisation as device functions. Model: :mod:`lutra_golden.arith.quantize`."""

import triton.language as tl

from lutra_golden.arith import scale as golden
from lutra_kernels.arith.fixed import round_shift_right
from lutra_kernels.arith.scale import scale_from_int, scale_mul, scale_recip
from lutra_kernels.jit import jit

__all__ = ["quantize", "quantize_factor", "quantize_step"]

_Q_MAX = (7, 127, 32767)
_INVERSE = [golden.scale_recip(golden.scale_from_int(q)) for q in _Q_MAX]
_M7, _M127, _M32767 = (tl.constexpr(int(golden.scale_from_int(q).m)) for q in _Q_MAX)
_E7, _E127, _E32767 = (tl.constexpr(int(golden.scale_from_int(q).e)) for q in _Q_MAX)
_INV_M7, _INV_M127, _INV_M32767 = (tl.constexpr(int(s.m)) for s in _INVERSE)
_INV_E7, _INV_E127, _INV_E32767 = (tl.constexpr(int(s.e)) for s in _INVERSE)


@jit
def quantize_factor(y_max, Q_MAX: tl.constexpr):
    """The factor ``Q_MAX / y_max`` of an int64 maximum, a scale; 7, 127 or 32767 of them."""
    zero = tl.zeros([], tl.int32)
    m, e = scale_from_int(y_max, zero)
    m, e = scale_recip(m, e)
    Q_M: tl.constexpr = _M127 if Q_MAX == 127 else (_M7 if Q_MAX == 7 else _M32767)
    Q_E: tl.constexpr = _E127 if Q_MAX == 127 else (_E7 if Q_MAX == 7 else _E32767)
    return scale_mul(m, e, zero + Q_M, zero + Q_E)


@jit
def quantize_step(y_max, Q_MAX: tl.constexpr):
    """``y_max / Q_MAX``, what one step is worth, a scale."""
    zero = tl.zeros([], tl.int32)
    m, e = scale_from_int(y_max, zero)
    Q_M: tl.constexpr = _INV_M127 if Q_MAX == 127 else (_INV_M7 if Q_MAX == 7 else _INV_M32767)
    Q_E: tl.constexpr = _INV_E127 if Q_MAX == 127 else (_INV_E7 if Q_MAX == 7 else _INV_E32767)
    return scale_mul(m, e, zero + Q_M, zero + Q_E)


@jit
def quantize(y, f_m, f_e, Q_MAX: tl.constexpr):
    """``round(y * factor)`` within -Q_MAX..Q_MAX; ``y`` is int64."""
    q = round_shift_right(y * f_m, tl.minimum(tl.maximum(-f_e, 0), 63))
    return tl.minimum(tl.maximum(q, -Q_MAX), Q_MAX)

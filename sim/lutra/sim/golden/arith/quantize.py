"""Symmetric quantisation to int8 with one scale, in integers."""

import numpy as np
from numpy.typing import ArrayLike

from lutra.sim.golden.arith.fixed import Int, round_shift
from lutra.sim.golden.arith.scale import Scale, scale_from_int, scale_mul, scale_recip

__all__ = ["Q_MAX", "SCALE_127", "SCALE_INV_127", "quantize_factor", "quantize_int8"]

Q_MAX = 127
SCALE_127 = scale_from_int(Q_MAX)
SCALE_INV_127 = scale_recip(SCALE_127)


def quantize_factor(y_max: ArrayLike) -> Scale:
    """Return the factor ``127 / y_max`` that :func:`quantize_int8` multiplies by."""
    return scale_mul(scale_recip(scale_from_int(y_max)), SCALE_127)


def quantize_int8(y: ArrayLike, factor: Scale) -> Int:
    """Return ``round(y * factor)`` clamped to -127..127; ``factor`` broadcasts against ``y``.

    ``factor`` comes from :func:`quantize_factor` of a maximum that ``|y|`` does not exceed, so its
    exponent is in -60..-9 and the clamp only guards the last place.
    """
    q = round_shift(np.asarray(y, np.int64) * factor.m, np.clip(-factor.e, 0, 63))
    return np.clip(q, -Q_MAX, Q_MAX)

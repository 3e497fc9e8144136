"""Weights that a checkpoint holds as integers, taken over: what the file says is what runs.

Codes are taken as they are. A group's scale becomes an integer of up to sixteen bits under one
scale per matrix, see :func:`scale_step`. Zero points are exact in half steps.
"""

import math

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Grouped, Integers, Ternary
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights

__all__ = ["from_grouped", "from_ternary", "scale_step"]

_SCALE_MAX = (1 << 16) - 1


def from_ternary(weight: Ternary) -> Integers:
    """Ternary weights as integers, exactly."""
    return Integers(GroupedWeights.from_integers(weight.codes), weight.scale)


def scale_step(scale: NDArray[np.float32]) -> float:
    """Unit in which the magnitudes of scales are integers up to 65535.

    Exact if all scales are multiples of a power of two that the largest has not more than 65535
    of: float16 scales within a factor of 32 of each other always are. Otherwise small scales, or
    those of many bits, are rounded; the step is then whichever rounds with the smaller squared
    error, the finest there is or the finest power of two, which leaves large float16 scales exact.
    """
    magnitude = np.abs(scale[scale != 0]).astype(np.float64)
    if not magnitude.size:
        return 1.0
    top = float(magnitude.max())
    least = math.frexp(top)[1] - 16  # top / 2**least is below 2**16
    mantissa, exponent = np.frexp(magnitude)
    whole = np.rint(mantissa * (1 << 24)).astype(np.int64)  # float32 has 24 bits
    last = exponent - 24 + np.log2(whole & -whole).astype(np.int64)
    exact = int(last.min())
    if exact >= least:
        return 2.0**exact

    def error(step: float) -> float:
        rounded = np.minimum(np.rint(magnitude / step), _SCALE_MAX) * step
        return float(((rounded - magnitude) ** 2).sum())

    return min((2.0**least, top / _SCALE_MAX), key=error)


def from_grouped(weight: Grouped) -> Integers:
    """Grouped codes as integers; LutraError if a zero point or an order has no exact form."""
    if weight.order is not None:
        raise LutraError(
            "the groups of this matrix are not in the order of its columns (act-order): "
            "quantise it again with lutra quantize"
        )
    if not (np.isfinite(weight.scale).all() and np.isfinite(weight.zero).all()):
        raise LutraError("group scales hold infinities or NaNs: export the model again")
    levels = (1 << weight.bits) - 1
    zero = np.rint(2 * weight.zero).astype(np.int64)
    codes = weight.codes
    negative = weight.scale < 0
    if negative.any():
        # -s (q - z) = s ((levels - q) - (levels - z))
        flip = negative.repeat(weight.group, axis=1)
        codes = np.where(flip, levels - codes, codes).astype(np.uint8)
        zero = np.where(negative, 2 * levels - zero, zero)
    if zero.min(initial=0) < 0 or zero.max(initial=0) > 2 * levels:
        raise LutraError(
            f"zero points must be in 0..{levels}, not {zero.min() / 2}..{zero.max() / 2}: "
            "export the model again"
        )
    step = scale_step(weight.scale)
    scale = np.rint(np.abs(weight.scale).astype(np.float64) / step).astype(np.int64)
    scale = np.minimum(scale, _SCALE_MAX)
    return Integers(
        GroupedWeights(codes=codes, scale=scale, zero=zero, bits=weight.bits, group=weight.group),
        step,
    )

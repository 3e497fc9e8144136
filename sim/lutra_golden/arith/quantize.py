"""Symmetric quantisation to int4, int8 or int16 with one scale, in integers."""

import numpy as np
from numpy.typing import ArrayLike

from lutra_golden.arith.fixed import Int, round_shift
from lutra_golden.arith.scale import Scale, scale_from_int, scale_mul, scale_recip

__all__ = [
    "Q_MAX",
    "SCALE_127",
    "SCALE_INV_127",
    "q_max_of",
    "quantize",
    "quantize_factor",
    "quantize_step",
]

Q_MAX = 127
"""Largest int8 that quantisation gives."""
SCALE_127 = scale_from_int(Q_MAX)
SCALE_INV_127 = scale_recip(SCALE_127)


def q_max_of(width: int) -> int:
    """Largest integer that quantisation to ``signed(width)`` gives: 7, 127 or 32767."""
    if width not in (4, 8, 16):
        raise ValueError(f"width must be 4, 8 or 16, not {width}")
    return (1 << (width - 1)) - 1


def quantize_factor(y_max: ArrayLike, q_max: int = Q_MAX) -> Scale:
    """Return the factor ``q_max / y_max`` that :func:`quantize` multiplies by, within 6e-5."""
    return scale_mul(scale_recip(scale_from_int(y_max)), scale_from_int(q_max))


def quantize_step(y_max: ArrayLike, q_max: int = Q_MAX) -> Scale:
    """Return ``y_max / q_max``: what one step of :func:`quantize` is worth."""
    return scale_mul(scale_from_int(y_max), scale_recip(scale_from_int(q_max)))


def quantize(y: ArrayLike, factor: Scale, q_max: int = Q_MAX) -> Int:
    """Return ``round(y * factor)`` clamped to -q_max..q_max; ``factor`` broadcasts against ``y``.

    ``factor`` comes from :func:`quantize_factor` of a maximum below 2**47 that ``|y|`` does not
    exceed, so its exponent is in -60..0 and ``|y * factor|`` below 7.1, 127.1 or 32768.1: the
    clamp guards the last place.
    """
    q = round_shift(np.asarray(y, np.int64) * factor.m, np.clip(-factor.e, 0, 63))
    return np.clip(q, -q_max, q_max)

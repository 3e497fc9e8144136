"""Symmetric quantisation to int4, int8 or int16 with one scale, in integers; and to int8 in groups
that have a shift each under that scale."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra_golden.arith.fixed import Int, round_shift
from lutra_golden.arith.scale import Scale, scale_from_int, scale_mul, scale_recip

__all__ = [
    "ACTIVATION_GROUPS",
    "Q_MAX",
    "SCALE_127",
    "SCALE_INV_127",
    "ActivationGroups",
    "group_exponents",
    "q_max_of",
    "quantize",
    "quantize_factor",
    "quantize_groups",
    "quantize_step",
]

Q_MAX = 127
"""Largest int8 that quantisation gives."""
SCALE_127 = scale_from_int(Q_MAX)
SCALE_INV_127 = scale_recip(SCALE_127)


ACTIVATION_GROUPS = (32, 64, 128)
"""Sizes that groups of activations can have."""
_SHIFTS_MAX = (1, 3, 7)  # an exponent of 1, 2 or 3 bits


@dataclass(frozen=True, kw_only=True)
class ActivationGroups:
    """Groups of ``size`` successive activations of a token that share an exponent.

    An activation is ``q * 2**-e`` under the token's scale, ``q`` int8 and ``e`` in
    ``0..shift_max``. As an integer it is ``q << (shift_max - e)`` under that scale times
    ``2**-shift_max``, so that a matrix is multiplied by integers, whatever the groups are.
    """

    size: int = 32
    shift_max: int = 7

    def __post_init__(self) -> None:
        for name, choice in (("size", ACTIVATION_GROUPS), ("shift_max", _SHIFTS_MAX)):
            if (value := getattr(self, name)) not in choice:
                raise ValueError(f"{name} must be one of {choice}, not {value}")

    @property
    def peak(self) -> int:
        """Largest magnitude of an activation as an integer."""
        return Q_MAX << self.shift_max

    def starts(self, n: int, run: int) -> NDArray[np.int64]:
        """First element of each group of a row of ``n`` activations.

        A row is cut into runs of ``run`` elements (heads, or the whole row), and those into groups;
        the last group of a run may be shorter.
        """
        within = np.arange(0, run, self.size, dtype=np.int64)
        return (np.arange(0, n, run, dtype=np.int64)[:, None] + within).reshape(-1)


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


def group_exponents(peaks: Int, y_max: Int, shift_max: int) -> Int:
    """Exponents of groups with the largest magnitudes ``peaks`` ``[M, groups]``: the largest ``e``
    in ``0..shift_max`` with ``peak * 2**e <= y_max``, of rows whose largest are ``y_max`` ``[M]``.
    """
    e = np.zeros_like(peaks)
    for shift in range(1, shift_max + 1):
        e += (peaks << shift) <= y_max[:, None]
    return e


def quantize_groups(y: Int, y_max: Int, groups: ActivationGroups, run: int) -> Int:
    """``y`` ``[M, N]`` in int8 with an exponent per group, as integers ``q << (shift_max - e)``.

    ``y_max`` ``[M]`` are the rows' largest magnitudes, below 2**47. One of an integer is worth
    :func:`quantize_step` times ``2**-shift_max``.
    """
    starts = groups.starts(y.shape[1], run)
    peaks = np.maximum.reduceat(np.abs(y), starts, axis=1)  # [M, groups]
    lengths = np.diff(starts, append=y.shape[1])
    e = group_exponents(peaks, y_max, groups.shift_max).repeat(lengths, axis=1)  # [M, N]
    factor = quantize_factor(y_max)
    q = quantize(y, Scale(factor.m[:, None], factor.e[:, None] + e))
    return q << (groups.shift_max - e)

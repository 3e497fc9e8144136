"""The search of :mod:`.rtn` for ranges of groups, in NumPy and in the C library of the device cpu.

:class:`Ranges` specifies every rounding and the order of every sum; :class:`CompiledRanges` is of
the same bits, at about a tenth of the time.
"""

import os
import sys
from ctypes import addressof
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lutra.devices.cpu.interface import CRanges
from lutra.devices.cpu.library import library_if, pointer, target_names, target_number
from lutra_golden.matmul.engine import SCALE_WIDTH

__all__ = [
    "SCALE_MAX",
    "Best",
    "CompiledRanges",
    "Ranges",
    "Searched",
    "can_compile",
    "ranges_of",
]

SCALE_MAX = (1 << SCALE_WIDTH) - 1
_ODD = (3, 7)  # levels, less one, of which an odd number is tried: two and three bits
_ABOUT = (-0.5, -0.25, 0.0, 0.25, 0.5)  # powers of the ratio of clips, about the free steps
_LANES = 16  # groups that lie side by side, at most
_WORTH = 1 << 20  # weights of a matrix for which a library is compiled that is not there
_WORD = 1 << 32  # compilers for less keep floats in registers that are wider
_TARGET = "LUTRA_CPU_TARGET"
_Float = NDArray[np.float64]
_Single = NDArray[np.float32]


@dataclass
class Best:
    """The best choice so far of each group, ``[n, groups]``."""

    error: _Float
    step: _Float
    zero: _Float

    @classmethod
    def none(cls, symmetric: _Float) -> "Best":
        """No choice yet: whatever is offered is better."""
        return cls(np.full_like(symmetric, np.inf), np.zeros_like(symmetric), symmetric.copy())

    def offer(self, error: _Float, step: _Float, zero: _Float) -> None:
        """Take step and zero point wherever they leave a smaller error."""
        better = error < self.error
        for kept, offered in ((self.error, error), (self.step, step), (self.zero, zero)):
            np.copyto(kept, offered, where=better)


class Searched(Protocol):
    """The ranges of some rows, searched."""

    free: _Float
    """Steps ``[n, groups]`` of least error, whose scales are not yet rounded."""
    whole: float
    """The largest step of a symmetric range that is not clipped."""

    def on_unit(self, unit: float) -> Best:
        """The best choices whose scales are integers of ``unit``, about the free ones."""
        ...


def ranges_of(
    weigh: _Single | None,
    clips: _Float,
    levels: int,
    w: NDArray[np.floating],
    *,
    ternary: bool,
    compiled: bool,
) -> Searched:
    """Search the ranges of ``w`` ``[n, groups, group]``, whose squared errors count ``weigh``
    ``[groups, group]`` times; in ``compiled`` code if it can."""
    kind = CompiledRanges if compiled else Ranges
    return kind(w, weigh, clips, levels, ternary)


def can_compile(w: NDArray[np.floating]) -> bool:
    """True if a matrix can be searched in C, where floats are what they say."""
    return (
        w.dtype == np.float32
        and sys.maxsize > _WORD
        and library_if(worth=w.size >= _WORTH) is not None
    )


class Ranges:
    """The search in NumPy: a group is a column, which makes its loops as long as there are groups.

    See :class:`Searched`.
    """

    def __init__(
        self,
        w: NDArray[np.floating],
        weigh: _Single | None,
        clips: _Float,
        levels: int,
        ternary: bool,
    ) -> None:
        low = np.minimum(w.min(axis=2), 0).astype(np.float64)
        high = np.maximum(w.max(axis=2), 0).astype(np.float64)
        self._w, self._weigh, self._levels, self._ternary = w, weigh, levels, ternary
        self._centre = (low + high) / 2
        self._full = np.stack([2 * np.maximum(-low, high), high - low]) / levels  # two kinds
        self._symmetric = np.full_like(self._centre, levels)
        self._ratio = clips[0] / clips[1]
        best, error = Best.none(self._symmetric), _Errors(w, weigh, levels)
        tiny = float(np.finfo(np.float32).tiny)
        for clip in clips:
            step = np.maximum(self._full[0] * clip, tiny)
            best.offer(error(step, self._symmetric), step, self._symmetric)
            if ternary:
                continue
            step = np.maximum(self._full[1] * clip, tiny)
            zero = self._zero(step)
            for offered in (zero, self._even(zero)):
                best.offer(error(step, offered), step, offered)
        if levels in _ODD:
            # a grid that holds zero and both ends, {-s, 0, s}, leaves a level out
            step = np.maximum(np.maximum(-low, high) / (levels // 2), tiny)
            zero = self._even(self._zero(step))
            best.offer(error(step, zero), step, zero)
        self.free, self.whole = best.step, float(self._full[0].max())

    def on_unit(self, unit: float) -> Best:
        best, error = Best.none(self._symmetric), _Errors(self._w, self._weigh, self._levels)
        targets = [*self._full, *(self.free * self._ratio**power for power in _ABOUT)]
        for target in targets:
            step = np.clip(np.rint(target / unit), 1, SCALE_MAX) * unit
            zeros = [self._symmetric]
            if not self._ternary:
                zero = self._zero(step)
                zeros += [zero, self._even(zero)]
            for offered in zeros:
                best.offer(error(step, offered), step, offered)
        return best

    def _zero(self, step: _Float) -> _Float:
        shifted = np.rint(self._levels - 2 * self._centre / step)
        return np.clip(np.nan_to_num(shifted), 0, 2 * self._levels)

    def _even(self, zero: _Float) -> _Float:
        return np.minimum(2 * np.rint(zero / 2), 2 * self._levels)


class _Errors:
    """Cost of a choice of steps and zero points, for each group.

    Squares are added up in a fixed order: every fourth one to the same of four sums, of sixteen the
    last four first.
    """

    def __init__(self, w: NDArray[np.floating], weigh: _Single | None, levels: int) -> None:
        n, n_groups, group = w.shape
        self._levels = levels
        self._single = np.ascontiguousarray(w.reshape(-1, group).T, np.float32)  # [group, n groups]
        self._weigh = None if weigh is None else np.tile(weigh.T, n)
        self._rest = np.empty_like(self._single)
        self._sums = np.empty((4, n * n_groups), np.float32)
        whole = group - group % 16
        self._order = [first + 4 * i for first in range(0, whole, 16) for i in (3, 2, 1, 0)]
        self._order += range(whole, group, 4)

    def __call__(self, step: _Float, zero: _Float) -> _Float:
        s, half = step.astype(np.float32).ravel(), (zero / 2).astype(np.float32).ravel()
        rest, sums = self._rest, self._sums
        np.multiply(self._single, 1 / s, out=rest)
        np.add(rest, half, out=rest)
        np.rint(rest, out=rest)
        np.clip(rest, 0, self._levels, out=rest)
        np.subtract(rest, half, out=rest)
        np.multiply(rest, s, out=rest)
        np.subtract(rest, self._single, out=rest)
        np.multiply(rest, rest, out=rest)
        if self._weigh is not None:
            np.multiply(rest, self._weigh, out=rest)
        sums.fill(0)
        for first in self._order:
            four = rest[first : first + 4]
            some = sums[: len(four)]
            np.add(four, some, out=some)
        total = (sums[0] + sums[1]) + (sums[2] + sums[3])
        return total.astype(np.float64).reshape(step.shape)


class CompiledRanges:
    """The search in C, of float32; see :class:`Searched`.

    ``target`` is one of the library's, the best one that this machine has if left out.
    """

    def __init__(
        self,
        w: NDArray[np.floating],
        weigh: _Single | None,
        clips: _Float,
        levels: int,
        ternary: bool,
        target: str | None = None,
    ) -> None:
        found = library_if(worth=True)
        assert found is not None and w.dtype == np.float32
        self._library, self._shape = found, w.shape[:2]
        self._target = target_number(target) if target else _best_target()
        w, n = np.ascontiguousarray(w), w.shape[0] * w.shape[1]
        self._lots = _aligned(-(-n // _LANES) * _LANES * w.shape[2])
        self._weigh = None if weigh is None else np.ascontiguousarray(weigh)
        self._c = CRanges(
            w=pointer(w),
            weigh=pointer(self._weigh),
            lots=pointer(self._lots),
            n=n,
            groups=w.shape[1],
            group=w.shape[2],
            levels=levels,
            odd=levels // 2 if levels in _ODD else 0,
            ternary=int(ternary),
            scale_max=SCALE_MAX,
        )
        self._about = np.array([(clips[0] / clips[1]) ** power for power in _ABOUT])
        self.free = np.empty(self._shape)
        with_clips = np.ascontiguousarray(clips)
        self._c.factors, self._c.n_factors = pointer(with_clips), len(clips)
        self.whole = float(
            found.lutra_cpu_free_ranges(self._target, addressof(self._c), pointer(self.free))
        )
        if self.whole < 0:
            raise MemoryError
        self._c.factors, self._c.n_factors = pointer(self._about), len(self._about)

    def on_unit(self, unit: float) -> Best:
        best = Best(*(np.empty(self._shape) for _ in range(3)))
        arrays = (self.free, best.error, best.step, best.zero)
        if not self._library.lutra_cpu_ranges_on(
            self._target, addressof(self._c), unit, *map(pointer, arrays)
        ):
            raise MemoryError
        return best


def _aligned(size: int) -> _Single:
    """Memory on a boundary of 64 bytes, as vectors are loaded from it."""
    whole = np.empty(size + _LANES, np.float32)
    first = -whole.ctypes.data % 64 // 4
    return whole[first : first + size]


@cache
def _best_target() -> int:
    """The target that is named in ``$LUTRA_CPU_TARGET``, or the one of best rank."""
    if forced := os.environ.get(_TARGET):
        return target_number(forced, _TARGET)
    return list(target_names().values()).index(True)

"""Round-to-nearest quantisation in groups, each with the clipping that costs least.

The values that a group can take lie ``scale`` apart: ``scale * (code - zero / 2)``. A group's scale
is an integer of eight bits under one float per matrix; it is rounded first, and codes and zero
point are chosen on the grid that it gives. Source: the clipping search of AWQ, arXiv 2306.00978,
section 3.2, here by least squared error of the weights, in which a column can count for more.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Integers
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import SCALE_WIDTH, GroupedWeights
from lutra_golden.matmul.format import W_BITS

__all__ = ["Grid", "choose_grid", "round_to_nearest"]

_SCALE_MAX = (1 << SCALE_WIDTH) - 1
# Share of a group's largest magnitude that the search goes down to: coarser grids clip more.
_LEAST_CLIP = {1: 0.12, 2: 0.3, 3: 0.45, 4: 0.6, 6: 0.8, 8: 0.9}
_LEAST_TERNARY_CLIP = 0.2
_TERNARY_BITS = 2
_N_CLIPS = 12
_ODD = (3, 7)  # levels, less one, of which an odd number is tried: two and three bits
_PEAK_MAX = 32  # bits: squares of such weights, and of their errors, are within float32
_CHUNK = 1 << 17  # weights that are searched at a time: few enough for a processor's cache
_Float = NDArray[np.float64]
_Single = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Grid of each row and group of a matrix: ``unit * scale * (code - zero / 2)``.

    ``scale`` and ``zero`` are integers, ``[N, K / group]``, within what
    :class:`~lutra_golden.matmul.engine.GroupedWeights` admits. With ``ternary`` no code is 3.
    """

    scale: NDArray[np.int64]
    zero: NDArray[np.int64]
    unit: float
    bits: int
    group: int
    ternary: bool = False

    @property
    def levels(self) -> int:
        """Largest code."""
        return 2 if self.ternary else (1 << self.bits) - 1

    def codes(self, w: NDArray[np.floating]) -> NDArray[np.uint8]:
        """The codes ``[N, K]`` that are nearest to the weights."""
        codes = np.empty(w.shape, np.uint8)
        for rows in _chunks(*w.shape):
            groups = w[rows].astype(np.float64).reshape(-1, self.scale.shape[1], self.group)
            groups /= (self.scale[rows] * self.unit)[..., None]
            groups += (self.zero[rows] / 2)[..., None]
            nearest = np.clip(np.rint(groups, out=groups), 0, self.levels, out=groups)
            codes[rows] = nearest.reshape(len(groups), -1)
        return codes

    def integers(self, codes: NDArray[np.uint8]) -> Integers:
        """A matrix of these codes."""
        weights = GroupedWeights(
            codes=codes, scale=self.scale, zero=self.zero, bits=self.bits, group=self.group
        )
        return Integers(weights, self.unit)


def round_to_nearest(
    w: NDArray[np.floating],
    bits: int,
    group: int,
    importance: _Single | None = None,
    *,
    ternary: bool = False,
) -> Integers:
    """Quantise ``[N, K]`` to codes of ``bits``, each the nearest on :func:`choose_grid`'s grid."""
    grid = choose_grid(w, bits, group, importance, ternary=ternary)
    return grid.integers(grid.codes(w))


def choose_grid(
    w: NDArray[np.floating],
    bits: int,
    group: int,
    importance: _Single | None = None,
    *,
    ternary: bool = False,
) -> Grid:
    """A scale and a zero point for each row and group of ``[N, K]``.

    The search goes over clipped ranges, symmetric about zero and as the weights lie, the latter
    with a zero point in half steps and in whole ones, which hold zero exactly. Never worse, in
    squared error, than the same scales without clipping. A column's squared error counts
    ``importance`` ``[K]`` times, all alike without it. ``ternary`` grids, of two bits, are -1, 0
    and 1 times the scale.
    """
    if bits not in W_BITS or (ternary and bits != _TERNARY_BITS):
        allowed = _TERNARY_BITS if ternary else f"one of {W_BITS}"
        raise ValueError(f"bits must be {allowed}, not {bits}")
    n, k = w.shape
    if group < 1 or k % group:
        raise LutraError(f"groups of {group} do not divide a depth of {k}: choose another group")
    levels, n_groups = 2 if ternary else (1 << bits) - 1, k // group
    if not w.any():
        zeros = np.zeros((n, n_groups), np.int64)
        zero = zeros + levels if ternary else zeros
        return Grid(scale=zeros + 1, zero=zero, unit=1.0, bits=bits, group=group, ternary=ternary)
    peak = math.frexp(max(float(w.max()), -float(w.min())))[1]
    if abs(peak) > _PEAK_MAX:
        near_one = choose_grid(np.ldexp(w, -peak), bits, group, importance, ternary=ternary)
        return replace(near_one, unit=math.ldexp(near_one.unit, peak))
    weigh = None
    if importance is not None and importance.any():
        exact = importance.astype(np.float64)
        weigh = (exact / importance.mean(dtype=np.float64)).astype(np.float32)
        weigh = weigh.reshape(n_groups, group)
    clips = np.geomspace(1.0, _LEAST_TERNARY_CLIP if ternary else _LEAST_CLIP[bits], _N_CLIPS)

    parts: list[_Ranges] = []
    for rows in _chunks(n, k):
        parts.append(_Ranges(w[rows].reshape(-1, n_groups, group), weigh, levels, ternary))
        parts[-1].search(clips)
    ratio = clips[0] / clips[1]

    def on_scale(unit: float) -> tuple[float, float, list[_Best]]:
        """The best choice under one scale of the matrix, with its error."""
        found = [
            part.on_unit(unit, w[rows].reshape(-1, n_groups, group), ratio)
            for part, rows in zip(parts, _chunks(n, k), strict=True)
        ]
        return sum(float(best.error.sum()) for best in found), unit, found

    def least(found: tuple[float, float, list[_Best]]) -> float:
        return found[0]

    # the largest scale is that of a clipped range or of a whole one, and 255 is the finest for it
    free = max(float(part.free.step.max()) for part in parts)
    whole = max(float(part.full[0].max()) for part in parts)
    found = min((on_scale(top / _SCALE_MAX) for top in (free, whole)), key=least)
    finest = on_scale(max(float(best.step.max()) for best in found[2]) / _SCALE_MAX)
    _, unit, chosen = min(found, finest, key=least)
    step = np.concatenate([best.step for best in chosen])
    zero = np.concatenate([best.zero for best in chosen])
    return Grid(
        scale=np.rint(step / unit).astype(np.int64),
        zero=zero.astype(np.int64),
        unit=unit,
        bits=bits,
        group=group,
        ternary=ternary,
    )


def _chunks(n: int, k: int) -> Iterator[slice]:
    """Slices of rows that are small enough for a cache."""
    rows = max(_CHUNK // k, 1)
    for first in range(0, n, rows):
        yield slice(first, min(first + rows, n))


@dataclass
class _Best:
    """The best choice so far of each group, ``[n, groups]``."""

    error: _Float
    step: _Float
    zero: _Float

    @classmethod
    def none(cls, symmetric: _Float) -> "_Best":
        """No choice yet: whatever is offered is better."""
        return cls(np.full_like(symmetric, np.inf), np.zeros_like(symmetric), symmetric.copy())

    def offer(self, error: _Float, step: _Float, zero: _Float) -> None:
        """Take step and zero point wherever they leave a smaller error."""
        better = error < self.error
        for kept, offered in ((self.error, error), (self.step, step), (self.zero, zero)):
            np.copyto(kept, offered, where=better)


class _Ranges:
    """The ranges of some rows: whole, ``full``, and the ``free`` ones, whose scales are not yet
    rounded."""

    def __init__(
        self, w: NDArray[np.floating], weigh: _Single | None, levels: int, ternary: bool
    ) -> None:
        low = np.minimum(w.min(axis=2), 0).astype(np.float64)
        high = np.maximum(w.max(axis=2), 0).astype(np.float64)
        self.weigh, self.levels, self._ternary = weigh, levels, ternary
        self.centre = (low + high) / 2
        self.full = np.stack([2 * np.maximum(-low, high), high - low]) / levels  # two kinds
        # a grid that holds zero and both ends, {-s, 0, s}, leaves a level out
        self.odd = np.maximum(-low, high) / (levels // 2) if levels in _ODD else None
        self.symmetric = np.full_like(self.centre, levels)
        self.free = _Best.none(self.symmetric)
        self._w = w

    def search(self, clips: NDArray[np.float64]) -> None:
        """Find the clips that suit each group, and forget the weights."""
        error = self._errors(self._w)
        tiny = float(np.finfo(np.float32).tiny)
        for clip in clips:
            step = np.maximum(self.full[0] * clip, tiny)
            self.free.offer(error(step, self.symmetric), step, self.symmetric)
            if self._ternary:
                continue
            step = np.maximum(self.full[1] * clip, tiny)
            zero = self._zero(step)
            for offered in (zero, self._whole(zero)):
                self.free.offer(error(step, offered), step, offered)
        if self.odd is not None:
            step = np.maximum(self.odd, tiny)
            zero = self._whole(self._zero(step))
            self.free.offer(error(step, zero), step, zero)
        del self._w

    def on_unit(self, unit: float, w: NDArray[np.floating], ratio: float) -> _Best:
        """The best choices whose scales are integers of ``unit``, about the free ones."""
        best, error = _Best.none(self.symmetric), self._errors(w)
        targets = [self.full[0], self.full[1]]
        targets += [self.free.step * ratio**power for power in (-0.5, -0.25, 0.0, 0.25, 0.5)]
        for target in targets:
            step = np.clip(np.rint(target / unit), 1, _SCALE_MAX) * unit
            zeros = [self.symmetric]
            if not self._ternary:
                zero = self._zero(step)
                zeros += [zero, self._whole(zero)]
            for offered in zeros:
                best.offer(error(step, offered), step, offered)
        return best

    def _zero(self, step: _Float) -> _Float:
        shifted = np.rint(self.levels - 2 * self.centre / step)
        return np.clip(np.nan_to_num(shifted), 0, 2 * self.levels)

    def _whole(self, zero: _Float) -> _Float:
        return np.minimum(2 * np.rint(zero / 2), 2 * self.levels)

    def _errors(self, w: NDArray[np.floating]) -> Callable[[_Float, _Float], _Float]:
        """Cost of a choice of steps and zero points, for each group.

        Here a group is a column, which makes NumPy's loops as long as there are groups. Squares are
        added up in a fixed order: every fourth one to the same of four sums, of sixteen the last
        four first.
        """
        n, n_groups, group = w.shape
        single = np.ascontiguousarray(w.reshape(-1, group).T, np.float32)  # [group, n * n_groups]
        weigh = None if self.weigh is None else np.tile(self.weigh.T, n)
        rest, sums = np.empty_like(single), np.empty((4, n * n_groups), np.float32)
        whole = group - group % 16
        order = [first + 4 * i for first in range(0, whole, 16) for i in (3, 2, 1, 0)]
        order += range(whole, group, 4)

        def error(step: _Float, zero: _Float) -> _Float:
            s, half = step.astype(np.float32).ravel(), (zero / 2).astype(np.float32).ravel()
            np.multiply(single, 1 / s, out=rest)
            np.add(rest, half, out=rest)
            np.rint(rest, out=rest)
            np.clip(rest, 0, self.levels, out=rest)
            np.subtract(rest, half, out=rest)
            np.multiply(rest, s, out=rest)
            np.subtract(rest, single, out=rest)
            np.multiply(rest, rest, out=rest)
            if weigh is not None:
                np.multiply(rest, weigh, out=rest)
            sums.fill(0)
            for first in order:
                four = rest[first : first + 4]
                some = sums[: len(four)]
                np.add(four, some, out=some)
            total = (sums[0] + sums[1]) + (sums[2] + sums[3])
            return total.astype(np.float64).reshape(step.shape)

        return error

"""Round-to-nearest quantisation in groups, each with the clipping that costs least.

The values that a group can take lie ``scale`` apart: ``scale * (code - zero / 2)``. A group's scale
is an integer of eight bits under one float per matrix; it is rounded first, and codes and zero
point are chosen on the grid that it gives. Source: the clipping search of AWQ, arXiv 2306.00978,
section 3.2, here by least squared error of the weights, in which a column can count for more.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Integers
from lutra.parallel import each_of
from lutra.quantize.ranges import SCALE_MAX, Best, can_compile, ranges_of
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.format import W_BITS

__all__ = ["Grid", "choose_grid", "round_to_nearest"]

# Share of a group's largest magnitude that the search goes down to: coarser grids clip more.
_LEAST_CLIP = {1: 0.12, 2: 0.3, 3: 0.45, 4: 0.6, 6: 0.8, 8: 0.9}
_LEAST_TERNARY_CLIP = 0.2
_TERNARY_BITS = 2
_N_CLIPS = 12
_PEAK_MAX = 32  # bits: squares of such weights, and of their errors, are within float32
_CHUNK = 1 << 17  # weights that are searched at a time: few enough for a processor's cache
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

        def code(rows: slice) -> None:
            groups = w[rows].astype(np.float64).reshape(-1, self.scale.shape[1], self.group)
            groups /= (self.scale[rows] * self.unit)[..., None]
            groups += (self.zero[rows] / 2)[..., None]
            nearest = np.clip(np.rint(groups, out=groups), 0, self.levels, out=groups)
            codes[rows] = nearest.reshape(len(groups), -1)

        each_of(code, _chunks(*w.shape))
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
    compiled: bool | None = None,
) -> Grid:
    """A scale and a zero point for each row and group of ``[N, K]``.

    The search goes over clipped ranges, symmetric about zero and as the weights lie, the latter
    with a zero point in half steps and in whole ones, which hold zero exactly. Never worse, in
    squared error, than the same scales without clipping. A column's squared error counts
    ``importance`` ``[K]`` times, all alike without it. ``ternary`` grids, of two bits, are -1, 0
    and 1 times the scale. The search is in C if it is ``compiled``, or, left out, where it can be;
    the grid is the same.
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
    largest = max(float(w.max()), -float(w.min()))
    peak = math.frexp(largest)[1]
    if abs(peak) > _PEAK_MAX:
        near_one = choose_grid(
            np.ldexp(w, -peak), bits, group, importance, ternary=ternary, compiled=compiled
        )
        return replace(near_one, unit=math.ldexp(near_one.unit, peak))
    weigh = None
    if importance is not None and importance.any():
        exact = importance.astype(np.float64)
        weigh = (exact / importance.mean(dtype=np.float64)).astype(np.float32)
        weigh = weigh.reshape(n_groups, group)
    clips = np.geomspace(1.0, _LEAST_TERNARY_CLIP if ternary else _LEAST_CLIP[bits], _N_CLIPS)

    in_c = compiled
    if in_c is None:
        in_c = math.isfinite(largest) and can_compile(w)
    parts = each_of(
        partial(ranges_of, weigh, clips, levels, ternary=ternary, compiled=in_c),
        (w[rows].reshape(-1, n_groups, group) for rows in _chunks(n, k)),
    )

    @cache
    def on_scale(unit: float) -> tuple[float, float, list[Best]]:
        """The best choice under one scale of the matrix, with its error."""
        found = each_of(lambda part: part.on_unit(unit), parts)
        return sum(float(best.error.sum()) for best in found), unit, found

    def least(found: tuple[float, float, list[Best]]) -> float:
        return found[0]

    # the largest scale is that of a clipped range or of a whole one, and 255 is the finest for it
    free = max(float(part.free.max()) for part in parts)
    whole = max(part.whole for part in parts)
    found = min((on_scale(top / SCALE_MAX) for top in (free, whole)), key=least)
    finest = on_scale(max(float(best.step.max()) for best in found[2]) / SCALE_MAX)
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

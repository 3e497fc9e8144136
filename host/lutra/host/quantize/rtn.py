"""Round-to-nearest quantisation in groups, each with the clipping that costs least.

The values that a group can take lie ``scale`` apart: ``scale * (code - zero / 2)``. A group's scale
is an integer of eight bits under one float per matrix; it is rounded first, and codes and zero
point are chosen on the grid that it gives. Source: the clipping search of AWQ, arXiv 2306.00978,
section 3.2, here for the weights alone, by least squared error.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.host.checkpoints.weights import Integers
from lutra.host.errors import LutraError
from lutra.sim.golden.matmul.engine import SCALE_WIDTH, GroupedWeights
from lutra.sim.golden.matmul.format import W_BITS

__all__ = ["round_to_nearest"]

_SCALE_MAX = (1 << SCALE_WIDTH) - 1
# Share of a group's largest magnitude that the search goes down to: coarser grids clip more.
_LEAST_CLIP = {1: 0.12, 2: 0.3, 3: 0.45, 4: 0.6, 6: 0.8, 8: 0.9}
_N_CLIPS = 12
_Float = NDArray[np.float64]


@dataclass
class _Best:
    """The best choice so far of each group, ``[N, groups]``."""

    error: _Float
    step: _Float
    zero: _Float

    def offer(self, w: _Float, step: _Float, zero: _Float, levels: int) -> None:
        """Take step and zero point wherever they leave a smaller squared error."""
        rest = _codes(w, step, zero, levels) - (zero / 2)[..., None]
        rest *= step[..., None]
        rest -= w
        error = np.einsum("ngk,ngk->ng", rest, rest)
        better = error < self.error
        for kept, offered in ((self.error, error), (self.step, step), (self.zero, zero)):
            kept[better] = offered[better]


def _codes(w: _Float, step: _Float, zero: _Float, levels: int) -> _Float:
    codes = w / step[..., None]
    codes += (zero / 2)[..., None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, levels, out=codes)


def round_to_nearest(w: NDArray[np.floating], bits: int, group: int) -> Integers:
    """Quantise ``[N, K]`` to codes of ``bits`` with a scale and a zero point per row and group.

    The search goes over clipped ranges, symmetric about zero and as the weights lie, the latter
    with a zero point in half steps and in whole ones, which hold zero exactly. Never worse, in
    squared error, than the same scales without clipping.
    """
    if bits not in W_BITS:
        raise ValueError(f"bits must be one of {W_BITS}, not {bits}")
    n, k = w.shape
    if group < 1 or k % group:
        raise LutraError(f"groups of {group} do not divide a depth of {k}: choose another group")
    levels = (1 << bits) - 1
    groups = w.astype(np.float64).reshape(n, -1, group)
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    centre = (low + high) / 2
    full = np.stack([2 * np.maximum(-low, high), high - low]) / levels  # symmetric, as they lie
    if not full.any():
        return Integers(_zeros(n, k, bits, group), 1.0)

    symmetric = np.full_like(centre, levels)

    def zero_of(step: _Float) -> _Float:
        with np.errstate(divide="ignore", invalid="ignore"):
            shifted = np.rint(levels - 2 * centre / step)
        return np.clip(np.nan_to_num(shifted), 0, 2 * levels)

    def whole(zero: _Float) -> _Float:
        return np.minimum(2 * np.rint(zero / 2), 2 * levels)

    # the clips that suit each group with scales that are not rounded
    free = _Best(np.full_like(centre, np.inf), np.zeros_like(centre), symmetric.copy())
    clips = np.geomspace(1.0, _LEAST_CLIP[bits], _N_CLIPS)
    tiny = np.finfo(np.float64).tiny
    for clip in clips:
        free.offer(groups, np.maximum(full[0] * clip, tiny), symmetric, levels)
        step = np.maximum(full[1] * clip, tiny)
        zero = zero_of(step)
        free.offer(groups, step, zero, levels)
        free.offer(groups, step, whole(zero), levels)

    ratio = clips[0] / clips[1]
    targets = [full[0], full[1]]
    targets += [free.step * ratio**power for power in (-0.5, -0.25, 0.0, 0.25, 0.5)]

    def on_scale(unit: float) -> tuple[float, float, _Best]:
        """The best choice under one scale of the matrix, with its error."""
        best = _Best(np.full_like(centre, np.inf), np.zeros_like(centre), symmetric.copy())
        for target in targets:
            step = np.clip(np.rint(target / unit), 1, _SCALE_MAX) * unit
            zero = zero_of(step)
            for offered in (symmetric, zero, whole(zero)):
                best.offer(groups, step, offered, levels)
        return float(best.error.sum()), unit, best

    def least(found: tuple[float, float, _Best]) -> float:
        return found[0]

    # the largest scale is that of a clipped range or of a whole one, and 255 is the finest for it
    found = min((on_scale(float(x.max()) / _SCALE_MAX) for x in (free.step, full[0])), key=least)
    finest = on_scale(float(found[2].step.max()) / _SCALE_MAX)
    _, unit, best = min(found, finest, key=least)
    codes = _codes(groups, best.step, best.zero, levels)
    return Integers(
        GroupedWeights(
            codes=codes.astype(np.uint8).reshape(n, k),
            scale=np.rint(best.step / unit).astype(np.int64),
            zero=best.zero.astype(np.int64),
            bits=bits,
            group=group,
        ),
        unit,
    )


def _zeros(n: int, k: int, bits: int, group: int) -> GroupedWeights:
    side = np.ones((n, k // group), np.int64)
    return GroupedWeights(
        codes=np.zeros((n, k), np.uint8), scale=side, zero=0 * side, bits=bits, group=group
    )

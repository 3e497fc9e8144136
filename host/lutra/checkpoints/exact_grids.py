"""Weights in floating point that lie on a grid of a few levels in each group: found, and kept.

Models of few bits are published unpacked, too: ternary weights in float16, two bits in bfloat16.
Rounding such weights anew would lose what is there exactly. A group lies on a grid if each of its
weights is the number of its type that is nearest to ``step * (code - zero)``, with a step of the
group's own, a zero point in half steps, and codes of four bits at most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense, Grouped, Ternary, Weight

__all__ = ["LEVELS", "on_grid"]

LEVELS = 16
"""Levels that a grid has at most."""
_PROBE = 8  # groups that are looked at first
_SAMPLE = 16  # rows that decide which groups are tried
_LEAST_GROUP = 16
_GROUPS = (256, 128, 64, 32, 16)
_SHARES = (1, 2, 4, 8, 16)  # of a row, as training on several devices leaves
_VALUES = 1 << 20  # that are looked at at a time
_Float = NDArray[np.float64]
_PRECISION: Mapping[str, tuple[int, int]] = {
    "float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)
}  # fmt: skip
"""Bits of the fraction and the least exponent of normal numbers, by type."""


def on_grid(weight: Weight) -> Weight:
    """The weights as codes, if they are in floating point and all groups lie on grids.

    Ternary if they are zero or of one magnitude in all of the matrix. Groups are as large as can
    be: whole rows, shares of a row, or 256 to 16 weights.
    """
    if not isinstance(weight, Dense) or weight.values.dtype.name not in _PRECISION:
        return weight
    n, k = weight.shape
    sizes = {k // share for share in _SHARES if k % share == 0} | {
        group for group in _GROUPS if k % group == 0
    }
    sizes = sorted(size for size in sizes if size >= _LEAST_GROUP)
    if not sizes:
        return weight
    values = weight.values
    # a few groups tell of most matrices that they lie on none
    if _fits(values[:1, : _PROBE * sizes[0]], sizes[0]) is None:
        return weight
    sample = values[np.unique(np.linspace(0, n - 1, _SAMPLE).astype(np.int64))]
    if _fits(sample, sizes[0]) is None:
        return weight
    for size in reversed(sizes):
        if _fits(sample, size) is None:
            continue
        rows = max(_VALUES // k, 1)
        found = [_fits(values[first : first + rows], size) for first in range(0, n, rows)]
        whole = [part for part in found if part is not None]
        if len(whole) == len(found):
            return _joined(whole, size) if any(part.step.any() for part in whole) else weight
    return weight


@dataclass(frozen=True)
class _Fit:
    """Codes ``[N, G, g]`` of some rows; ``step`` and ``zero``, in half steps, of each group. A
    group of zeros has a step of 0."""

    codes: NDArray[np.uint8]
    step: _Float
    zero: NDArray[np.int64]

    @property
    def ternary(self) -> bool:
        """True if codes mean -1, 0 and 1."""
        return bool((self.zero == 2).all() and self.codes.max(initial=0) <= 2)


def _fits(values: NDArray[np.generic], size: int) -> _Fit | None:
    """The grids of these rows in groups of ``size``; None if one group has none."""
    w = values.astype(np.float64).reshape(len(values), -1, size)
    peak = np.abs(w).max(axis=2, initial=0)
    if not np.isfinite(peak).all():
        return None
    codes = np.sign(w).astype(np.int8) + np.int8(1)
    step, zero = peak.copy(), np.full(peak.shape, 2)
    left = ((np.abs(w) != peak[..., None]) & (w != 0)).any(axis=2)
    fit = _Fit(codes.astype(np.uint8), step, zero)
    for n_steps in range(2, LEVELS):
        if not left.any():
            return fit
        groups = np.nonzero(left)
        found, codes, step, zero = _equal_steps(w[groups], n_steps, values.dtype)
        inside = tuple(each[found] for each in groups)
        fit.codes[inside], fit.step[inside], fit.zero[inside] = (
            codes[found], step[found], zero[found]
        )  # fmt: skip
        left[inside] = False
    return None if left.any() else fit


def _equal_steps(
    w: _Float, n_steps: int, dtype: np.dtype[np.generic]
) -> tuple[NDArray[np.bool_], NDArray[np.uint8], _Float, NDArray[np.int64]]:
    """Groups ``[G, g]`` whose range is ``n_steps`` equal steps: which are, codes, steps, zeros."""
    low, high = w.min(axis=1), w.max(axis=1)
    about = (high - low) / n_steps
    codes = np.rint((w - low[:, None]) / about[:, None]).astype(np.int64)
    zero = np.rint(-2 * low / about).astype(np.int64)
    # a zero point lies within the codes, or is moved there with them
    shift = np.maximum(-(zero // 2), 0)
    codes, zero = codes + shift[:, None], zero + 2 * shift
    found = np.maximum(codes.max(axis=1), (zero + 1) // 2) < LEVELS
    away = codes - zero[:, None] / 2
    # every weight bounds the step: rounded to its type, it must give the weight
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size, (below, above) = np.abs(w), _half_ulps(w, dtype)
        least = np.where(away != 0, (size - below) / np.abs(away), 0).max(axis=1)
        most = np.where(away != 0, (size + above) / np.abs(away), np.inf).min(axis=1)
        step = (least + most) / 2
        again = (step[:, None] * away).astype(dtype).astype(np.float64)
    found &= (again == w).all(axis=1)
    return found, np.clip(codes, 0, 255).astype(np.uint8), step, zero


def _half_ulps(w: _Float, dtype: np.dtype[np.generic]) -> tuple[_Float, _Float]:
    """Half the distance of each magnitude to its neighbours of a type, below and above."""
    bits, least = _PRECISION[dtype.name]
    mantissa, exponent = np.frexp(np.abs(w))
    above = np.ldexp(0.5, np.maximum(exponent - 1, least) - bits)
    return np.where((mantissa == 0.5) & (exponent - 1 > least), above / 2, above), above


def _joined(parts: Sequence[_Fit], size: int) -> Weight:
    """The matrix, in the fewest bits."""
    codes = np.concatenate([part.codes for part in parts])
    step = np.concatenate([part.step for part in parts])
    zero = np.concatenate([part.zero for part in parts])
    n, used = len(codes), step != 0
    ternary = all(part.ternary for part in parts)
    binary = ternary and used.all() and not (codes == 1).any()
    steps = np.unique(step[used])
    if ternary and not binary and len(steps) == 1:
        return Ternary(codes.reshape(n, -1).astype(np.int8) - np.int8(1), float(steps[0]))
    if binary:
        codes, step, zero = codes // np.uint8(2), 2 * step, zero // 2
    top = max(int(codes.max(initial=0)), int((zero.max(initial=0) + 1) // 2))
    return Grouped(
        codes=codes.reshape(n, -1).astype(np.uint8, copy=False),
        scale=step.astype(np.float32),
        zero=(zero / 2).astype(np.float32),
        bits=max(top.bit_length(), 1),
        group=size,
    )

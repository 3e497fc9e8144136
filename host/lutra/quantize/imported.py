"""Weights that a checkpoint holds as integers, taken over: what the file says is what runs.

Codes are taken as they are, those of embedding and head some rows at a time. A group's scale
becomes an integer of up to sixteen bits under one scale per matrix, see :func:`scale_step`. Zero
points are exact in half steps. A group's offset is no multiple of its step: its codes are spread
over a finer grid, see :func:`_on_finer_grid`, unless the device takes offsets. Then K-quants keep
their scales and offsets in two levels, see :func:`_two_levels`.
"""

import math
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Encoded, Grouped, Integers, Products, Ternary
from lutra.parallel import each_of
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import OFFSET_MAX, GroupedWeights
from lutra_golden.matmul.format import W_BITS
from lutra_golden.model.b128 import CODE_BITS, row_bytes, to_b128
from lutra_golden.model.stored import StoredWeights, offset_shift
from lutra_golden.model.two_levels import TwoLevels

__all__ = [
    "fine_steps",
    "from_encoded",
    "from_grouped",
    "from_ternary",
    "kept_bits",
    "packed_bits",
    "scale_step",
]

T = TypeVar("T", bound=np.generic)
_SCALE_MAX = (1 << 16) - 1
_FINE_BITS = 8
_STORED_MAX = (1 << 15) - 1  # magnitude of a stored offset
_NUMBERS = 1 << 17  # of groups, at a time
_WEIGHTS = 1 << 20  # of embedding and head, at a time: with fewer, threads wait for each other


def packed_bits(bits: int, *, affine: bool) -> int:
    """Bits that codes run in: the least width there is for them, eight with offsets."""
    return _FINE_BITS if affine else min(width for width in W_BITS if width >= bits)


def fine_steps(bits: int) -> int:
    """Steps of the finer grid that one step of affine codes can be, at most."""
    return ((1 << _FINE_BITS) - 1) // ((1 << bits) - 1)


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
    lots = _lots(scale)
    top = max((float(np.abs(lot).max()) for lot in lots), default=0.0)
    if not top:
        return 1.0
    finest = _finest(top)

    def bits(lot: NDArray[np.float32]) -> int | None:
        """All bits of the magnitudes in units of the finest step, None if they are not whole."""
        units = np.abs(lot.astype(np.float64)) / finest
        whole = units.astype(np.int32)
        return int(np.bitwise_or.reduce(whole)) if (whole == units).all() else None

    found = each_of(bits, lots)
    whole = [each for each in found if each is not None]
    if len(whole) == len(found):
        used = int(np.bitwise_or.reduce(whole))
        return finest * (used & -used)

    def errors(lot: NDArray[np.float32]) -> list[float]:
        magnitude = np.abs(lot.astype(np.float64))
        rests = [np.minimum(np.rint(magnitude / step), _SCALE_MAX) * step for step in steps]
        return [float(((rest - magnitude) ** 2).sum()) for rest in rests]

    steps = finest, top / _SCALE_MAX
    of_finest, of_top = np.sum(each_of(errors, lots), axis=0)
    return steps[int(of_top < of_finest)]


def _finest(top: float) -> float:
    """The power of two that ``top`` has 32768 to 65535 of, and a fraction."""
    return 2.0 ** (math.frexp(top)[1] - 16)


def _lots(values: NDArray[T]) -> list[NDArray[T]]:
    """Views of a matrix' numbers, few enough at a time for a processor's cache."""
    flat = values.reshape(-1)
    return [flat[first : first + _NUMBERS] for first in range(0, flat.size, _NUMBERS)]


def from_grouped(weight: Grouped, *, offsets: bool = False) -> Integers:
    """Grouped codes as integers; LutraError if a zero point or an order has no exact form.

    With ``offsets`` those of groups stay integers beside the scales, rounded to 2**-16 of the
    matrix's largest, and scales and offsets that are products become two levels; without, they are
    zero points on a finer grid.
    """
    if weight.order is not None:
        raise LutraError(
            "the groups of this matrix are not in the order of its columns (act-order): "
            "quantise it again with lutra quantize"
        )
    parts = [weight.scale, weight.zero, *([] if weight.offset is None else [weight.offset])]
    if not all(np.isfinite(each).all() for each in parts):
        raise LutraError("group scales hold infinities or NaNs: export the model again")
    if weight.offset is not None and not offsets:
        weight = _on_finer_grid(weight, weight.offset)
    codes, zero = _without_signs(weight)
    levels = None
    if offsets and weight.scales is not None:
        step, levels = _two_levels(weight.scales, weight.offsets)
        scale, offset = levels.scale, levels.offset
        offset = None if offset is None else offset.astype(np.int64) << levels.offset_shift
    else:
        step, scale, offset = _in_steps(weight.scale, weight.offset)
    return Integers(
        GroupedWeights(
            codes=codes,
            scale=scale.astype(np.int64),
            zero=zero,
            bits=packed_bits(weight.bits, affine=False),
            group=weight.group,
            offset=offset,
        ),
        step,
        levels,
    )


class _Numbers(NamedTuple):
    """Numbers of some rows' groups: scales, zero points in half steps and offsets, and what the
    checkpoint has as products."""

    scale: NDArray[np.float32]
    zero: NDArray[np.uint16]
    offset: NDArray[np.float32] | None
    scales: Products | None
    offsets: Products | None


def kept_bits(matrix: Encoded, *, offsets: bool) -> int:
    """Bits of the codes of :func:`from_encoded`."""
    return _FINE_BITS if matrix.affine and not offsets else matrix.bits


def from_encoded(matrix: Encoded, *, offsets: bool = False) -> tuple[StoredWeights, float]:
    """All rows as :func:`from_grouped` makes them, as they are stored, and the worth of one of its
    weights: the codes of a large matrix never lie in memory unpacked."""
    n, k = matrix.shape
    n_rows = max(_WEIGHTS // k, 1)
    blocks = [slice(first, first + n_rows) for first in range(0, n, n_rows)]
    bits = next(width for width in CODE_BITS if width >= kept_bits(matrix, offsets=offsets))
    packed = np.empty((n, row_bytes(k, bits)), np.uint8)

    def pack(rows: slice) -> _Numbers:
        weight = matrix.codes(rows)
        if weight.offset is not None and not offsets:
            weight = _on_finer_grid(weight, weight.offset)
        codes, zero = _without_signs(weight)
        packed[rows] = to_b128(codes, bits)
        return _Numbers(
            weight.scale, zero.astype(np.uint16), weight.offset, weight.scales, weight.offsets
        )

    parts = each_of(pack, blocks)
    zero = np.concatenate([each.zero for each in parts])
    group = k // zero.shape[1]
    scales = [each.scales for each in parts if each.scales is not None]
    if offsets and scales:
        minima = [each.offsets for each in parts if each.offsets is not None]
        step, levels = _two_levels(
            Products.joined(scales), Products.joined(minima) if minima else None
        )
        stored = StoredWeights(
            codes=packed, depth=k, bits=bits, group=group, zero=zero, levels=levels
        )
        return stored, step
    affine = [each.offset for each in parts if each.offset is not None]
    step, scale, offset = _in_steps(
        np.concatenate([each.scale for each in parts]), np.concatenate(affine) if affine else None
    )
    shift = 0 if offset is None else offset_shift(offset)
    stored = StoredWeights(
        codes=packed,
        depth=k,
        bits=bits,
        group=group,
        scale=scale.astype(np.uint8) if int(scale.max(initial=0)) < 1 << 8 else scale,
        zero=zero,
        offset=None if offset is None else (offset >> shift).astype(np.int16),
        offset_shift=shift,
    )
    return stored, step


def _two_levels(scales: Products, offsets: Products | None) -> tuple[float, TwoLevels]:
    """Scales, without their signs, and offsets in two levels, and the step that they count in.

    Multiples are the checkpoint's. A factor counts in what the largest has 65535 of; or, if that is
    exact for all, in a power of two that it has 32768 or more of: float16 factors within a factor
    of 32 of each other always are. So a scale is off by 2**-16 of the largest and a 63rd of that at
    most (multiples of six bits), an offset by 2**-14, since its factor has a bit for the sign and
    counts in a power of two of steps.
    """
    factor = np.abs(scales.factor.astype(np.float64))
    multiple = np.abs(scales.multiple).view(np.uint8)  # of -128 that is 128
    most, largest, top = int(multiple.max(initial=0)), 0.0, float(factor.max(initial=0))
    if offsets is not None:
        most = max(most, int(offsets.multiple.max(initial=0)))
    shift = max(most - 1, 0).bit_length()
    if offsets is not None:
        largest = float(np.abs(offsets.factor.astype(np.float64)).max(initial=0)) * (1 << shift)
    unit = 0.0
    if top:
        unit = _finest(top)
        units = factor / unit
        if (np.rint(units) != units).any():
            unit = top / _SCALE_MAX
    step = max(unit * (1 << shift), 4 * largest / OFFSET_MAX) or 1.0
    of_scales = np.minimum(np.rint(factor * ((1 << shift) / step)), _SCALE_MAX).astype(np.uint16)
    if offsets is None:
        return step, TwoLevels.of(of_scales, multiple, shift)
    doubled = offsets.factor.astype(np.float64) * (2 * (1 << shift) / step)
    of_offsets, left = _stored(doubled)
    minima = of_offsets, offsets.multiple.astype(np.uint8)
    return step, TwoLevels.of(of_scales, multiple, shift, minima, left)


def _without_signs(weight: Grouped) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Codes and zero points in half steps, as they are with the magnitudes of the scales."""
    levels = (1 << weight.bits) - 1
    zero = np.rint(2 * weight.zero).astype(np.int64)
    codes = weight.codes
    negative = weight.scale < 0
    if negative.any():
        # -s (q - z) = s ((levels - q) - (levels - z))
        codes = _mirrored(codes, negative * np.uint8(levels))
        zero = np.where(negative, 2 * levels - zero, zero)
    if zero.min(initial=0) < 0 or zero.max(initial=0) > 2 * levels:
        raise LutraError(
            f"zero points must be in 0..{levels}, not {zero.min() / 2}..{zero.max() / 2}: "
            "export the model again"
        )
    return codes, zero


def _mirrored(codes: NDArray[np.uint8], flip: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes ``[N, K]``, those of each group exclusive or its ``flip`` ``[N, groups]``."""
    group = codes.shape[1] // flip.shape[1]
    cell = next(n for n in (8, 4, 2, 1) if group % n == 0)  # bytes, which NumPy takes as one
    cells = np.ascontiguousarray(np.repeat(flip[..., None], cell, axis=2)).view(f"u{cell}")
    cells = np.repeat(cells[..., 0], group // cell, axis=1).view(np.uint8)
    return np.bitwise_xor(codes, cells, out=cells)


def _in_steps(
    scale: NDArray[np.float32], offset: NDArray[np.float32] | None
) -> tuple[float, NDArray[np.uint16], NDArray[np.int64] | None]:
    """A matrix's step, and in it the magnitudes of scales and twice the offsets, if there are
    any."""
    step = scale_step(scale)
    if offset is not None:
        largest = float(np.abs(offset.astype(np.float64)).max(initial=0))
        step = max(step if scale.any() else 0.0, 4 * largest / OFFSET_MAX) or 1.0
    whole = np.empty(scale.shape, np.uint16)

    def count(lots: tuple[NDArray[np.float32], NDArray[np.uint16]]) -> None:
        steps = np.abs(lots[0].astype(np.float64))
        steps /= step
        lots[1][...] = np.minimum(np.rint(steps, out=steps), _SCALE_MAX, out=steps)

    each_of(count, zip(_lots(scale), _lots(whole), strict=True))
    if offset is None:
        return step, whole, None
    stored, shift = _stored(2 * offset.astype(np.float64) / step)
    return step, whole, stored.astype(np.int64) << shift


def _stored(doubled: NDArray[np.float64]) -> tuple[NDArray[np.int16], int]:
    """Twice the offsets, in steps, as the numbers that are stored, and how far to shift those."""
    shift = offset_shift(np.rint(doubled).astype(np.int64))
    rounded = np.rint(doubled / (1 << shift))
    return np.clip(rounded, -_STORED_MAX, _STORED_MAX).astype(np.int16), shift


def _on_finer_grid(weight: Grouped, offset: NDArray[np.float32]) -> Grouped:
    """Offsets on a finer grid: codes of eight bits, of which a step of the file's is ``m``.

    ``step * (q - zero) + offset`` becomes ``step / m * (m * q + shift - zero')``: codes and steps
    are exact, the offset is the nearest multiple of half a fine step, with the ``m`` that suits
    each group best. With codes of 4 bits ``m`` is up to 17, and the offset off by ``step / 68`` at
    most where a group's weights are of both signs or about zero, as quantisers leave them. On
    trained weights that adds 0.016 % to the squared error that Q4_K has already (codes of six bits
    would add 1.2 %, of four, 29 %). A group far from zero is rounded to 255 steps of its largest
    magnitude.
    """
    levels, top = (1 << _FINE_BITS) - 1, (1 << weight.bits) - 1
    q, step = weight.codes.reshape(*weight.scale.shape, -1), weight.scale
    offset = (offset - step * weight.zero).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = -offset.astype(np.float64) / step
        error = np.full(step.shape, np.inf)
        multiple, zero = np.ones(step.shape), np.zeros(step.shape)
        for m in range(fine_steps(weight.bits), 0, -1):
            offered = np.rint(2 * m * ratio) / 2
            off = np.abs(offered / m - ratio)
            better = (off < error) & (offered >= top * m - levels) & (offered <= levels)
            for kept, new in ((error, off), (multiple, m), (zero, offered)):
                np.copyto(kept, new, where=better)
    shift = np.ceil(np.maximum(-zero, 0))
    zero += shift
    scale = (step / multiple).astype(np.float64)
    codes = q * multiple.astype(np.uint8)[..., None] + shift.astype(np.uint8)[..., None]
    far = np.isinf(error)
    if far.any():
        w = q[far] * step[far][:, None] + offset[far][:, None]
        peak = np.abs(w).max(axis=1)
        zero[far] = np.where(w.min(axis=1) < 0, levels, 0)
        scale[far] = peak / levels
        steps = w / np.where(peak > 0, peak / levels, 1)[:, None]
        codes[far] = np.clip(np.rint(steps) + zero[far][:, None], 0, levels).astype(np.uint8)
    return replace(
        weight,
        codes=codes.reshape(weight.codes.shape),
        scale=scale.astype(np.float32),
        zero=zero.astype(np.float32),
        offset=None,
        bits=_FINE_BITS,
        scales=None,
        offsets=None,
    )

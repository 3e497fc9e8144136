"""Weights of a matrix as they are stored, and as the CPU's and the GPU's kernels take them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.format import W_BITS
from lutra_golden.model.b128 import from_b128, row_bytes, to_b128
from lutra_golden.model.two_levels import SUPER, TwoLevels

__all__ = ["OFFSET_SHIFT_MAX", "StoredWeights", "TwoZeros", "offset_shift"]

OFFSET_SHIFT_MAX = 16
"""Most bits by which stored offsets are shifted."""

T = TypeVar("T", bound=np.generic)
_TERNARY_BITS = 2
_GROUPS = 1 << 16  # that are looked at at a time: few enough for a processor's cache
_OFFSET_BITS = 15  # of the magnitude of a stored offset
_FIVE, _SIX = 5, 6
_ZERO_MAX = (1 << 16) - 1


def offset_shift(offsets: NDArray[np.int64]) -> int:
    """Bits that offsets are stored without: as few as leave the largest 15 and a sign."""
    return max(int(np.abs(offsets).max(initial=0)).bit_length() - _OFFSET_BITS, 0)


class TwoZeros(NamedTuple):
    """Zero points of groups ``[N, G]`` that are one of two numbers, as those of symmetric types are
    whose scales have signs: a step of -s about z is one of s about the mirrored z.

    ``marks`` ``[N, ceil(G / 8)]`` has a bit for each group, the first in the lowest, which is set
    where the zero point is ``second``. Where all are ``first`` both are the same.
    """

    first: int
    second: int
    marks: NDArray[np.uint8]

    @classmethod
    def of(cls, zero: NDArray[np.uint16]) -> "TwoZeros | None":
        """These zero points; None if they have three values or more."""
        first, second = int(zero.min(initial=_ZERO_MAX)), int(zero.max(initial=0))
        if first >= second:
            return cls(second, second, np.zeros((len(zero), -(-zero.shape[1] // 8)), np.uint8))
        marked = zero == second
        if not (marked | (zero == first)).all():
            return None
        return cls(first, second, np.packbits(marked, axis=1, bitorder="little"))

    def zeros(self, n_groups: int) -> NDArray[np.uint16]:
        """Inverse of :meth:`of`; one number if it is the same for all groups."""
        shape = len(self.marks), n_groups
        if self.first == self.second:
            return np.broadcast_to(np.uint16(self.first), shape)
        marked = np.unpackbits(self.marks, axis=1, count=n_groups, bitorder="little")
        return np.array([self.first, self.second], np.uint16)[marked]


@dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """Codes ``[N, row_bytes(depth, bits)]`` in B128 (:mod:`.b128`), of ``depth`` weights a row.

    With ``group`` they are those of :class:`~lutra_golden.matmul.engine.GroupedWeights`, with
    ``scale`` (uint8, or uint16 where it has more than 8 bits) and ``zero`` (uint16), ``[N, depth /
    group]``. An ``offset`` of a group, int16, stands for ``offset << offset_shift``; None is 0.
    Without groups weights are ternary: codes 0, 1, 2 mean -1, 0, 1.

    With ``levels`` scales and offsets are in two levels, and ``scale`` and ``offset`` are None:
    :meth:`one_level` has them as numbers of their own.

    Codes of five bits are for memory alone: they run in six wherever a format has a name, and come
    back as codes of six.
    """

    codes: NDArray[np.uint8]
    depth: int
    bits: int
    group: int | None = None
    scale: NDArray[np.unsignedinteger] | None = None
    zero: NDArray[np.uint16] | None = None
    offset: NDArray[np.int16] | None = None
    offset_shift: int = 0
    levels: TwoLevels | None = None

    def __post_init__(self) -> None:
        n = len(self.codes)
        if self.codes.shape != (n, row_bytes(self.depth, self.bits)):
            raise ValueError(
                f"codes must be {[n, row_bytes(self.depth, self.bits)]}, "
                f"not {list(self.codes.shape)}"
            )
        if self.group is None:
            # both bits of a code set: 3
            threes = self.codes & (self.codes >> 1) & 0x55
            if self.bits != _TERNARY_BITS or threes.any():
                raise ValueError("codes without groups must be 0, 1 and 2 in two bits")
            return
        if (self.scale is None) == (self.levels is None) or self.zero is None:
            raise ValueError("zero and either scale or levels must be there with groups")
        if self.group < 1 or self.depth % self.group:
            raise ValueError(f"depth must be a multiple of group ({self.group}), not {self.depth}")
        shift = self.offset_shift if self.levels is None else self.levels.offset_shift
        if not 0 <= shift <= OFFSET_SHIFT_MAX:
            raise ValueError(f"offset_shift must be in 0..{OFFSET_SHIFT_MAX}, not {shift}")
        sides = ("scale", self.scale), ("zero", self.zero), ("offset", self.offset)
        for name, value in sides:
            if value is not None and value.shape != (n, self.depth // self.group):
                raise ValueError(
                    f"{name} must be {[n, self.depth // self.group]}, not {list(value.shape)}"
                )
        if self.levels is not None:
            self._check_levels(self.levels, self.group)
        maximum = 2 * ((1 << self.bits) - 1)
        if self.zero.max(initial=0) > maximum:
            raise ValueError(f"zero must be in 0..{maximum}, not up to {self.zero.max()}")

    def _check_levels(self, levels: TwoLevels, group: int) -> None:
        n, k = len(self.codes), self.depth
        if k % SUPER or levels.groups * group != SUPER:
            raise ValueError(
                f"two levels must be of a depth that is a multiple of {SUPER} and of "
                f"{SUPER // group} groups of {group}, not of {k} and {levels.groups}"
            )
        if levels.records.shape[:2] != (n, k // SUPER):
            raise ValueError(
                f"two levels must be of {[n, k // SUPER]}, not {list(levels.records.shape[:2])}"
            )
        if self.offset is not None or self.offset_shift:
            raise ValueError("offset and offset_shift must be those of the levels")

    @property
    def n_rows(self) -> int:
        """Rows of the matrix."""
        return len(self.codes)

    @property
    def has_offsets(self) -> bool:
        """True if groups have offsets."""
        return self.offset is not None or (self.levels is not None and self.levels.offsets)

    def one_level(self) -> "StoredWeights":
        """The same weights with a scale, and an offset if there are any, for each group."""
        if self.levels is None:
            return self
        return replace(
            self,
            scale=self.levels.scale,
            offset=self.levels.offset,
            offset_shift=self.levels.offset_shift,
            levels=None,
        )

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays; two zero points are a bit for each group, one is none."""
        levels = None if self.levels is None else self.levels.records
        sides = [each for each in (self.scale, self.offset, levels) if each is not None]
        if self.zero is not None:
            two = TwoZeros.of(self.zero)
            sides += [self.zero] if two is None else [two.marks] if two.first < two.second else []
        return self.codes.nbytes + sum(each.nbytes for each in sides)

    @cached_property
    def scale_bits(self) -> int:
        """Bits of the largest scale."""
        scale = self.one_level().scale
        return 1 if scale is None else int(scale.max(initial=0)).bit_length()

    def rows(self, select: slice | NDArray[np.int64]) -> "StoredWeights":
        """Some of the rows."""

        def some(values: NDArray[T]) -> NDArray[T]:
            return values[select]

        return StoredWeights(
            codes=some(self.codes),
            depth=self.depth,
            bits=self.bits,
            group=self.group,
            scale=None if self.scale is None else some(self.scale),
            zero=None if self.zero is None else some(self.zero),
            offset=None if self.offset is None else some(self.offset),
            offset_shift=self.offset_shift,
            levels=None if self.levels is None else self.levels.rows(select),
        )

    @property
    def peak_bound(self) -> int:
        """Upper bound on the sum of absolute doubled weights in any row."""
        return self._bounds[0]

    @property
    def weight_bound(self) -> int:
        """Upper bound on the magnitude of a doubled weight."""
        return self._bounds[1]

    @cached_property
    def _bounds(self) -> tuple[int, int]:
        if self.group is None:
            return 2 * self.depth, 2
        peak = weight = 0
        n_rows = max(_GROUPS * self.group // max(self.depth, 1), 1)
        for first in range(0, self.n_rows, n_rows):
            furthest = self._furthest(slice(first, first + n_rows))
            peak = max(peak, int(furthest.sum(axis=1).max(initial=0)))
            weight = max(weight, int(furthest.max(initial=0)))
        return self.group * peak, weight

    def _furthest(self, rows: slice) -> NDArray[np.int64]:
        """Largest magnitude that a doubled weight of each group of some rows can have."""
        some = self.rows(rows).one_level()
        assert some.scale is not None and some.zero is not None
        top = 2 * ((1 << self.bits) - 1)
        scale, zero = some.scale.astype(np.int64), some.zero.astype(np.int64)
        if some.offset is None:
            return scale * np.maximum(zero, top - zero)
        offset = some.offset.astype(np.int64) << some.offset_shift
        return np.maximum(np.abs(offset - scale * zero), np.abs(offset + scale * (top - zero)))

    @classmethod
    def of(
        cls,
        weights: GroupedWeights,
        *,
        grouped: bool = False,
        levels: TwoLevels | None = None,
    ) -> "StoredWeights":
        """These weights, packed: ternary ones without groups, codes of six bits in five if they
        fit; ``grouped`` keeps groups and bits whatever the codes are.

        Scales and offsets are stored as ``levels``, which are theirs, if there are any.
        """
        codes, bits = weights.codes.astype(np.uint8, copy=False), weights.bits
        depth = codes.shape[1]
        if bits == _SIX and not grouped and _fits(weights, _FIVE):
            bits = _FIVE
        if weights.ternary and not grouped:
            trits = (codes + 1 - (weights.zero // 2).astype(np.uint8)).astype(np.uint8)
            return cls(codes=to_b128(trits, _TERNARY_BITS), depth=depth, bits=_TERNARY_BITS)
        offset, shift = None, 0
        if weights.offset is not None and levels is None:
            shift = offset_shift(weights.offset)
            offset = (weights.offset >> shift).astype(np.int16)
            if (offset.astype(np.int64) << shift != weights.offset).any():
                raise ValueError(f"offsets must be multiples of {1 << shift} to fit 16 bits")
        scale = None
        if levels is None:
            scale = weights.scale.astype(np.uint16 if weights.scale_bits > 8 else np.uint8)
        return cls(
            codes=to_b128(codes, bits),
            depth=depth,
            bits=bits,
            group=weights.group,
            scale=scale,
            zero=weights.zero.astype(np.uint16),
            offset=offset,
            offset_shift=shift,
            levels=levels,
        )

    def unpack(self) -> GroupedWeights:
        """Inverse of :meth:`of`."""
        codes, of = from_b128(self.codes, self.bits, self.depth), self.one_level()
        if self.group is None or of.scale is None or of.zero is None:
            return GroupedWeights.from_integers(codes.astype(np.int8) - 1)
        return GroupedWeights(
            codes=codes,
            scale=of.scale.astype(np.int64),
            zero=of.zero.astype(np.int64),
            bits=next(bits for bits in W_BITS if bits >= self.bits),
            group=self.group,
            offset=None if of.offset is None else of.offset.astype(np.int64) << of.offset_shift,
        )


def _fits(weights: GroupedWeights, bits: int) -> bool:
    """True if codes and zero points are also those of codes of ``bits`` bits."""
    top = (1 << bits) - 1
    return int(weights.codes.max(initial=0)) <= top and int(weights.zero.max(initial=0)) <= 2 * top

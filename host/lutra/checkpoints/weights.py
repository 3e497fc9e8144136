"""Weights of a matrix: as checkpoints hold them, and as integers that an accelerator takes.

All are ``[N, K]``, rows of outputs. Arrays may be views of a file that is mapped into memory; what
a method computes covers the rows that are asked for, so a matrix never has to exist whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.two_levels import TwoLevels

__all__ = ["Dense", "Encoded", "Grouped", "Integers", "Products", "Rows", "Ternary", "Weight"]

Float32 = NDArray[np.float32]
Rows = slice | NDArray[np.int64]
"""Rows of a matrix: those of a slice, or each one by its number."""


@dataclass(frozen=True)
class Dense:
    """Floating point of any width, bfloat16 included."""

    values: NDArray[np.generic]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and depth."""
        n, k = self.values.shape
        return n, k

    def dequantized(self, rows: slice = slice(None)) -> Float32:
        """The weights as float32; a view of them if they are. Not to be written to."""
        return self.values[rows].astype(np.float32, copy=False)

    def take(self, rows: Rows) -> NDArray[np.generic]:
        """Rows as they are stored. Not to be written to."""
        return self.values[rows]


@dataclass(frozen=True)
class Encoded:
    """Codes in a file's blocks, ``[N, K]``, rows of which ``decode`` turns into floating point and
    ``codes`` into groups of ``bits`` bits, with offsets if ``affine``, each time that they are
    asked for: an embedding in float32 would be larger than all layers."""

    shape: tuple[int, int]
    decode: Callable[[Rows], Float32]
    codes: Callable[[Rows], "Grouped"]
    bits: int
    affine: bool

    @property
    def values(self) -> Float32:
        """All weights, decoded anew."""
        return self.decode(slice(None))

    def dequantized(self, rows: slice = slice(None)) -> Float32:
        """The weights as float32."""
        return self.decode(rows)

    def take(self, rows: Rows) -> Float32:
        """Rows, decoded."""
        return self.decode(rows)


@dataclass(frozen=True)
class Ternary:
    """-1, 0 and 1, int8, and the scale that multiplies them."""

    codes: NDArray[np.int8]
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and depth."""
        n, k = self.codes.shape
        return n, k

    def dequantized(self, rows: slice = slice(None)) -> Float32:
        """The weights as float32."""
        return self.codes[rows].astype(np.float32) * np.float32(self.scale)


@dataclass(frozen=True)
class Products:
    """Numbers of groups as K-quants have them: a factor of some groups that follow one another, and
    a small integer of each, which multiplies it.

    ``factor`` is ``[N, S]``, float32, ``multiple`` ``[N, G]``, int8.
    """

    factor: Float32
    multiple: NDArray[np.int8]

    @classmethod
    def empty(cls, n: int, n_super: int, groups: int) -> "Products":
        """Room for those of ``n`` rows."""
        return cls(np.empty((n, n_super), np.float32), np.empty((n, groups), np.int8))

    @classmethod
    def joined(cls, parts: Sequence["Products"]) -> "Products":
        """The rows of several ones in order."""
        return cls(
            np.concatenate([each.factor for each in parts]),
            np.concatenate([each.multiple for each in parts]),
        )

    def put(self, rows: slice, found: "Products") -> None:
        """Set those of some rows."""
        self.factor[rows], self.multiple[rows] = found.factor, found.multiple

    def values(self) -> Float32:
        """The numbers, ``[N, G]``, exactly where the factors have 16 bits or less."""
        n, n_super = self.factor.shape
        products = self.factor[..., None] * self.multiple.reshape(n, n_super, -1)
        return products.reshape(n, -1)

    def rows(self, select: Rows) -> "Products":
        """Those of some rows."""
        return Products(self.factor[select], self.multiple[select])

    def scaled(self, by: np.float32 | Float32) -> "Products":
        """All multiplied by a number, or by one for each row, ``[N, 1]``."""
        return Products(self.factor * by, self.multiple)


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """Codes of ``bits`` bits, uint8: a weight is ``scale * (code - zero) + offset``.

    ``scale``, ``zero`` and ``offset`` are ``[N, K / group]``, float32; an ``offset`` of None is 0.
    Where the checkpoint has them as products, ``scales`` and ``offsets`` say of what.
    If the checkpoint orders its groups by another index than the depth's, ``order`` ``[K]`` is the
    column that each column of ``codes`` stands for: the matrix is multiplied by ``x[order]``.
    """

    codes: NDArray[np.uint8]
    scale: Float32
    zero: Float32
    bits: int
    group: int
    order: NDArray[np.int64] | None = None
    offset: Float32 | None = None
    scales: Products | None = None
    offsets: Products | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and depth."""
        n, k = self.codes.shape
        return n, k

    def rows(self, select: Rows) -> "Grouped":
        """Some of the rows."""
        return replace(
            self,
            codes=self.codes[select],
            scale=self.scale[select],
            zero=self.zero[select],
            offset=None if self.offset is None else self.offset[select],
            scales=None if self.scales is None else self.scales.rows(select),
            offsets=None if self.offsets is None else self.offsets.rows(select),
        )

    def scaled(self, by: np.float32 | Float32) -> "Grouped":
        """All weights multiplied by a number, or by one for each row, ``[N, 1]``."""
        return replace(
            self,
            scale=self.scale * by,
            offset=None if self.offset is None else self.offset * by,
            scales=None if self.scales is None else self.scales.scaled(by),
            offsets=None if self.offsets is None else self.offsets.scaled(by),
        )

    def row_peaks(self) -> Float32:
        """Largest magnitude of each row: of the ends of its groups."""
        groups = self.codes.reshape(*self.scale.shape, -1)
        peaks = np.zeros(len(self.codes), np.float32)
        for codes in (groups.min(axis=2), groups.max(axis=2)):
            values = codes.astype(np.float32)
            values -= self.zero
            values *= self.scale
            if self.offset is not None:
                values += self.offset
            np.maximum(peaks, np.abs(values).max(axis=1), out=peaks)
        return peaks

    def dequantized(self, rows: slice = slice(None)) -> Float32:
        """The weights as float32, in the depth's own order."""
        codes = self.codes[rows].astype(np.float32)
        groups = codes.reshape(len(codes), -1, self.group)
        groups -= self.zero[rows, :, None]
        groups *= self.scale[rows, :, None]
        if self.offset is not None:
            groups += self.offset[rows, :, None]
        values = groups.reshape(codes.shape)
        if self.order is None:
            return values
        ordered = np.empty_like(values)
        ordered[:, self.order] = values
        return ordered


@dataclass(frozen=True)
class Integers:
    """Integers that run, and their scale: the matrix is ``scale * doubled() / 2``. ``levels`` are
    the two levels that scales and offsets of groups are stored in, if they are."""

    weights: GroupedWeights
    scale: float
    levels: TwoLevels | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and depth."""
        n, k = self.weights.codes.shape
        return n, k

    def dequantized(self, rows: slice = slice(None)) -> Float32:
        """The weights as float32."""
        w = self.weights
        codes = w.codes[rows].astype(np.float32)
        groups = codes.reshape(len(codes), -1, w.group)
        groups -= (w.zero[rows, :, None] / 2).astype(np.float32)
        groups *= (w.scale[rows, :, None] * self.scale).astype(np.float32)
        if w.offset is not None:
            groups += (w.offset[rows, :, None] * (self.scale / 2)).astype(np.float32)
        return groups.reshape(codes.shape)


Weight = Dense | Ternary | Grouped | Integers
"""A matrix of a checkpoint, or, once it is quantised, its integers."""

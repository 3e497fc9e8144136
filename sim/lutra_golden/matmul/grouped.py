"""Weight words of the engines that take grouped weights: digits, then a scale, and a zero point or
an offset."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int
from lutra_golden.matmul.engine import LANES, EngineParams, GroupedWeights

__all__ = ["DigitParams", "GroupedParams", "bits_of", "bits_signed", "words_of"]


def bits_of(values: Int, width: int) -> NDArray[np.uint8]:
    """Bits of integers ``[..., n]``, least significant first: ``[..., n * width]``."""
    bits = (values[..., None] >> np.arange(width, dtype=values.dtype)) & 1
    return bits.reshape(*values.shape[:-1], -1).astype(np.uint8)


def words_of(bits: NDArray[np.uint8], width: int) -> Int:
    """Inverse of :func:`bits_of`, unsigned: ``[..., n]``."""
    values = bits.reshape(*bits.shape[:-1], -1, width).astype(np.int64)
    return values @ (1 << np.arange(width, dtype=np.int64))


def bits_signed(values: Int) -> int:
    """Bits that hold all of ``values`` with their sign."""
    return max(int(values.max(initial=0)), ~int(values.min(initial=0))).bit_length() + 1


@dataclass(frozen=True, kw_only=True)
class GroupedParams(EngineParams):
    """An engine whose words hold digits of unsigned codes, and each row's scale and zero point.

    In a word, field f of row n is at bit ``field_width * (n * n_fields + f)``; behind the digits
    row n has its scale (unsigned, ``scale_width`` bits) and its zero point (signed, 10 bits) at bit
    ``digit_bits + side_width * n``. All words of a block repeat them. With an ``offset_width`` the
    place of the zero point has the group's offset less scale times zero point, which multiplies the
    sum of the activations (signed, ``offset_width`` bits).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radix**self.max_planes > 1 << 8:
            raise ValueError(f"max_planes must give codes of at most 8 bits, not {self.max_planes}")

    @property
    def radix(self) -> int:
        return 1 << self.w_width

    # -- what an engine makes of codes

    @abstractmethod
    def fields(self, digits: Int) -> Int:
        """Fields of a word's digits: ``[..., step_depth]`` digits to ``[..., n_fields]``."""

    @abstractmethod
    def digits(self, fields: Int) -> Int:
        """Inverse of :meth:`fields`."""

    @property
    @abstractmethod
    def field_width(self) -> int:
        """Bits of a field."""

    def stored_zero(self, zero: Int, planes: int) -> Int:
        """Field of a weight word for a zero point."""
        return zero

    def offsets(self, scale: Int, zero: Int, offset: Int | None, planes: int) -> Int:
        """What a group adds to its row for each of its activations, ``[N, groups]``: the fields of
        a weight word with an ``offset_width``."""
        sums = -scale * self.stored_zero(zero, planes)
        return sums if offset is None else sums + offset

    @property
    def digit_bits(self) -> int:
        n_fields = self.fields(np.zeros(self.step_depth, np.int64)).shape[-1]
        return self.step_rows * n_fields * self.field_width

    @abstractmethod
    def step_sums(self, a: Int, fields: Int) -> Int:
        """Row sums ``[M, n]`` of one step, the way the datapath makes them.

        ``a`` : activations ``[M, step_depth]``; ``fields`` : ``[n, n_fields]`` of a word.
        """

    # -- packing

    def planes(self, weights: GroupedWeights) -> int:
        if weights.offset is not None and not self.offset_width:
            raise ValueError("the engine takes zero points, not offsets of groups")
        planes = -(-weights.bits // self.w_width)
        if planes > self.max_planes:
            raise ValueError(
                f"weights of {weights.bits} bits need {planes} planes of {self.w_width} bits, "
                f"the engine has {self.max_planes}"
            )
        return planes

    def pack(self, weights: GroupedWeights, planes: int) -> NDArray[np.uint8]:
        n, k = weights.codes.shape
        if k % self.depth_tile:
            raise ValueError(f"depth must be a multiple of depth_tile ({self.depth_tile}), not {k}")
        if weights.group % self.depth_tile:
            raise ValueError(
                f"group must be a multiple of depth_tile ({self.depth_tile}), not {weights.group}"
            )
        if planes * self.w_width < weights.bits:
            raise ValueError(
                f"planes must hold {weights.bits} bits, not {planes} of {self.w_width} bits"
            )
        if weights.scale_bits > self.scale_width:
            raise ValueError(
                f"scale must be in 0..{(1 << self.scale_width) - 1} for an engine with a "
                f"scale_width of {self.scale_width}, not up to {weights.scale.max()}: it takes a "
                f"scale_width of {weights.scale_bits}"
            )
        blocks, depth_tiles = -(-n // self.step_rows), k // self.depth_tile
        rows = blocks * self.step_rows
        # rows that fill up a block weigh nothing: a zero scale, and a zero offset
        codes = np.zeros((rows, k), np.int64)
        codes[:n] = weights.codes
        scale, second = (
            np.zeros((rows, depth_tiles), np.int64),
            np.zeros((rows, depth_tiles), np.int64),
        )
        per_group = weights.group // self.depth_tile
        scale[:n] = weights.scale.repeat(per_group, axis=1)
        second[:n] = self._second(weights, planes).repeat(per_group, axis=1)

        shifts = self.w_width * np.arange(planes - 1, -1, -1)
        digits = (codes[..., None] >> shifts) & (self.radix - 1)  # [N, K, P]
        digits = digits.reshape(
            blocks, self.step_rows, depth_tiles, self.steps, self.step_depth, planes
        )
        fields = self.fields(digits.transpose(2, 0, 5, 3, 1, 4))  # [T, B, P, S, n, fields]
        head = bits_of(fields.reshape(-1, self.step_rows * fields.shape[-1]), self.field_width)
        second &= (1 << (self.side_width - self.scale_width)) - 1
        side = np.stack([scale, second], axis=-1)  # [N, T, 2]
        side = side.reshape(blocks, self.step_rows, depth_tiles, 2).transpose(2, 0, 1, 3)
        packed = side[..., 0] | side[..., 1] << self.scale_width  # [T, B, n]
        tail = bits_of(packed, self.side_width).reshape(depth_tiles * blocks, -1)
        tail = tail.repeat(planes * self.steps, axis=0)
        return np.packbits(np.concatenate([head, tail], axis=1), axis=1, bitorder="little")

    def _second(self, weights: GroupedWeights, planes: int) -> Int:
        """Zero points as they are stored, or offsets, ``[N, groups]``."""
        if not self.offset_width:
            return self.stored_zero(weights.zero, planes)
        offsets = self.offsets(weights.scale, weights.zero, weights.offset, planes)
        needed = bits_signed(offsets)
        if needed > self.offset_width:
            raise ValueError(
                f"offsets of groups, less scale times zero point, must fit {self.offset_width} "
                f"bits, not {offsets.min()}..{offsets.max()}: they take an offset_width of {needed}"
            )
        return offsets

    def _unpack(
        self, words: NDArray[np.uint8], depth_tiles: int, row_blocks: int, planes: int
    ) -> tuple[Int, Int, Int]:
        """Digits ``[T, B, P, S, n, step_depth]``, scales, and stored zero points or offsets ``[T,
        B, n]``."""
        blocks = row_blocks // self.block_rows
        bits = np.unpackbits(words, axis=1, bitorder="little")[:, : self.word_bits]
        fields = words_of(bits[:, : self.digit_bits], self.field_width)
        shape = (depth_tiles, blocks, planes, self.steps)
        digits = self.digits(fields.reshape(*shape, self.step_rows, -1))
        side = words_of(bits[:, self.digit_bits :], self.side_width)
        side = side.reshape(*shape, self.step_rows)[:, :, -1, -1]
        scale, second = side & ((1 << self.scale_width) - 1), side >> self.scale_width
        width = self.side_width - self.scale_width
        return digits, scale, second - ((second >> (width - 1)) << width)

    def decode(
        self, words: NDArray[np.uint8], depth_tiles: int, row_blocks: int, planes: int
    ) -> Int:
        digits, scale, second = self._unpack(words, depth_tiles, row_blocks, planes)
        weights = self.radix ** np.arange(planes - 1, -1, -1)
        codes = np.einsum("tbpsnk,p->bntsk", digits, weights)
        middle = self.stored_zero(np.zeros((), np.int64), planes)
        zero, offset = (0, second) if self.offset_width else (second, 0)

        def spread(values: Int) -> Int:
            return np.broadcast_to(values, scale.shape).transpose(1, 2, 0)[..., None, None]

        doubled = spread(scale) * (2 * codes + middle - spread(np.asarray(zero)))
        doubled = doubled + spread(np.asarray(offset))
        return doubled.reshape(row_blocks * LANES, depth_tiles * self.depth_tile)

    def matmul(
        self,
        a: Int,
        words: NDArray[np.uint8],
        row_blocks: int,
        planes: int,
        shifts: Int | None = None,
    ) -> Int:
        acc = np.zeros((len(a), row_blocks * LANES), np.int64)
        double = 1 if self.symmetric else 2
        for tile, part, rows, digits, scale, second in self.passes(a, words, row_blocks, planes):
            total = np.zeros((len(a), self.step_rows), np.int64)
            for plane in self.fields(digits):
                total *= self.radix
                for step, fields in enumerate(plane):
                    x = part[:, step * self.step_depth : (step + 1) * self.step_depth]
                    total += self.step_sums(x, fields)
            a_sum = part.sum(axis=1)[:, None]  # shared by all rows
            if self.offset_width:
                result = scale * double * total + second * a_sum
            else:
                result = scale * (double * total - second * a_sum)
            acc[:, rows] += result if shifts is None else result << shifts[:, tile, None]
        return acc

    def passes(
        self, a: Int, words: NDArray[np.uint8], row_blocks: int, planes: int
    ) -> Iterator[tuple[int, Int, slice, Int, Int, Int]]:
        """Walk of :meth:`matmul`: for every depth tile and block of rows ``(tile, a, rows, digits,
        scale, second)``: activations ``[M, depth_tile]``, digits ``[P, S, n, step_depth]``, side
        ``[n]``, whose second part is a stored zero point or an offset."""
        depth_tiles = a.shape[1] // self.depth_tile
        digits, scale, second = self._unpack(words, depth_tiles, row_blocks, planes)
        for tile in range(depth_tiles):
            part = a[:, tile * self.depth_tile : (tile + 1) * self.depth_tile]
            for block in range(digits.shape[1]):
                rows = slice(block * self.step_rows, (block + 1) * self.step_rows)
                side = scale[tile, block], second[tile, block]
                yield tile, part, rows, digits[tile, block], *side


class DigitParams(GroupedParams):
    """A grouped engine whose fields are the digits themselves, and whose sum is of the codes."""

    @property
    def field_width(self) -> int:
        return self.w_width

    def fields(self, digits: Int) -> Int:
        return digits

    def digits(self, fields: Int) -> Int:
        return fields

    @abstractmethod
    def product(self, a: Int, digit: Int) -> Int:
        """``a * digit`` the way a PE makes it; the shapes broadcast."""

    def step_sums(self, a: Int, fields: Int) -> Int:
        return self.product(a[:, None], fields).sum(axis=-1)

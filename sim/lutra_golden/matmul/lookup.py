"""Table lookups of ternary and binary digits for many tokens at once: parameters and exact model.

A table holds the signed sums of a few activations of one token: of three for ternary digits, 27
sums, or of five for binary ones, 32. A code of five bits selects one. Weights of -1, 0 and 1 are
one ternary digit each; others are bits of two's complement, a plane for each, and the plane of the
signs is looked up in tables of the negated activations.

Source: TeLLMe, arXiv 2510.15926, section on table-lookup matmul; plain tables of binary digits as
in LUT Tensor Core (ISCA'25), section 3.1, of five weights and without a sign of their own.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int
from lutra_golden.core.fabric import Fabric
from lutra_golden.matmul.engine import LANES, SCALE_WIDTH, EngineParams, GroupedWeights
from lutra_golden.matmul.grouped import bits_of, words_of

__all__ = [
    "BITS",
    "BIT_GROUP",
    "CODE_WIDTH",
    "TRIT_GROUP",
    "LookupParams",
    "entries",
    "is_binary",
    "n_planes",
    "walk",
]

TRIT_GROUP = 3
"""Ternary digits that a lookup takes."""
BIT_GROUP = 5
"""Binary digits that a lookup takes."""
CODE_WIDTH = 5
"""Bits of a code, whatever its digits are."""
BITS = 0x80
"""Added to the number of planes of a command whose digits are binary."""


def is_binary(planes: int) -> bool:
    """True if ``planes``, as a command has it, counts planes of bits."""
    return bool(planes & BITS)


def n_planes(planes: int) -> int:
    """The number of planes that ``planes`` stands for."""
    return planes & ~BITS


def entries(planes: int) -> NDArray[np.int64]:
    """Factors of a table's activations in each entry, ``[27, 3]`` or ``[32, 5]``.

    Digit ``d`` of a code is ``code // base**d % base``; the ternary digits 0, 1 and 2 are the
    weights 0, 1 and -1. Entry 0 is zero.
    """
    base, group = (2, BIT_GROUP) if is_binary(planes) else (3, TRIT_GROUP)
    digits = np.arange(base**group)[:, None] // base ** np.arange(group) % base
    return np.where(digits == 2, -1, digits)


def walk(planes: int) -> list[tuple[int, int, int]]:
    """The order in which a table is written: ``(entry, activation, sign)``.

    Entry 0 comes first, with no activation (sign 0); every other entry is the one before it plus
    ``sign`` times one activation. Of ternary digits three entries come twice, on the way from zero
    to where a reflected Gray code of all of them begins.
    """
    signs = [tuple(row) for row in entries(planes).tolist()]
    group = len(signs[0])
    if is_binary(planes):
        path = _gray((0, 1), group)
    else:
        path = [(-1,) * n + (0,) * (group - n) for n in range(group)] + _gray((-1, 0, 1), group)
    steps = [(0, 0, 0)]
    for before, after in pairwise(path):
        (activation,) = (j for j in range(group) if before[j] != after[j])
        steps.append((signs.index(after), activation, after[activation] - before[activation]))
    return steps


def _gray(digits: tuple[int, ...], n: int) -> list[tuple[int, ...]]:
    """All tuples of ``n`` digits, each of which differs from the one before it by one in one."""
    if n == 0:
        return [()]
    rest = _gray(digits, n - 1)
    return [
        (digit, *code)
        for index, digit in enumerate(digits)
        for code in (rest[::-1] if index % 2 else rest)
    ]


@dataclass(frozen=True, kw_only=True)
class LookupParams(EngineParams):
    """Shape of the lookup engine: ``step_tokens`` lanes, each with ``step_depth / 3`` tables of one
    token, which ``step_rows`` rows look up in every cycle.

    ``depth_tile``, which is ``step_depth``, is the depth of a depth tile for ternary digits; for
    binary ones it is 5/3 of it. ``acc_width`` bits hold a sum over the whole depth, exactly, up to
    :meth:`max_depth`. Weights are integers without scales or zero points. A command's planes are 1
    for weights of -1, 0 and 1, and :data:`BITS` and the number of bits for others. ``fabric`` is
    what the datapath is made of.
    """

    kind = "lookup"
    grouped = False
    not_sizes = (*EngineParams.not_sizes, "fabric")

    step_tokens: int = 8
    step_rows: int = 16
    step_depth: int = 24
    depth_tile: int = 24
    w_width: int = 1
    acc_width: int = 24
    sum_width: int = 24
    act_tiles: int = 32
    max_planes: int = 8
    fabric: Fabric = Fabric.GENERIC

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fabric not in tuple(Fabric):
            raise ValueError(f"fabric must be {' or '.join(Fabric)}, not {self.fabric!r}")
        if self.n_tables * TRIT_GROUP != self.step_depth or self.n_tables not in (8, 16, 32):
            raise ValueError(
                "step_depth of the lookup engine must be 24, 48 or 96 (three activations of 8, 16 "
                f"or 32 tables), not {self.step_depth}"
            )
        for name, needed in (
            ("depth_tile", self.step_depth),
            ("a_width", 8),
            ("w_width", 1),
            ("scale_width", SCALE_WIDTH),
            ("sum_width", self.acc_width),
        ):
            value = getattr(self, name)
            if value != needed:
                raise ValueError(f"{name} of the lookup engine must be {needed}, not {value}")
        if self.max_planes > 8:
            raise ValueError(f"max_planes must be at most 8, not {self.max_planes}")
        if self.block_rows % 2:
            raise ValueError(
                f"step_rows of the lookup engine must be a multiple of {2 * LANES} (pairs of "
                f"blocks), not {self.step_rows}"
            )

    @property
    def n_tables(self) -> int:
        """Tables of a lane."""
        return self.step_depth // TRIT_GROUP

    @property
    def radix(self) -> int:
        return 2

    @property
    def digit_bits(self) -> int:
        return self.step_rows * self.n_tables * CODE_WIDTH

    @property
    def prepare_cycles(self) -> int:
        return max(len(walk(planes)) for planes in (1, BITS))

    @property
    def datapath_latency(self) -> int:
        """A register for the codes and one for the words, then adders for two tables each."""
        return self.n_tables // 2 + 2

    @property
    def entry_bias(self) -> int:
        """Bias of the entries of a table, so that none is negative."""
        return 1 << self.a_width + 2

    @property
    def entry_width(self) -> int:
        """Width of a table's entry: the sum of five activations, biased."""
        return self.a_width + 3

    @property
    def most_planes(self) -> int:
        return BITS | self.max_planes

    def integers(self, planes: int) -> tuple[int, int]:
        """Least and largest weight of so many digits."""
        if not is_binary(planes):
            return -1, 1
        half = 1 << n_planes(planes) - 1
        return -half, half - 1

    def tile_depth(self, planes: int) -> int:
        return self.n_tables * (BIT_GROUP if is_binary(planes) else TRIT_GROUP)

    def max_depth(self, planes: int) -> int:
        """Depth up to which no sum leaves the accumulators, whatever the values are."""
        largest = -self.integers(planes)[0]
        return ((1 << (self.acc_width - 1)) - 1) // (largest << (self.a_width - 1))

    @property
    def depth_max(self) -> int:
        largest = self.tile_depth(BITS)
        return -(-super().depth_max // largest) * largest

    def pass_words(self, row_blocks: int, planes: int) -> int:
        return super().n_words(1, row_blocks, 1)

    def n_words(self, depth_tiles: int, row_blocks: int, planes: int) -> int:
        return super().n_words(depth_tiles, row_blocks, n_planes(planes))

    def planes(self, weights: GroupedWeights) -> int:
        doubled = weights.doubled()
        if (doubled & 1).any():
            raise ValueError("weights must be integers for the lookup engine, not half steps")
        low, high = int(doubled.min(initial=0)) // 2, int(doubled.max(initial=0)) // 2
        if low >= -1 and high <= 1:
            return 1
        bits = max(high.bit_length(), (~low).bit_length()) + 1
        if bits > self.max_planes:
            raise ValueError(
                f"weights must be integers of {self.max_planes} bits for the lookup engine, not "
                f"{low}..{high}: it has no group scales"
            )
        return BITS | bits

    def pack(self, weights: GroupedWeights, planes: int) -> NDArray[np.uint8]:
        """The weight stream, ``[n_words, word_bits / 8]`` bytes.

        Order: plane from the most significant digit down, depth tile, block of ``step_rows`` rows.
        In a word the code of (row n, table t) is at bit ``5 * (n * n_tables + t)``; digit j of
        table t of a depth tile of depth d at k belongs to weight ``k * d + j * n_tables + t``. N
        and K are padded with zero.
        """
        w = weights.doubled() // 2
        (n, k), depth = w.shape, self.tile_depth(planes)
        tiles, blocks = -(-k // depth), -(-n // self.step_rows)
        self._check(w, planes)
        padded = np.zeros((blocks * self.step_rows, tiles * depth), np.int16)
        padded[:n, :k] = w
        base, group = (2, BIT_GROUP) if is_binary(planes) else (3, TRIT_GROUP)
        powers = (base ** np.arange(group)).astype(np.uint8)
        shape = (blocks, self.step_rows, tiles, group, self.n_tables)
        words = list[NDArray[np.uint8]]()
        for plane in reversed(range(n_planes(planes))):
            digits = padded >> plane & 1 if is_binary(planes) else padded % 3
            codes = np.einsum("brkgt,g->kbrt", digits.astype(np.uint8).reshape(shape), powers)
            bits = bits_of(codes.reshape(-1, self.step_rows * self.n_tables), CODE_WIDTH)
            words.append(np.packbits(bits, axis=1, bitorder="little"))
        return np.concatenate(words)

    def decode(
        self, words: NDArray[np.uint8], depth_tiles: int, row_blocks: int, planes: int
    ) -> Int:
        codes = self._codes(words, depth_tiles, planes)  # [P, T, B, n, n_tables]
        found = entries(planes)[codes]
        digits = found.transpose(0, 2, 3, 1, 5, 4).reshape(
            len(codes), row_blocks * LANES, depth_tiles * self.tile_depth(planes)
        )
        return np.tensordot(_place_values(planes), digits, axes=1)

    def _check(self, w: Int, planes: int) -> None:
        """Refuse integers that these digits do not hold."""
        low, high = self.integers(planes)
        found = int(w.min(initial=0)), int(w.max(initial=0))
        if found[0] < low or found[1] > high:
            raise ValueError(
                f"weights must be in {low}..{high} for these digits, not {found[0]}..{found[1]}"
            )

    def _codes(self, words: NDArray[np.uint8], depth_tiles: int, planes: int) -> Int:
        """Codes ``[planes, depth_tiles, blocks, step_rows, n_tables]`` of the words."""
        bits = np.unpackbits(words, axis=1, bitorder="little")[:, : self.word_bits]
        codes = words_of(bits, CODE_WIDTH)
        most = len(entries(planes)) - 1
        if codes.size and codes.max() > most:
            raise ValueError(f"codes must be at most {most}, not {codes.max()}")
        shape = (n_planes(planes), depth_tiles, -1, self.step_rows, self.n_tables)
        return codes.reshape(shape)

    def matmul(
        self,
        a: Int,
        words: NDArray[np.uint8],
        row_blocks: int,
        planes: int,
        shifts: Int | None = None,
    ) -> Int:
        assert shifts is None  # its parameters refuse groups of activations
        m, k = a.shape
        depth = self.tile_depth(planes)
        tiles = -(-k // depth)
        padded = np.zeros((m, tiles * depth), np.int64)
        padded[:, :k] = a
        signs, n = entries(planes), n_planes(planes)
        codes = self._codes(words, tiles, planes)
        acc = np.zeros((m, codes.shape[2], self.step_rows), np.int64)
        for plane, plane_codes in enumerate(codes):
            negated = is_binary(planes) and plane == 0
            for tile, tile_codes in enumerate(plane_codes):
                if plane and not tile:
                    acc *= 2
                activations = padded[:, tile * depth : (tile + 1) * depth]
                groups = activations.reshape(m, signs.shape[1], self.n_tables)
                tables = np.einsum("mgt,eg->mte", -groups if negated else groups, signs)
                tables += self.entry_bias
                for block, block_codes in enumerate(tile_codes):
                    found = tables[:, np.arange(self.n_tables), block_codes]  # [M, n, n_tables]
                    acc[:, block] += found.sum(axis=2) - self.n_tables * self.entry_bias
        assert n == len(codes)
        return acc.reshape(m, row_blocks * LANES)


def _place_values(planes: int) -> Int:
    """Place value of a digit of each plane, the first plane's first."""
    n = n_planes(planes)
    if not is_binary(planes):
        return np.ones(n, np.int64)
    values = 1 << np.arange(n)[::-1]
    values[0] = -values[0]
    return values

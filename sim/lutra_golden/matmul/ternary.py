"""Ternary table-lookup matrix product: parameters, packing and bit-exact model.

Source: TeLLMe, arXiv 2510.15926, section on table-lookup matmul.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int
from lutra_golden.matmul.engine import (
    LANES,
    SCALE_WIDTH,
    EngineParams,
    GroupedWeights,
    adder_tree_latency,
)
from lutra_golden.matmul.grouped import bits_of, words_of
from lutra_golden.matmul.table import (
    ENTRIES,
    GROUP,
    absolute_signs,
    build_table,
    decode_codes,
    encode_trits,
    relative_signs,
    sum_lookups,
)

__all__ = [
    "TernaryParams",
    "decode_words",
    "from_trit_planes",
    "lookup_matmul",
    "pack_words",
    "to_trit_planes",
]


@dataclass(frozen=True, kw_only=True)
class TernaryParams(EngineParams):
    """Shape of the ternary engine: ``step_depth / 3`` tables, all of a depth tile looked up at
    once.

    ``acc_width`` bits hold a sum over the whole depth, exactly, up to :meth:`max_depth`. Weights
    are integers without scales or zero points.
    """

    kind = "ternary"
    grouped = False

    step_depth: int = 72
    depth_tile: int = 72
    w_width: int = 2
    acc_width: int = 24
    sum_width: int = 24
    act_tiles: int = 11
    max_planes: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_depth % GROUP:
            raise ValueError(
                f"step_depth must be a multiple of {GROUP} (activations of a table), not "
                f"{self.step_depth}"
            )
        if self.scale_width != SCALE_WIDTH:
            raise ValueError(
                f"scale_width of the ternary engine, which has no scales, must be {SCALE_WIDTH}, "
                f"not {self.scale_width}"
            )
        if self.depth_tile != self.step_depth:
            raise ValueError(
                f"depth_tile of the ternary engine must be step_depth ({self.step_depth}), not "
                f"{self.depth_tile}"
            )

    @property
    def radix(self) -> int:
        return 3

    @property
    def n_tables(self) -> int:
        """Tables of three activations that a row looks up in one step."""
        return self.step_depth // GROUP

    @property
    def n_entries(self) -> int:
        """Entries of a mirrored table, zero included."""
        return len(ENTRIES)

    @property
    def code_width(self) -> int:
        """Bits of a code: entry index and sign."""
        return 5

    @property
    def entry_width(self) -> int:
        """Width of a table entry: the sum of three activations."""
        return self.a_width + 2

    @property
    def prepare_cycles(self) -> int:
        return self.n_entries + 1

    @property
    def datapath_latency(self) -> int:
        return adder_tree_latency(self.n_tables)

    @property
    def digit_bits(self) -> int:
        return self.step_rows * self.n_tables * self.code_width

    def max_depth(self, planes: int) -> int:
        """Depth up to which no sum leaves the accumulators, whatever the values are."""
        largest = (3**planes - 1) // 2 << (self.a_width - 1)
        return ((1 << (self.acc_width - 1)) - 1) // largest

    def integers(self, planes: int) -> tuple[int, int]:
        """Least and largest weight of so many digits."""
        limit = (3**planes - 1) // 2
        return -limit, limit

    def planes(self, weights: GroupedWeights) -> int:
        doubled = weights.doubled()
        if (doubled & 1).any():
            raise ValueError("weights must be integers for the ternary engine, not half steps")
        peak = int(np.abs(doubled).max(initial=2)) // 2
        planes = next(n for n in range(1, 41) if (3**n - 1) // 2 >= peak)
        if planes > self.max_planes:
            raise ValueError(
                f"weights must be within +-{(3**self.max_planes - 1) // 2} for the ternary engine, "
                f"not {peak}: it has no group scales"
            )
        return planes

    def pack(self, weights: GroupedWeights, planes: int) -> NDArray[np.uint8]:
        return pack_words(self, weights.doubled() // 2, planes)

    def decode(
        self, words: NDArray[np.uint8], depth_tiles: int, row_blocks: int, planes: int
    ) -> Int:
        return decode_words(self, words, depth_tiles, row_blocks, planes)

    def matmul(
        self,
        a: Int,
        words: NDArray[np.uint8],
        row_blocks: int,
        planes: int,
        shifts: Int | None = None,
    ) -> Int:
        assert shifts is None  # its parameters refuse groups of activations
        return lookup_matmul(self, a, words, planes)


def to_trit_planes(w: Int, planes: int) -> Int:
    """Split integers into balanced ternary digits, ``[planes, ...]``, least significant first."""
    limit = (3**planes - 1) // 2
    if np.abs(w).max(initial=0) > limit:
        raise ValueError(f"weights must be within +-{limit} for {planes} trits")
    digits: list[Int] = []
    rest = w.astype(np.int64)
    for _ in range(planes):
        digit = (rest + 1) % 3 - 1
        digits.append(digit)
        rest = (rest - digit) // 3
    return np.stack(digits)


def from_trit_planes(digits: Int) -> Int:
    """Inverse of :func:`to_trit_planes`."""
    value = np.zeros(digits.shape[1:], np.int64)
    for digit in digits[::-1]:
        value = 3 * value + digit
    return value


def pack_words(params: TernaryParams, w: Int, planes: int) -> NDArray[np.uint8]:
    """Pack ``w`` ``[N, K]`` into the engine's weight stream, ``[n_words, word_bits / 8]`` bytes.

    Word order: depth tile, then block of ``step_rows`` rows, then plane from the most significant
    digit down. In a word the code of (row n, table t) is at bit ``5 * (n * n_tables + t)``, its
    sign relative (see :func:`relative_signs`); table t of depth tile k holds weights
    ``k * depth_tile + 3 * t + 0..2``. N and K are padded with zero.
    """
    n, k = w.shape
    depth_tiles, blocks = -(-k // params.depth_tile), -(-n // params.step_rows)
    padded = np.zeros((blocks * params.step_rows, depth_tiles * params.depth_tile), np.int64)
    padded[:n, :k] = w
    digits = to_trit_planes(padded, planes)[::-1]  # [P, N, K]
    codes = encode_trits(digits.reshape(planes, -1, depth_tiles, params.n_tables, GROUP))
    codes = relative_signs(codes)
    rows = codes.reshape(planes, blocks, params.step_rows, depth_tiles, params.n_tables)
    words = rows.transpose(3, 1, 0, 2, 4).reshape(-1, params.step_rows * params.n_tables)
    bits = bits_of(words, params.code_width)
    return np.packbits(bits, axis=1, bitorder="little")


def decode_words(
    params: TernaryParams, words: NDArray[np.uint8], depth_tiles: int, row_blocks: int, planes: int
) -> Int:
    """Inverse of :func:`pack_words`: ``[8 * row_blocks, depth_tiles * depth_tile]`` integers."""
    codes = _codes(params, words)
    blocks = row_blocks // params.block_rows
    trits = decode_codes(
        codes.reshape(depth_tiles, blocks, planes, params.step_rows, params.n_tables)
    )
    digits = trits.transpose(2, 1, 3, 0, 4, 5).reshape(  # of [T, B, P, n, n_tables, 3]
        planes, row_blocks * LANES, depth_tiles * params.depth_tile
    )
    return from_trit_planes(digits[::-1])


def _codes(params: TernaryParams, words: NDArray[np.uint8]) -> Int:
    """Codes ``[n_words, step_rows, n_tables]`` of the words."""
    bits = np.unpackbits(words, axis=1, bitorder="little")[:, : params.word_bits]
    codes = words_of(bits, params.code_width)
    return absolute_signs(codes.reshape(len(words), params.step_rows, params.n_tables))


def lookup_matmul(params: TernaryParams, a: Int, words: NDArray[np.uint8], planes: int) -> Int:
    """Compute ``a @ w.T`` the way the engine does: tables, lookups, signs, plane by plane.

    ``a`` is ``[M, K]`` of ``signed(a_width)``, ``words`` from :func:`pack_words`; the result is
    ``[M, N]``. Slow and literal; it equals the plain integer product.
    """
    m, k = a.shape
    depth_tiles = -(-k // params.depth_tile)
    blocks = len(words) // (depth_tiles * planes)
    padded = np.zeros((m, depth_tiles * params.depth_tile), np.int64)
    padded[:, :k] = a
    codes = _codes(params, words)
    acc = np.zeros((m, blocks * params.step_rows), np.int64)
    word = 0
    for k_index in range(depth_tiles):
        groups = padded[:, k_index * params.depth_tile : (k_index + 1) * params.depth_tile]
        tables = build_table(groups.reshape(m, params.n_tables, GROUP))  # [M, n_tables, 14]
        for block in range(blocks):
            partial = np.zeros((m, params.step_rows), np.int64)
            for _ in range(planes):
                partial = 3 * partial + sum_lookups(tables, codes[word])
                word += 1
            acc[:, block * params.step_rows : (block + 1) * params.step_rows] += partial
    return acc

"""Ternary table-lookup matrix product: parameters, packing and bit-exact model.

Source: TeLLMe, arXiv 2510.15926, section on table-lookup matmul.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.sim.golden.arith.fixed import Int
from lutra.sim.golden.matmul.table import (
    ENTRIES,
    GROUP,
    build_table,
    decode_codes,
    encode_trits,
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
class TernaryParams:
    """Shape of the ternary engine.

    ``lanes`` output rows are looked up per cycle, each in ``n_tables`` tables of three
    activations; ``acc_width`` bits hold a partial sum over the whole depth, exactly, up to
    :meth:`max_depth`.
    """

    lanes: int = 8
    n_tables: int = 24
    a_width: int = 8
    acc_width: int = 24
    m_tile: int = 8
    acc_blocks: int = 192
    weight_buffer_words: int = 512
    act_tiles: int = 11
    max_planes: int = 5

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, not {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.acc_blocks % 2:
            raise ValueError(
                f"acc_blocks must be even (they are read in pairs), not {self.acc_blocks}"
            )
        if self.weight_buffer_words & (self.weight_buffer_words - 1):
            raise ValueError(
                f"weight_buffer_words must be a power of two, not {self.weight_buffer_words}"
            )

    @property
    def k_tile(self) -> int:
        """Activations that one lookup of all tables covers."""
        return GROUP * self.n_tables

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
    def word_bits(self) -> int:
        """Weight bits consumed per cycle."""
        return self.lanes * self.n_tables * self.code_width

    @property
    def macs_per_cycle(self) -> int:
        """Ternary multiply-accumulates per cycle."""
        return self.lanes * self.k_tile

    def max_depth(self, planes: int) -> int:
        """Depth up to which no sum leaves the accumulators, whatever the values are."""
        largest = (3**planes - 1) // 2 << (self.a_width - 1)
        return ((1 << (self.acc_width - 1)) - 1) // largest


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

    Word order: depth tile, then block of ``lanes`` rows, then plane from the most significant
    digit down. In a word the code of (lane n, table t) is at bit ``5 * (n * n_tables + t)``; table
    t of depth tile k holds weights ``k * k_tile + 3 * t + 0..2``. K is padded with zero.
    """
    n, k = w.shape
    if n % params.lanes:
        raise ValueError(f"rows must be a multiple of {params.lanes}, not {n}")
    k_tiles = -(-k // params.k_tile)
    padded = np.zeros((n, k_tiles * params.k_tile), np.int64)
    padded[:, :k] = w
    digits = to_trit_planes(padded, planes)[::-1]  # [P, N, K]
    codes = encode_trits(digits.reshape(planes, n, k_tiles, params.n_tables, GROUP))
    blocks = codes.reshape(planes, n // params.lanes, params.lanes, k_tiles, params.n_tables)
    words = blocks.transpose(3, 1, 0, 2, 4).reshape(-1, params.lanes * params.n_tables)
    bits = (words[:, :, None] >> np.arange(params.code_width)) & 1
    return np.packbits(bits.reshape(len(words), -1).astype(np.uint8), axis=1, bitorder="little")


def decode_words(
    params: TernaryParams, words: NDArray[np.uint8], k_tiles: int, row_blocks: int, planes: int
) -> Int:
    """Inverse of :func:`pack_words`: ``[row_blocks * lanes, k_tiles * k_tile]`` integers."""
    bits = np.unpackbits(words, axis=1, bitorder="little")[:, : params.word_bits]
    codes = bits.reshape(len(words), -1, params.code_width).astype(np.int64) @ (
        1 << np.arange(params.code_width)
    )
    shape = (k_tiles, row_blocks, planes, params.lanes, params.n_tables)
    trits = decode_codes(codes.reshape(shape))  # [T, B, P, L, n_tables, 3]
    digits = trits.transpose(2, 1, 3, 0, 4, 5).reshape(
        planes, row_blocks * params.lanes, k_tiles * params.k_tile
    )
    return from_trit_planes(digits[::-1])


def lookup_matmul(params: TernaryParams, a: Int, words: NDArray[np.uint8], planes: int) -> Int:
    """Compute ``a @ w.T`` the way the engine does: tables, lookups, signs, plane by plane.

    ``a`` is ``[M, K]`` of ``signed(a_width)``, ``words`` from :func:`pack_words`; the result is
    ``[M, N]``. Slow and literal; it equals the plain integer product.
    """
    m, k = a.shape
    k_tiles = -(-k // params.k_tile)
    row_blocks = len(words) // (k_tiles * planes)
    padded = np.zeros((m, k_tiles * params.k_tile), np.int64)
    padded[:, :k] = a
    codes = np.unpackbits(words, axis=1, bitorder="little")[:, : params.word_bits]
    codes = codes.reshape(len(words), -1, params.code_width).astype(np.int64) @ (
        1 << np.arange(params.code_width)
    )
    acc = np.zeros((m, row_blocks * params.lanes), np.int64)
    word = 0
    for k_index in range(k_tiles):
        groups = padded[:, k_index * params.k_tile : (k_index + 1) * params.k_tile]
        tables = build_table(groups.reshape(m, params.n_tables, GROUP))  # [M, n_tables, 14]
        for block in range(row_blocks):
            partial = np.zeros((m, params.lanes), np.int64)
            for _ in range(planes):
                code = codes[word].reshape(params.lanes, params.n_tables)
                partial = 3 * partial + sum_lookups(tables, code)
                word += 1
            acc[:, block * params.lanes : (block + 1) * params.lanes] += partial
    return acc

"""Tiles of keys, scores and values: what decode and prefill attention have in common.

Model: :mod:`lutra_golden.attention.attention`. A query is a pair of a token and one of the
heads that share a key and value head. Matrix instructions want 16 rows or more, of which few are
queries in decode: everything beside the products is computed for queries only.

Weights of 16 bits meet the values as two signed bytes: rows of high bytes, rows of low bytes and
one of ones, whose product, the sum of values, makes up for the signs. It follows the others where
there are four times as many rows as queries; where there are twice as many, it takes the place of
the last query, of which there is none.
"""

from typing import NamedTuple

import triton.language as tl

from lutra_golden.arith.exp2 import EXP2
from lutra_golden.attention.attention import AttentionParams
from lutra_kernels.arith.exp2 import exp2_neg
from lutra_kernels.arith.fixed import round_shift_right, saturate
from lutra_kernels.arith.scale import scale_mul, scale_unpack
from lutra_kernels.cache import EXPONENT_LEAST
from lutra_kernels.jit import jit

__all__ = [
    "TileShape",
    "add_values",
    "dot_rows",
    "exponents",
    "load_queries",
    "rows_of_keys",
    "score_tile",
    "tile_shape",
    "value_sums",
    "value_tile",
    "visible_tile",
    "weight_tile",
]

_BYTES_OFFSET = tl.constexpr(128 * 256 + 128)  # what a weight loses when both bytes are signed
_SIGNS = tl.constexpr(128 * 256 + 128)  # the bits that make them so
_FRAC = tl.constexpr(EXP2.d_frac)
_WIDTH = tl.constexpr(AttentionParams().score_width)


@jit
def rows_of_keys(table_ptr, m, tile, n_pages, g, H_KV: tl.constexpr, PAGE: tl.constexpr,
                 BLOCK_N: tl.constexpr):  # fmt: skip
    """First row of a tile's keys among all pages' rows, in the pages of token ``m``."""
    first = tile * BLOCK_N
    page = tl.load(table_ptr + m * n_pages + first // PAGE).to(tl.int64)
    return (page * H_KV + g) * PAGE + first % PAGE


@jit
def visible_tile(position, keys, window):
    """Which of ``keys`` the query of each row sees, ``[ROWS, BLOCK_N]``."""
    keys, position = keys[None, :], position[:, None]
    return (keys <= position) & (keys > position - window)


@jit
def _nibbles(packed, low):
    """The signed low or high nibbles of int8."""
    return tl.where(low, packed << 4, packed) >> 4


@jit
def load_queries(
    q_ptr, q_scale_ptr, first, ok,
    D: tl.constexpr, H: tl.constexpr, G: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Queries int8 ``[ROWS, D]``, zeros beyond those that are ``ok``, and their scales.

    Query ``i`` is head ``first + i % G`` of the first token, or of one of those behind it.
    """
    rows = tl.arange(0, ROWS)
    index = first + rows // G * H + rows % G
    # what is not there must not be read
    count = tl.sum(ok.to(tl.int32), 0)
    offs = index[:, None] * D + tl.arange(0, D)[None, :]
    q = tl.load(q_ptr + offs, mask=(rows < count)[:, None], other=0)
    queries = tl.arange(0, QUERIES)
    index = first + queries // G * H + queries % G
    q_m, q_e = scale_unpack(tl.load(q_scale_ptr + index, mask=ok, other=0))
    return q, q_m, q_e


@jit
def score_tile(
    q, q_m, q_e, k_ptr, k_scale_ptr, row, inside,
    D: tl.constexpr, KV_BITS: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scores int32 ``[QUERIES, BLOCK_N]`` of ``q`` ``[ROWS, D]``, of the keys from ``row`` on.

    Also where they have left their range, or would have to be shifted to the left.
    """
    offs_n, offs_d = tl.arange(0, BLOCK_N), tl.arange(0, D)
    rows = row + offs_n
    if KV_BITS == 8:
        offs = rows[None, :] * D + offs_d[:, None]
        k = tl.load(k_ptr + offs, mask=inside[None, :], other=0)  # [D, BLOCK_N]
    else:
        offs = rows[None, :] * (D // 2) + (offs_d % (D // 2))[:, None]
        k = tl.load(k_ptr + offs, mask=inside[None, :], other=0)
        k = _nibbles(k, offs_d[:, None] < D // 2)
    dot = tl.dot(q, k, out_dtype=tl.int32)  # [ROWS, BLOCK_N]
    if ROWS > QUERIES:
        # rows that are no queries are zeros
        dot = tl.sum(tl.reshape(dot, (ROWS // QUERIES, QUERIES, BLOCK_N)), 0)
    k_m, k_e = scale_unpack(tl.load(k_scale_ptr + rows, mask=inside, other=0))
    c_m, c_e = scale_mul(q_m[:, None], q_e[:, None], k_m[None, :], k_e[None, :])
    shift = tl.minimum(tl.maximum(-(c_e + _FRAC), 0), 63)
    exact = round_shift_right(dot.to(tl.int64) * c_m, shift)
    score = saturate(exact, _WIDTH)
    return score.to(tl.int32), (exact != score) | ((c_e + _FRAC > 0) & (exact != 0))


@jit
def exponents(v_m, v_e, visible):
    """Largest exponent among the values that each row sees, int32 ``[ROWS]``."""
    counts = visible & (v_m != 0)[None, :]
    return tl.max(tl.where(counts, v_e[None, :], EXPONENT_LEAST), 1)


@jit
def value_tile(
    v_ptr, row, slot, inside,
    D: tl.constexpr, PAGE: tl.constexpr, KV_BITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Values int8 ``[BLOCK_N, D]`` from ``row`` on, which is ``slot`` in its page."""
    offs_n, offs_d = tl.arange(0, BLOCK_N), tl.arange(0, D)
    if KV_BITS == 4:
        offs = (row + offs_n)[:, None] * (D // 2) + (offs_d % (D // 2))[None, :]
    else:
        offs = (row + offs_n)[:, None] * D + offs_d[None, :]
    v = tl.load(v_ptr + offs, mask=inside[:, None], other=0)
    if KV_BITS == 4:
        v = _nibbles(v, offs_d[None, :] < D // 2)
    return v


@jit
def weight_tile(score, score_max, exponent, v_m, v_e, visible, tables_ptr):
    """Powers in Q15, and weights of 16 bits with the values' scales folded in, both int32
    ``[QUERIES, BLOCK_N]``."""
    d = tl.where(visible, score_max[:, None] - score, 0)
    p = tl.where(visible, exp2_neg(d, tables_ptr), 0)
    # below 2**31, so that from a shift of 32 on nothing is left
    shift = 15 + tl.minimum(tl.maximum(exponent[:, None] - v_e[None, :], 0), 17)
    w = (((p * v_m[None, :]) >> (shift - 1)) + 1) >> 1
    return p, w


@jit
def add_values(acc, w, v, QUERIES: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Add weights ``[QUERIES, BLOCK_N]`` times values to sums of bytes int32 ``[ROWS, D]``."""
    parts: tl.constexpr = ROWS // QUERIES
    rows = tl.arange(0, ROWS)[:, None]
    signed = tl.broadcast_to((w ^ _SIGNS)[None, :, :], (parts, QUERIES, BLOCK_N))
    signed = tl.reshape(signed, (ROWS, BLOCK_N))
    byte = tl.where(rows < QUERIES, signed >> 8, signed).to(tl.int8)
    if parts == 2:
        byte = tl.where(rows == QUERIES - 1, 1, byte).to(tl.int8)
    else:
        byte = tl.where(rows < 2 * QUERIES, byte, (rows == 2 * QUERIES).to(tl.int8)).to(tl.int8)
    return tl.dot(byte, v, acc, out_dtype=tl.int32)


@jit
def value_sums(acc, D: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr):
    """Weighted sums int64 ``[QUERIES, D]`` of what :func:`add_values` has added up."""
    parts: tl.constexpr = ROWS // QUERIES
    ONES: tl.constexpr = QUERIES - 1 if parts == 2 else 2 * QUERIES
    rows = tl.arange(0, ROWS)[:, None]
    ones = tl.sum(tl.where(rows == ONES, acc, 0), 0).to(tl.int64)
    factor = tl.where(rows < QUERIES, 256, tl.where(rows < 2 * QUERIES, 1, 0))
    wide = tl.reshape(acc.to(tl.int64) * factor, (parts, QUERIES, D))
    return tl.sum(wide, 0) + _BYTES_OFFSET * ones[None, :]


def dot_rows(queries: int) -> tuple[int, int]:
    """Queries that fit a tile, a power of two, and the rows of bytes that it needs."""
    room = 1 << (queries - 1).bit_length()
    if room <= 8:
        return room, max(16, 4 * room)
    # one place is for the ones
    room = 1 << queries.bit_length()
    return room, 2 * room


class TileShape(NamedTuple):
    """Keys of a step, warps, and stages of the loads that are under way."""

    block_n: int
    num_warps: int
    num_stages: int


def tile_shape(queries: int, cache_bits: int, page: int, max_keys: int) -> TileShape:
    """Tile that fits the registers for ``queries``; at most ``max_keys`` keys and one page."""
    if queries > 8:
        return TileShape(min(max_keys // 2, page), 8, 3 if max_keys > 64 else 2)
    if max_keys <= 64:
        # few programs, which are to be done soon
        return TileShape(min(64, page), 8, 2)
    block_n = min(128 if queries <= 4 and cache_bits == 8 else 64, page, max_keys)
    return TileShape(block_n, 4, 3 if cache_bits == 8 else 2)

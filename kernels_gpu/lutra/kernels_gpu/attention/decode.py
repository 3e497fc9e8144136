"""Attention of few tokens over long contexts, split over the keys.

Every program takes an equal share of all tiles of keys, whatever sequence and head they belong to
(a stream-K schedule). Two launches: scores with their maxima and the values' largest exponents,
then weights, denominators and weighted sums. What programs have in common is joined by atomic
maxima and additions of integers, so their order cannot matter; the division is left to the launch
that normalises attention's output. Model: :mod:`lutra.sim.golden.attention.attention`.
"""

import triton.language as tl

from lutra.kernels_gpu.arith.scale import scale_unpack
from lutra.kernels_gpu.arrays import Array
from lutra.kernels_gpu.attention.cache import KvCache, Queries
from lutra.kernels_gpu.attention.tiles import (
    BYTES_OFFSET,
    EXPONENT_LEAST,
    SCORE_LEAST,
    exponents,
    rows_of_keys,
    score_tile,
    value_tile,
    visible_tile,
    weight_tile,
)
from lutra.kernels_gpu.jit import jit, jit_general
from lutra.kernels_gpu.layout import cdiv

__all__ = ["NO_WINDOW", "POSITIONS_MAX", "scores_kernel", "split_attention", "sums_kernel"]

NO_WINDOW = 1 << 30
"""A window that is never left."""
POSITIONS_MAX = 1 << 17
"""Positions whose weighted bytes a 32-bit sum holds."""


@jit
def _share(
    position_ptr, M, window, prefix,
    TOKENS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_N: tl.constexpr, SHARED: tl.constexpr,
    H_KV: tl.constexpr,
):  # fmt: skip
    """First tiles, counts of tiles and running ends of all blocks of tokens, ``[BLOCKS]`` each."""
    token = tl.arange(0, BLOCKS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
    position = tl.load(position_ptr + token, mask=token < M, other=0)
    least = tl.min(tl.where(token < M, position, 1 << 30), 1)
    most = tl.max(tl.where(token < M, position, -1), 1)
    first, last = tl.maximum(least - window + 1, 0), most + 1
    if SHARED:
        last = tl.minimum(last, prefix)
    else:
        first = tl.maximum(first, prefix)
    first_tile = first // BLOCK_N
    count = tl.where(last > first, (last + BLOCK_N - 1) // BLOCK_N - first_tile, 0)
    return first_tile, count, tl.cumsum(count * H_KV, 0)


@jit
def _segment(at, stop, first_tile, count, ends, BLOCKS: tl.constexpr, H_KV: tl.constexpr):
    """The block of tokens and the head that tile ``at`` of all belongs to; tiles from there on."""
    block = tl.sum((ends <= at).to(tl.int32), 0)
    here = tl.arange(0, BLOCKS) == block
    n_tiles = tl.sum(tl.where(here, count, 0), 0)
    within = at - tl.sum(tl.where(here, ends - count * H_KV, 0), 0)
    tile = within % n_tiles
    first = tl.sum(tl.where(here, first_tile, 0), 0) + tile
    return block, within // n_tiles, first, first + tl.minimum(n_tiles - tile, stop - at)


@jit
def _visible(position, keys, window, prefix, SHARED: tl.constexpr):
    """Which of ``keys`` each row sees in this launch, ``[ROWS, BLOCK_N]``."""
    mine = keys < prefix if SHARED else keys >= prefix
    return visible_tile(position, keys, window) & mine[None, :]


@jit_general("M", "n_pages", "window", "prefix")
def scores_kernel(
    q_ptr, q_scale_ptr, k_ptr, k_scale_ptr, v_scale_ptr, position_ptr, table_ptr,
    score_ptr, score_max_ptr, exponent_ptr,
    M, n_pages, window, prefix,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, CONTEXT: tl.constexpr,
    PAGE: tl.constexpr, KV_BITS: tl.constexpr, SHARED: tl.constexpr,
    TOKENS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scores int32 ``[M, H, CONTEXT]``, and maxima and exponents ``[M, H]``, begun beforehand.

    ``q``, its scales and the cache as :mod:`lutra.kernels_gpu.attention.cache` says; ``position``
    int32 ``[M]``, ``table`` int32 ``[M, n_pages]``. ``TOKENS`` tokens make a block. With
    ``SHARED``, all tokens attend to the first ``prefix`` positions of one sequence, else each to
    the rest of its own.
    """
    G: tl.constexpr = H // H_KV
    first_tile, count, ends = _share(
        position_ptr, M, window, prefix, TOKENS, BLOCKS, BLOCK_N, SHARED, H_KV
    )
    total = tl.max(ends, 0)
    share = tl.cdiv(total, tl.num_programs(0))
    at = tl.program_id(0) * share
    stop = tl.minimum(at + share, total)
    rows, offs_n, offs_d = tl.arange(0, ROWS), tl.arange(0, BLOCK_N), tl.arange(0, D)
    while at < stop:
        block, g, tile_first, tile_end = _segment(at, stop, first_tile, count, ends, BLOCKS, H_KV)
        token = block * TOKENS + rows // G
        ok = (rows < TOKENS * G) & (token < M)
        index = token.to(tl.int64) * H + g * G + rows % G
        q = tl.load(q_ptr + index[:, None] * D + offs_d[None, :], mask=ok[:, None], other=0)
        q_m, q_e = scale_unpack(tl.load(q_scale_ptr + index, mask=ok, other=0))
        position = tl.load(position_ptr + token, mask=ok, other=-1)
        highest = tl.full([ROWS], SCORE_LEAST, tl.int32)
        exponent = tl.full([ROWS], EXPONENT_LEAST, tl.int32)
        for tile in range(tile_first, tile_end):
            keys = tile * BLOCK_N + offs_n
            visible = _visible(position, keys, window, prefix, SHARED)
            inside = tl.max(visible.to(tl.int32), 0) > 0
            row = rows_of_keys(table_ptr, block * TOKENS, tile, n_pages, g, H_KV, PAGE, BLOCK_N)
            score = score_tile(q, q_m, q_e, k_ptr, k_scale_ptr, row, inside, D, KV_BITS, BLOCK_N)
            v_m, v_e = scale_unpack(tl.load(v_scale_ptr + row + offs_n, mask=inside, other=0))
            highest = tl.maximum(highest, tl.max(tl.where(visible, score, SCORE_LEAST), 1))
            exponent = tl.maximum(exponent, exponents(v_m, v_e, visible))
            tl.store(score_ptr + index[:, None] * CONTEXT + keys[None, :], score, mask=visible)
        tl.atomic_max(score_max_ptr + index, highest, mask=ok, sem="relaxed")
        tl.atomic_max(exponent_ptr + index, exponent, mask=ok, sem="relaxed")
        at += tile_end - tile_first


@jit_general("M", "n_pages", "window", "prefix")
def sums_kernel(
    score_ptr, score_max_ptr, exponent_ptr, v_ptr, v_scale_ptr, position_ptr, table_ptr, tables_ptr,
    den_ptr, sums_ptr,
    M, n_pages, window, prefix,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, CONTEXT: tl.constexpr,
    PAGE: tl.constexpr, KV_BITS: tl.constexpr, V_TRANSPOSED: tl.constexpr, SHARED: tl.constexpr,
    TOKENS: tl.constexpr, BLOCKS: tl.constexpr, HALF: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Denominators int64 ``[M, H]`` and weighted sums int64 ``[M, H, D]``, begun beforehand.

    Of what :func:`scores_kernel` found. Weights of 16 bits meet the values as two signed bytes:
    rows below ``HALF`` are the high bytes, the others the low ones; row ``HALF - 1``, which no
    query has, is all ones and gives the sum of values that makes up for the signs.
    """
    G: tl.constexpr = H // H_KV
    first_tile, count, ends = _share(
        position_ptr, M, window, prefix, TOKENS, BLOCKS, BLOCK_N, SHARED, H_KV
    )
    total = tl.max(ends, 0)
    share = tl.cdiv(total, tl.num_programs(0))
    at = tl.program_id(0) * share
    stop = tl.minimum(at + share, total)
    rows, offs_n, offs_d = tl.arange(0, 2 * HALF), tl.arange(0, BLOCK_N), tl.arange(0, D)
    half_rows = tl.arange(0, HALF)
    query, high = rows % HALF, rows < HALF
    while at < stop:
        block, g, tile_first, tile_end = _segment(at, stop, first_tile, count, ends, BLOCKS, H_KV)
        token = block * TOKENS + query // G
        ok = (query < TOKENS * G) & (token < M)
        index = token.to(tl.int64) * H + g * G + query % G
        position = tl.load(position_ptr + token, mask=ok, other=-1)
        highest = tl.load(score_max_ptr + index, mask=ok, other=0)
        exponent = tl.load(exponent_ptr + index, mask=ok, other=0)
        den = tl.zeros([2 * HALF], tl.int64)
        acc = tl.zeros([2 * HALF, D], tl.int32)
        for tile in range(tile_first, tile_end):
            keys = tile * BLOCK_N + offs_n
            visible = _visible(position, keys, window, prefix, SHARED)
            inside = tl.max(visible.to(tl.int32), 0) > 0
            row = rows_of_keys(table_ptr, block * TOKENS, tile, n_pages, g, H_KV, PAGE, BLOCK_N)
            offs = index[:, None] * CONTEXT + keys[None, :]
            score = tl.load(score_ptr + offs, mask=visible, other=0)
            v_m, v_e = scale_unpack(tl.load(v_scale_ptr + row + offs_n, mask=inside, other=0))
            p, w = weight_tile(score, highest, exponent, v_m, v_e, visible, tables_ptr)
            den += tl.sum(p, 1)
            byte = tl.where(high[:, None], w >> 8, w & 255) - 128
            byte = tl.where((query == HALF - 1)[:, None], high[:, None].to(tl.int32), byte)
            slot = tile * BLOCK_N % PAGE
            v = value_tile(v_ptr, row, slot, inside, D, PAGE, KV_BITS, V_TRANSPOSED, BLOCK_N)
            acc = tl.dot(byte.to(tl.int8), v, acc, out_dtype=tl.int32)
        ones = tl.sum(tl.where(rows[:, None] == HALF - 1, acc, 0), 0).to(tl.int64)
        wide = acc.to(tl.int64) * tl.where(high, 256, 1)[:, None]
        sums = tl.sum(tl.reshape(wide, (2, HALF, D)), 0) + BYTES_OFFSET * ones[None, :]
        tl.atomic_add(den_ptr + index, den, mask=ok & high, sem="relaxed")
        token = block * TOKENS + half_rows // G
        ok = (half_rows < TOKENS * G) & (token < M)
        index = token.to(tl.int64) * H + g * G + half_rows % G
        offs = index[:, None] * D + offs_d[None, :]
        tl.atomic_add(sums_ptr + offs, sums, mask=ok[:, None], sem="relaxed")
        at += tile_end - tile_first


def split_attention(
    m: int,
    queries: Queries,
    cache: KvCache,
    positions: Array,
    pages: Array,
    tables: Array,
    *,
    n_programs: int,
    window: int = 0,
    prefix: int = 0,
    block_n: int = 64,
) -> None:
    """Scores, maxima, denominators and weighted sums of ``m`` tokens, each of its own sequence.

    ``n_programs`` is how many run at once. The first ``prefix`` positions are those of all
    sequences, in the same pages: their keys and values are read once for all tokens.
    """
    h, h_kv, d = queries.n_heads, cache.n_kv_heads, cache.head_dim
    if queries.context > POSITIONS_MAX:
        raise ValueError(f"context must be at most {POSITIONS_MAX}, not {queries.context}")
    if cache.page % block_n:
        raise ValueError(f"page must be a multiple of block_n ({block_n}), not {cache.page}")
    if not 1 <= m <= queries.score.shape[0]:
        raise ValueError(f"m must be in 1..{queries.score.shape[0]}, not {m}")
    per_kv = h // h_kv
    together = [(1, False)]
    if prefix:
        together.append((max(1, min(m, 31 // per_kv)), True))
    sizes = m, pages.shape[1], window or NO_WINDOW, prefix
    shape = {"H": h, "H_KV": h_kv, "D": d, "CONTEXT": queries.context, "PAGE": cache.page}
    plans: list[dict[str, int]] = []
    for most, shared in together:
        # Triton's ranges are powers of two
        tokens = 1 << (most.bit_length() - 1)
        blocks = 1 << (cdiv(m, tokens) - 1).bit_length()
        plans.append({"TOKENS": tokens, "SHARED": shared, "BLOCK_N": block_n, "BLOCKS": blocks})
    for tiling in plans:
        rows = max(16, 1 << (tiling["TOKENS"] * per_kv - 1).bit_length())
        scores_kernel[(n_programs,)](
            queries.q, queries.scale, cache.k, cache.k_scale, cache.v_scale, positions, pages,
            queries.score, queries.score_max, queries.exponent, *sizes,
            **shape, KV_BITS=cache.bits, ROWS=rows, **tiling, num_warps=4,
            num_stages=2,
        )  # fmt: skip
    for tiling in plans:
        half = max(8, 1 << (tiling["TOKENS"] * per_kv).bit_length())
        sums_kernel[(n_programs,)](
            queries.score, queries.score_max, queries.exponent, cache.v, cache.v_scale, positions,
            pages, tables, queries.den, queries.sums, *sizes,
            **shape, KV_BITS=cache.bits, V_TRANSPOSED=cache.v_transposed, HALF=half, **tiling,
            num_warps=4, num_stages=2,
        )  # fmt: skip

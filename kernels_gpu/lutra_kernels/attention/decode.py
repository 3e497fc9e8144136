"""Attention of few tokens over long contexts, split over the keys.

Every program takes an equal share of all tiles of keys, whatever sequence and head they belong to
(a stream-K schedule). Two launches: scores with their maxima and the values' largest exponents,
then weights, denominators and weighted sums. What programs have in common is joined by atomic
maxima and additions of integers, so their order cannot matter; the division is left to the launch
that normalises attention's output. Model: :mod:`lutra_golden.attention.attention`.
"""

import triton.language as tl

from lutra_kernels.arith.fixed import note
from lutra_kernels.arith.scale import scale_unpack
from lutra_kernels.arrays import Array
from lutra_kernels.attention.tiles import (
    add_values,
    dot_rows,
    exponents,
    load_queries,
    rows_of_keys,
    score_tile,
    tile_shape,
    value_sums,
    value_tile,
    visible_tile,
    weight_tile,
)
from lutra_kernels.cache import EXPONENT_LEAST, SCORE_LEAST, KvCache, Queries
from lutra_kernels.jit import jit, jit_general
from lutra_kernels.layout import cdiv

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
    lowest = tl.min(tl.where(token < M, position, 1 << 30), 1)
    highest = tl.max(tl.where(token < M, position, -1), 1)
    first, last = tl.maximum(lowest - window + 1, 0), highest + 1
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


@jit_general("M", "n_pages", "window", "prefix")
def scores_kernel(
    q_ptr, q_scale_ptr, flag_ptr, k_ptr, k_scale_ptr, v_scale_ptr, position_ptr, table_ptr,
    score_ptr, score_max_ptr, exponent_ptr,
    M, n_pages, window, prefix,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, CONTEXT: tl.constexpr,
    PAGE: tl.constexpr, KV_BITS: tl.constexpr, SHARED: tl.constexpr,
    TOKENS: tl.constexpr, BLOCKS: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scores int32 ``[M, H, CONTEXT]``, and maxima and exponents ``[M, H]``, begun beforehand.

    ``q``, its scales and the cache as :mod:`lutra_kernels.cache` says; ``position``
    int32 ``[M]``, ``table`` int32 ``[M, n_pages]``. ``TOKENS`` tokens make a block. With
    ``SHARED``, all tokens attend to the first ``prefix`` positions of one sequence, else each to
    the rest of its own. ``flag`` becomes 1 if a score leaves its range.
    """
    G: tl.constexpr = H // H_KV
    first_tile, count, ends = _share(
        position_ptr, M, window, prefix, TOKENS, BLOCKS, BLOCK_N, SHARED, H_KV
    )
    total = tl.max(ends, 0)
    share = tl.cdiv(total, tl.num_programs(0))
    at = tl.program_id(0) * share
    stop = tl.minimum(at + share, total)
    queries, offs_n = tl.arange(0, QUERIES), tl.arange(0, BLOCK_N)
    while at < stop:
        block, g, tile_first, tile_end = _segment(at, stop, first_tile, count, ends, BLOCKS, H_KV)
        token = block * TOKENS + queries // G
        ok = (queries < TOKENS * G) & (token < M)
        first = (block * TOKENS).to(tl.int64) * H + g * G
        index = first + queries // G * H + queries % G
        q, q_m, q_e = load_queries(q_ptr, q_scale_ptr, first, ok, D, H, G, QUERIES, ROWS)
        position = tl.load(position_ptr + token, mask=ok, other=-1)
        highest = tl.full([QUERIES], SCORE_LEAST, tl.int32)
        exponent = tl.full([QUERIES], EXPONENT_LEAST, tl.int32)
        lost = tl.zeros([QUERIES, BLOCK_N], tl.int1)
        for tile in range(tile_first, tile_end):
            keys = tile * BLOCK_N + offs_n
            visible = visible_tile(position, keys, window)
            inside = tl.max(visible.to(tl.int32), 0) > 0
            row = rows_of_keys(table_ptr, block * TOKENS, tile, n_pages, g, H_KV, PAGE, BLOCK_N)
            score, outside = score_tile(
                q, q_m, q_e, k_ptr, k_scale_ptr, row, inside, D, KV_BITS, QUERIES, ROWS, BLOCK_N
            )
            lost |= outside & visible
            v_m, v_e = scale_unpack(tl.load(v_scale_ptr + row + offs_n, mask=inside, other=0))
            highest = tl.maximum(highest, tl.max(tl.where(visible, score, SCORE_LEAST), 1))
            exponent = tl.maximum(exponent, exponents(v_m, v_e, visible))
            tl.store(score_ptr + index[:, None] * CONTEXT + keys[None, :], score, mask=visible)
        tl.atomic_max(score_max_ptr + index, highest, mask=ok, sem="relaxed")
        tl.atomic_max(exponent_ptr + index, exponent, mask=ok, sem="relaxed")
        note(flag_ptr, lost)
        at += tile_end - tile_first


@jit_general("M", "n_pages", "window", "prefix")
def sums_kernel(
    score_ptr, score_max_ptr, exponent_ptr, v_ptr, v_scale_ptr, position_ptr, table_ptr, tables_ptr,
    den_ptr, sums_ptr,
    M, n_pages, window, prefix,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, CONTEXT: tl.constexpr,
    PAGE: tl.constexpr, KV_BITS: tl.constexpr, SHARED: tl.constexpr,
    TOKENS: tl.constexpr, BLOCKS: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Denominators int64 ``[M, H]`` and weighted sums int64 ``[M, H, D]``, begun beforehand.

    Of what :func:`scores_kernel` found.
    """
    G: tl.constexpr = H // H_KV
    first_tile, count, ends = _share(
        position_ptr, M, window, prefix, TOKENS, BLOCKS, BLOCK_N, SHARED, H_KV
    )
    total = tl.max(ends, 0)
    share = tl.cdiv(total, tl.num_programs(0))
    at = tl.program_id(0) * share
    stop = tl.minimum(at + share, total)
    queries, offs_n = tl.arange(0, QUERIES), tl.arange(0, BLOCK_N)
    while at < stop:
        block, g, tile_first, tile_end = _segment(at, stop, first_tile, count, ends, BLOCKS, H_KV)
        token = block * TOKENS + queries // G
        ok = (queries < TOKENS * G) & (token < M)
        index = token.to(tl.int64) * H + g * G + queries % G
        position = tl.load(position_ptr + token, mask=ok, other=-1)
        highest = tl.load(score_max_ptr + index, mask=ok, other=0)
        exponent = tl.load(exponent_ptr + index, mask=ok, other=0)
        den = tl.zeros([QUERIES], tl.int64)
        acc = tl.zeros([ROWS, D], tl.int32)
        for tile in range(tile_first, tile_end):
            keys = tile * BLOCK_N + offs_n
            visible = visible_tile(position, keys, window)
            inside = tl.max(visible.to(tl.int32), 0) > 0
            row = rows_of_keys(table_ptr, block * TOKENS, tile, n_pages, g, H_KV, PAGE, BLOCK_N)
            offs = index[:, None] * CONTEXT + keys[None, :]
            score = tl.load(score_ptr + offs, mask=visible, other=0)
            v_m, v_e = scale_unpack(tl.load(v_scale_ptr + row + offs_n, mask=inside, other=0))
            p, w = weight_tile(score, highest, exponent, v_m, v_e, visible, tables_ptr)
            den += tl.sum(p, 1)
            slot = tile * BLOCK_N % PAGE
            v = value_tile(v_ptr, row, slot, inside, D, PAGE, KV_BITS, BLOCK_N)
            acc = add_values(acc, w, v, QUERIES, ROWS, BLOCK_N)
        offs = index[:, None] * D + tl.arange(0, D)[None, :]
        tl.atomic_add(den_ptr + index, den, mask=ok, sem="relaxed")
        sums = value_sums(acc, D, QUERIES, ROWS)
        # a mask of its full shape: the interpreter's atomics do not broadcast
        mask = ok[:, None] & (offs >= 0)
        tl.atomic_add(sums_ptr + offs, sums, mask=mask, sem="relaxed")
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
) -> None:
    """Scores, maxima, denominators and weighted sums of ``m`` tokens, each of its own sequence.

    ``n_programs`` is how many run at once. The first ``prefix`` positions are those of all
    sequences, in the same whole pages: their keys and values are read once for all tokens.
    """
    h, h_kv, d = queries.n_heads, cache.n_kv_heads, cache.head_dim
    if queries.context > POSITIONS_MAX:
        raise ValueError(f"context must be at most {POSITIONS_MAX}, not {queries.context}")
    if prefix % cache.page:
        raise ValueError(f"prefix must be a multiple of page ({cache.page}), not {prefix}")
    if not 1 <= m <= queries.score.shape[0]:
        raise ValueError(f"m must be in 1..{queries.score.shape[0]}, not {m}")
    per_kv = h // h_kv
    together = [(1, False)]
    if prefix:
        together.append((max(1, min(m, 31 // per_kv)), True))
    sizes = m, pages.shape[1], window or NO_WINDOW, prefix
    shape = {"H": h, "H_KV": h_kv, "D": d, "CONTEXT": queries.context, "PAGE": cache.page}
    plans: list[dict[str, int]] = []
    for max_tokens, shared in together:
        # Triton's ranges are powers of two
        tokens = 1 << (max_tokens.bit_length() - 1)
        blocks = 1 << (cdiv(m, tokens) - 1).bit_length()
        room, rows = dot_rows(tokens * per_kv)
        tile = tile_shape(room, cache.bits, cache.page, 128)
        plan = {"TOKENS": tokens, "SHARED": shared, "BLOCKS": blocks, "QUERIES": room, "ROWS": rows}
        launch = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
        plans.append(plan | {"BLOCK_N": tile.block_n} | launch)
    for plan in plans:
        scores_kernel[(n_programs,)](
            queries.q, queries.scale, queries.flag, cache.k, cache.k_scale, cache.v_scale,
            positions, pages, queries.score, queries.score_max, queries.exponent, *sizes,
            **shape, **(plan | {"ROWS": max(16, plan["QUERIES"])}), KV_BITS=cache.bits,
        )  # fmt: skip
    for plan in plans:
        sums_kernel[(n_programs,)](
            queries.score, queries.score_max, queries.exponent, cache.v, cache.v_scale, positions,
            pages, tables, queries.den, queries.sums, *sizes, **shape, **plan, KV_BITS=cache.bits,
        )  # fmt: skip

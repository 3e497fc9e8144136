"""Attention of a tile of tokens, one launch: keys are walked twice, scores are not kept.

Programs of the latest tokens, which attend to most positions, start first. One token at a time,
this is also attention over contexts too short to be split.
Model: :mod:`lutra_golden.attention.attention`.
"""

import triton.language as tl

from lutra_kernels.arith.fixed import note, round_shift_right, saturate
from lutra_kernels.arith.scale import scale_from_int, scale_recip, scale_unpack
from lutra_kernels.arrays import Array
from lutra_kernels.attention.decode import NO_WINDOW, POSITIONS_MAX
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

__all__ = ["attend_block", "attention", "attention_kernel"]


@jit
def attend_block(
    q_ptr, q_scale_ptr, flag_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, position_ptr, table_ptr,
    tables_ptr, out_ptr,
    block, g, M, n_pages, window, frac,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
    KV_BITS: tl.constexpr, TOKENS: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attention of the tokens of ``block``, of the heads that share head ``g`` of the cache."""
    G: tl.constexpr = H // H_KV
    DOT_ROWS: tl.constexpr = 16 if QUERIES < 16 else QUERIES
    queries, offs_n = tl.arange(0, QUERIES), tl.arange(0, BLOCK_N)
    token = block * TOKENS + queries // G
    ok = (queries < TOKENS * G) & (token < M)
    first = (block * TOKENS).to(tl.int64) * H + g * G
    index = first + queries // G * H + queries % G
    q, q_m, q_e = load_queries(q_ptr, q_scale_ptr, first, ok, D, H, G, QUERIES, DOT_ROWS)
    position = tl.load(position_ptr + token, mask=ok, other=-1)
    begin = tl.maximum(tl.min(tl.where(ok, position, 1 << 30), 0) - window + 1, 0) // BLOCK_N
    end = tl.max(position, 0) // BLOCK_N + 1

    highest = tl.full([QUERIES], SCORE_LEAST, tl.int32)
    exponent = tl.full([QUERIES], EXPONENT_LEAST, tl.int32)
    lost = tl.zeros([QUERIES, BLOCK_N], tl.int1)
    for tile in range(begin, end):
        keys = tile * BLOCK_N + offs_n
        visible = visible_tile(position, keys, window)
        inside = tl.max(visible.to(tl.int32), 0) > 0
        row = rows_of_keys(table_ptr, block * TOKENS, tile, n_pages, g, H_KV, PAGE, BLOCK_N)
        score, outside = score_tile(
            q, q_m, q_e, k_ptr, k_scale_ptr, row, inside, D, KV_BITS, QUERIES, DOT_ROWS, BLOCK_N
        )
        lost |= outside & visible
        v_m, v_e = scale_unpack(tl.load(v_scale_ptr + row + offs_n, mask=inside, other=0))
        highest = tl.maximum(highest, tl.max(tl.where(visible, score, SCORE_LEAST), 1))
        exponent = tl.maximum(exponent, exponents(v_m, v_e, visible))

    den = tl.zeros([QUERIES], tl.int64)
    acc = tl.zeros([ROWS, D], tl.int32)
    for tile in range(begin, end):
        keys = tile * BLOCK_N + offs_n
        visible = visible_tile(position, keys, window)
        inside = tl.max(visible.to(tl.int32), 0) > 0
        row = rows_of_keys(table_ptr, block * TOKENS, tile, n_pages, g, H_KV, PAGE, BLOCK_N)
        score, _ = score_tile(
            q, q_m, q_e, k_ptr, k_scale_ptr, row, inside, D, KV_BITS, QUERIES, DOT_ROWS, BLOCK_N
        )
        v_m, v_e = scale_unpack(tl.load(v_scale_ptr + row + offs_n, mask=inside, other=0))
        p, w = weight_tile(score, highest, exponent, v_m, v_e, visible, tables_ptr)
        den += tl.sum(p, 1)
        slot = tile * BLOCK_N % PAGE
        v = value_tile(v_ptr, row, slot, inside, D, PAGE, KV_BITS, BLOCK_N)
        acc = add_values(acc, w, v, QUERIES, ROWS, BLOCK_N)

    sums = value_sums(acc, D, QUERIES, ROWS)
    r_m, r_e = scale_from_int(den, tl.zeros([QUERIES], tl.int32))
    r_m, r_e = scale_recip(r_m, r_e)
    e = (r_e + exponent + 15 + frac)[:, None]
    exact = round_shift_right(sums * r_m[:, None], tl.minimum(tl.maximum(-e, 0), 63))
    out = saturate(exact, 32)
    note(flag_ptr, lost)
    note(flag_ptr, (exact != out) | ((e > 0) & (exact != 0)))
    offs = index[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(out_ptr + offs, out.to(tl.int32), mask=ok[:, None])


@jit_general("M", "n_pages", "window", "frac")
def attention_kernel(
    q_ptr, q_scale_ptr, flag_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, position_ptr, table_ptr,
    tables_ptr, out_ptr,
    M, n_pages, window, frac,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
    KV_BITS: tl.constexpr, TOKENS: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attention ``out`` int32 ``[M, H, D]`` with ``frac`` fraction bits.

    A program takes ``TOKENS`` tokens of one sequence and the heads that share a key and value head.
    ``q``, scales, cache, ``position`` and ``table`` as in
    :func:`lutra_kernels.attention.decode.scores_kernel`.
    """
    block = tl.cdiv(M, TOKENS) - 1 - tl.program_id(0) // H_KV
    attend_block(
        q_ptr, q_scale_ptr, flag_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, position_ptr,
        table_ptr, tables_ptr, out_ptr, block, tl.program_id(0) % H_KV, M, n_pages, window, frac,
        H, H_KV, D, PAGE, KV_BITS, TOKENS, QUERIES, ROWS, BLOCK_N,
    )  # fmt: skip


def attention(
    m: int,
    queries: Queries,
    cache: KvCache,
    positions: Array,
    pages: Array,
    tables: Array,
    *,
    frac: int,
    window: int = 0,
    max_pairs: int = 31,
    together: bool = True,
) -> None:
    """Attention of ``m`` tokens, of one sequence if they are taken ``together``.

    A program takes at most ``max_pairs`` pairs of a token and a head.
    """
    h, h_kv = queries.n_heads, cache.n_kv_heads
    per_kv = h // h_kv
    if pages.shape[1] * cache.page > POSITIONS_MAX:
        raise ValueError(
            f"context must be at most {POSITIONS_MAX}, not {pages.shape[1] * cache.page}"
        )
    tokens = max(min(max_pairs // per_kv, m), 1) if together else 1
    room, rows = dot_rows(tokens * per_kv)
    tile = tile_shape(room, cache.bits, cache.page, 64)
    attention_kernel[(cdiv(m, tokens) * h_kv,)](
        queries.q, queries.scale, queries.flag, cache.k, cache.v, cache.k_scale, cache.v_scale,
        positions, pages, tables, queries.out, m, pages.shape[1], window or NO_WINDOW, frac,
        H=h, H_KV=h_kv, D=cache.head_dim, PAGE=cache.page, KV_BITS=cache.bits,
        TOKENS=tokens, QUERIES=room, ROWS=rows,
        BLOCK_N=tile.block_n,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip

"""One token's heads and its attention in one launch, while its context is short.

Every program makes the queries that share a key and value head, the key and the value, writes them
to memory and the cache, and attends to the cache at once: nothing that it reads was written by
another program of this launch. Models: :mod:`lutra_golden.vector.rope`,
:mod:`lutra_golden.attention.attention`.
"""

import triton.language as tl

from lutra_kernels.arith.scale import word
from lutra_kernels.arrays import Array
from lutra_kernels.attention.decode import NO_WINDOW
from lutra_kernels.attention.prefill import attend_block
from lutra_kernels.attention.tiles import dot_rows, tile_shape
from lutra_kernels.cache import KvCache, Queries
from lutra_kernels.jit import jit_general
from lutra_kernels.vector.rope import RopeStep, quantized_rows, rotated_rows, store_kv

__all__ = ["attention_step", "attention_step_kernel"]


@jit_general(
    "scale_q", "scale_k", "scale_v", "bias_frac", "gamma_frac", "eps", "M", "n_pages", "window",
    "frac",
)  # fmt: skip
def attention_step_kernel(
    acc_ptr, s_ptr, position_ptr, table_ptr, rope_ptr, bias_ptr, gamma_ptr, tables_ptr,
    q_ptr, q_scale_ptr, flag_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, out_ptr,
    scale_q, scale_k, scale_v, bias_frac, gamma_frac, eps, M, n_pages, window, frac,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, LOG2_DIM: tl.constexpr,
    PAGE: tl.constexpr, KV_BITS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attention ``out`` int32 ``[M, H, D]`` of tokens of different sequences.

    Arguments as in :func:`lutra_kernels.vector.rope.rope_kv_kernel` and
    :func:`lutra_kernels.attention.prefill.attention_kernel`; ``HEADS`` is room for the queries
    of a group, a key and a value.
    """
    G: tl.constexpr = H // H_KV
    token, g = tl.program_id(0) // H_KV, tl.program_id(0) % H_KV
    row = tl.arange(0, HEADS)
    is_query, is_key, is_value = row < G, row == G, row == G + 1
    head = tl.where(is_query, g * G + row, tl.where(is_key, H + g, H + H_KV + g))
    w = tl.where(is_query, scale_q, tl.where(is_key, scale_k, scale_v))
    m = tl.zeros_like(row).to(tl.int64) + token
    y_lo, y_hi, unit_m, unit_e, position = rotated_rows(
        acc_ptr, s_ptr, position_ptr, rope_ptr, bias_ptr, gamma_ptr, tables_ptr, flag_ptr,
        m, head, is_query, is_value, row < G + 2, w, bias_frac, gamma_frac, eps,
        H + 2 * H_KV, H_KV, D, LOG2_DIM, HAS_BIAS, HAS_NORM,
    )  # fmt: skip
    lo, hi, scale = quantized_rows(y_lo, y_hi, unit_m, unit_e, 127)
    half = tl.arange(0, D // 2)[None, :]
    index = m * H + g * G + row
    out = q_ptr + index[:, None] * D + half
    tl.store(out, lo.to(tl.int8), mask=is_query[:, None])
    tl.store(out + D // 2, hi.to(tl.int8), mask=is_query[:, None])
    tl.store(q_scale_ptr + index, scale, mask=is_query)
    if KV_BITS == 4:
        lo, hi, scale = quantized_rows(y_lo, y_hi, unit_m, unit_e, 7)
    page = tl.load(table_ptr + m * n_pages + position // PAGE, mask=row < G + 2, other=0)
    slot, base = position % PAGE, page.to(tl.int64) * H_KV + g
    store_kv(lo, hi, k_ptr, base, slot, half, is_key[:, None], D, PAGE, KV_BITS)
    tl.store(k_scale_ptr + base * PAGE + slot, scale, mask=is_key)
    store_kv(lo, hi, v_ptr, base, slot, half, is_value[:, None], D, PAGE, KV_BITS)
    tl.store(v_scale_ptr + base * PAGE + slot, scale, mask=is_value)

    # other threads of this program read what has been written
    tl.debug_barrier()
    attend_block(
        q_ptr, q_scale_ptr, flag_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, position_ptr,
        table_ptr, tables_ptr, out_ptr, token, g, M, n_pages, window, frac,
        H, H_KV, D, PAGE, KV_BITS, 1, QUERIES, ROWS, BLOCK_N,
    )  # fmt: skip


def attention_step(
    step: RopeStep,
    m: int,
    acc: Array,
    scales: Array,
    positions: Array,
    pages: Array,
    queries: Queries,
    cache: KvCache,
    tables: Array,
    *,
    frac: int,
    window: int = 0,
) -> None:
    """Heads of ``m`` tokens, each of a sequence of its own, and their attention.

    Like :func:`~lutra_kernels.vector.rope.rope_kv` and
    :func:`~lutra_kernels.attention.prefill.attention` after it.
    """
    h, h_kv, d = queries.n_heads, cache.n_kv_heads, cache.head_dim
    per_kv = h // h_kv
    room, rows = dot_rows(per_kv)
    tile = tile_shape(room, cache.bits, cache.page, 64)
    attention_step_kernel[(m * h_kv,)](
        acc, scales, positions, pages, step.rope, step.bias, step.gamma, tables,
        queries.q, queries.scale, queries.flag, cache.k, cache.v, cache.k_scale, cache.v_scale,
        queries.out,
        word(step.scale_q), word(step.scale_k), word(step.scale_v),
        step.bias_frac, step.gamma_frac, step.eps, m, pages.shape[1], window or NO_WINDOW, frac,
        H=h, H_KV=h_kv, D=d, LOG2_DIM=d.bit_length() - 1, PAGE=cache.page, KV_BITS=cache.bits,
        HAS_BIAS=step.bias is not None, HAS_NORM=step.gamma is not None,
        HEADS=1 << (per_kv + 1).bit_length(), QUERIES=room, ROWS=rows, BLOCK_N=tile.block_n,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip

"""Queries, keys and values of a product: biases, norms, rotation, quantisation, and the KV write.

Model: :mod:`lutra_golden.vector.rope`.
"""

from dataclasses import dataclass

import triton.language as tl

from lutra_golden.arith.scale import Scale
from lutra_golden.vector.heads import FIXED_FRAC
from lutra_golden.vector.rope import ROPE_FRAC
from lutra_kernels.arith.fixed import note
from lutra_kernels.arith.quantize import quantize, quantize_factor, quantize_step
from lutra_kernels.arith.scale import scale_mul, scale_pack, scale_unpack, word
from lutra_kernels.arrays import INTERPRETED, Array
from lutra_kernels.cache import EXPONENT_LEAST, SCORE_LEAST, KvCache, Queries
from lutra_kernels.jit import jit, jit_general
from lutra_kernels.layout import cdiv
from lutra_kernels.vector.heads import (
    FIXED_UNIT_E,
    FIXED_UNIT_M,
    fixed_heads,
    head_root,
    head_times_gamma,
)

__all__ = [
    "RopeStep",
    "quantized_rows",
    "rope_kv",
    "rope_kv_kernel",
    "rotated_rows",
    "store_kv",
]

_FRAC = tl.constexpr(ROPE_FRAC)
_TURNED_FRAC = tl.constexpr(FIXED_FRAC + ROPE_FRAC)
ROWS_MAX = 32
"""Most heads of tokens that a program takes."""
_MANY = 4096  # heads that keep every multiprocessor busy
_ONE = tl.constexpr(1 << ROPE_FRAC)


@jit
def store_kv(
    lo, hi, cache_ptr, base, slot, half, mask,
    D: tl.constexpr, PAGE: tl.constexpr, KV_BITS: tl.constexpr,
):  # fmt: skip
    """Write heads of tokens, halves int32 ``[ROWS, D / 2]``, into their pages."""
    base, slot = base[:, None], slot[:, None]
    if KV_BITS == 4:
        # the first half in the low nibbles
        packed = (lo & 15) | (hi << 4)
        offs = base * (PAGE * D // 2) + slot * (D // 2) + half
        tl.store(cache_ptr + offs, packed.to(tl.int8), mask=mask)
    else:
        offs = base * (PAGE * D) + slot * D + half
        tl.store(cache_ptr + offs, lo.to(tl.int8), mask=mask)
        tl.store(cache_ptr + offs + D // 2, hi.to(tl.int8), mask=mask)


@jit
def quantized_rows(y_lo, y_hi, unit_m, unit_e, Q_MAX: tl.constexpr):
    """Both halves of heads quantised, and the words of their scales."""
    y_max = tl.maximum(tl.max(tl.abs(y_lo), 1), tl.max(tl.abs(y_hi), 1))
    f_m, f_e = quantize_factor(y_max, Q_MAX)
    m, e = quantize_step(y_max, Q_MAX)
    e -= tl.where(m == 0, 0, _FRAC)
    m, e = scale_mul(m, e, unit_m, unit_e)
    lo = quantize(y_lo, f_m[:, None], f_e[:, None], Q_MAX)
    hi = quantize(y_hi, f_m[:, None], f_e[:, None], Q_MAX)
    return lo.to(tl.int32), hi.to(tl.int32), scale_pack(m, e)


@jit
def rotated_rows(
    acc_ptr, s_ptr, position_ptr, rope_ptr, bias_ptr, gamma_ptr, tables_ptr, flag_ptr,
    m, head, is_query, is_value, here, w, bias_frac, gamma_frac, eps,
    N_HEADS: tl.constexpr, N_KV: tl.constexpr, D: tl.constexpr, LOG2_DIM: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Heads of tokens with biases, normalised or less their centre, and rotated, ``[ROWS, D / 2]``
    both halves.

    Row by row: token ``m``, ``head`` of all in ``acc``, what it is a head of, whether it is there,
    and the word of its weights' scale. Returns what one of it is worth and the position, too.
    ``flag`` becomes 1 if a head in fixed point has left its range.
    """
    half, mask = tl.arange(0, D // 2)[None, :], here[:, None]
    position = tl.load(position_ptr + m, mask=here, other=0)
    s_m, s_e = scale_unpack(tl.load(s_ptr + m, mask=here, other=0))
    w_m, w_e = scale_unpack(w)
    unit_m, unit_e = scale_mul(s_m, s_e, w_m, w_e)

    offs = head[:, None] * D + half  # [ROWS, D / 2]
    at = acc_ptr + m[:, None] * (N_HEADS * D) + offs
    lo = tl.load(at, mask=mask, other=0).to(tl.int64)
    hi = tl.load(at + D // 2, mask=mask, other=0).to(tl.int64)
    if HAS_BIAS or HAS_NORM:
        bias_lo, bias_hi = tl.zeros_like(offs), tl.zeros_like(offs)
        if HAS_BIAS:
            bias_lo = tl.load(bias_ptr + offs, mask=mask, other=0).to(tl.int32)
            bias_hi = tl.load(bias_ptr + offs + D // 2, mask=mask, other=0).to(tl.int32)
        lo, lost = fixed_heads(lo, unit_m[:, None], unit_e[:, None], bias_lo, bias_frac)
        hi, hi_lost = fixed_heads(hi, unit_m[:, None], unit_e[:, None], bias_hi, bias_frac)
        note(flag_ptr, lost | hi_lost)
        unit_m, unit_e = tl.zeros_like(s_m) + FIXED_UNIT_M, tl.zeros_like(s_e) + FIXED_UNIT_E
    if HAS_NORM:
        gamma = gamma_ptr + tl.where(is_query, 0, D)[:, None] + half
        squares = tl.sum(lo * lo, 1) + tl.sum(hi * hi, 1)
        root_m, root_e = head_root(squares, gamma_frac, eps, tables_ptr, LOG2_DIM)
        unit_m, unit_e = tl.where(is_value, unit_m, root_m), tl.where(is_value, unit_e, root_e)
        as_is = is_value[:, None]
        lo = tl.where(as_is, lo, head_times_gamma(lo, tl.load(gamma).to(tl.int64)))
        hi = tl.where(as_is, hi, head_times_gamma(hi, tl.load(gamma + D // 2).to(tl.int64)))

    # values are not turned, but take the same way
    turn = rope_ptr + position.to(tl.int64)[:, None] * D + half
    cos = tl.where(is_value[:, None], _ONE, tl.load(turn).to(tl.int64))
    sin = tl.where(is_value[:, None], 0, tl.load(turn + D // 2).to(tl.int64))
    y_lo, y_hi = lo * cos - hi * sin, hi * cos + lo * sin
    if HAS_BIAS and not HAS_NORM:
        # the centres follow the biases, from those of values on
        at = bias_ptr + offs + 2 * N_KV * D
        is_key = here & ~is_query & ~is_value
        centre_lo = tl.load(at, mask=is_key[:, None], other=0).to(tl.int64)
        centre_hi = tl.load(at + D // 2, mask=is_key[:, None], other=0).to(tl.int64)
        y_lo -= centre_lo << (_TURNED_FRAC - bias_frac)
        y_hi -= centre_hi << (_TURNED_FRAC - bias_frac)
    return y_lo, y_hi, unit_m, unit_e, position


@jit_general("scale_q", "scale_k", "scale_v", "bias_frac", "gamma_frac", "eps", "n_pages", "M")
def rope_kv_kernel(
    acc_ptr, s_ptr, position_ptr, table_ptr, rope_ptr, bias_ptr, gamma_ptr, tables_ptr,
    q_ptr, q_scale_ptr, flag_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr,
    score_max_ptr, exponent_ptr, den_ptr, sums_ptr,
    scale_q, scale_k, scale_v, bias_frac, gamma_frac, eps, n_pages, M,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, LOG2_DIM: tl.constexpr,
    PAGE: tl.constexpr, KV_BITS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``ROWS`` heads of tokens per program: of queries first, then of keys, then of values.

    ``acc`` int32 ``[M, (H + 2 H_KV) D]`` with activation scales ``s`` ``[M]``; ``position`` int32
    ``[M]``; ``table`` int32 ``[M, n_pages]`` the pages of each token's sequence; ``rope`` int16
    ``[context, D]``; ``bias`` int16 like ``acc``'s rows, and behind them the centres ``[H_KV, D]``
    of keys; ``gamma`` int16 ``[2, D]`` of queries and keys. Writes ``q`` int8 ``[M, H, D]``, its
    scales ``[M, H]``, the flag, and the cache of :class:`~lutra_kernels.cache.KvCache`. With
    ``SPLIT``, what the parts of a split attention add up to begins here.
    """
    pid = tl.program_id(0)
    of_queries, of_keys = tl.cdiv(M * H, ROWS), tl.cdiv(M * H_KV, ROWS)
    is_query, is_value = pid < of_queries, pid >= of_queries + of_keys
    n_heads = tl.where(is_query, H, H_KV)
    first_head = tl.where(is_query, 0, tl.where(is_value, H + H_KV, H))
    pid -= tl.where(is_query, 0, tl.where(is_value, of_queries + of_keys, of_queries))
    row = pid * ROWS + tl.arange(0, ROWS)
    m, head = (row // n_heads).to(tl.int64), row % n_heads  # [ROWS]
    here = m < M
    half, mask = tl.arange(0, D // 2)[None, :], here[:, None]
    no_rows = tl.zeros([ROWS], tl.int1)
    w = tl.where(is_query, scale_q, tl.where(is_value, scale_v, scale_k)) + tl.zeros_like(row)
    y_lo, y_hi, unit_m, unit_e, position = rotated_rows(
        acc_ptr, s_ptr, position_ptr, rope_ptr, bias_ptr, gamma_ptr, tables_ptr, flag_ptr,
        m, first_head + head, no_rows | is_query, no_rows | is_value, here, w,
        bias_frac, gamma_frac, eps, H + 2 * H_KV, H_KV, D, LOG2_DIM, HAS_BIAS, HAS_NORM,
    )  # fmt: skip

    if is_query:
        q_lo, q_hi, scale = quantized_rows(y_lo, y_hi, unit_m, unit_e, 127)
        index = m * H + head
        out = index[:, None] * D + half
        tl.store(q_ptr + out, q_lo.to(tl.int8), mask=mask)
        tl.store(q_ptr + out + D // 2, q_hi.to(tl.int8), mask=mask)
        tl.store(q_scale_ptr + index, scale, mask=here)
        if SPLIT:
            zero = tl.zeros_like(y_lo)
            tl.store(score_max_ptr + index, tl.full([ROWS], SCORE_LEAST, tl.int32), mask=here)
            tl.store(exponent_ptr + index, tl.full([ROWS], EXPONENT_LEAST, tl.int32), mask=here)
            tl.store(den_ptr + index, tl.zeros([ROWS], tl.int64), mask=here)
            tl.store(sums_ptr + out, zero, mask=mask)
            tl.store(sums_ptr + out + D // 2, zero, mask=mask)
    else:
        k_lo, k_hi, scale = quantized_rows(y_lo, y_hi, unit_m, unit_e, 127 if KV_BITS == 8 else 7)
        page = tl.load(table_ptr + m * n_pages + position // PAGE, mask=here, other=0)
        slot, base = position % PAGE, page.to(tl.int64) * H_KV + head
        if is_value:
            store_kv(k_lo, k_hi, v_ptr, base, slot, half, mask, D, PAGE, KV_BITS)
            tl.store(v_scale_ptr + base * PAGE + slot, scale, mask=here)
        else:
            store_kv(k_lo, k_hi, k_ptr, base, slot, half, mask, D, PAGE, KV_BITS)
            tl.store(k_scale_ptr + base * PAGE + slot, scale, mask=here)


@dataclass(frozen=True, kw_only=True)
class RopeStep:
    """Constants of a layer: scales of weights, rotary table, biases and norms of heads.

    ``bias`` and ``gamma`` are None where there are none. Behind the biases of all heads are the
    centres of keys, zeros where there are none; ``gamma`` is ``[2, D]``, of queries and of keys,
    ``eps`` in units of ``2**-32``.
    """

    scale_q: Scale
    scale_k: Scale
    scale_v: Scale
    rope: Array
    bias: Array | None = None
    bias_frac: int = 0
    gamma: Array | None = None
    gamma_frac: int = 0
    eps: int = 0


def rope_kv(
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
    split: bool,
) -> None:
    """Make queries, keys and values of the first ``m`` tokens of ``acc``.

    ``pages`` ``[m, n]`` are the pages of each token's sequence. ``split`` says that attention is
    going to be split.
    """
    h, h_kv, d = queries.n_heads, cache.n_kv_heads, cache.head_dim
    # one head per warp unless there are enough tokens without
    max_rows = min(ROWS_MAX, m * h_kv if INTERPRETED else m * h_kv // _MANY)
    rows = 1 << (max(max_rows, 1).bit_length() - 1)
    grid = cdiv(m * h, rows) + 2 * cdiv(m * h_kv, rows)
    rope_kv_kernel[(grid,)](
        acc, scales, positions, pages, step.rope, step.bias, step.gamma, tables,
        queries.q, queries.scale, queries.flag, cache.k, cache.v, cache.k_scale, cache.v_scale,
        queries.score_max, queries.exponent, queries.den, queries.sums,
        word(step.scale_q), word(step.scale_k), word(step.scale_v),
        step.bias_frac, step.gamma_frac, step.eps, pages.shape[1], m,
        H=h, H_KV=h_kv, D=d, LOG2_DIM=d.bit_length() - 1, PAGE=cache.page, KV_BITS=cache.bits,
        HAS_BIAS=step.bias is not None,
        HAS_NORM=step.gamma is not None, SPLIT=split, ROWS=rows, num_warps=1 if rows == 1 else 4,
    )  # fmt: skip

"""Tiles of keys, scores and values: what decode and prefill attention have in common.

Model: :mod:`lutra.sim.golden.attention.attention`. Rows of a tile are pairs of a token and one of
the query heads that share a key and value head.
"""

import triton.language as tl

from lutra.kernels_gpu.arith.exp2 import exp2_neg
from lutra.kernels_gpu.arith.fixed import round_shift_right, saturate
from lutra.kernels_gpu.arith.scale import scale_mul, scale_unpack
from lutra.kernels_gpu.jit import jit
from lutra.sim.golden.arith.exp2 import EXP2
from lutra.sim.golden.arith.scale import SCALE
from lutra.sim.golden.attention.attention import AttentionParams

__all__ = [
    "BYTES_OFFSET",
    "EXPONENT_LEAST",
    "SCORE_LEAST",
    "exponents",
    "rows_of_keys",
    "score_tile",
    "value_tile",
    "visible_tile",
    "weight_tile",
]

SCORE_LEAST = tl.constexpr(-(1 << 31))
"""Below every score."""
EXPONENT_LEAST = tl.constexpr(SCALE.e_min)
"""The exponent where no value counts."""
BYTES_OFFSET = tl.constexpr(128 * 256 + 128)
"""What a weight loses when both its bytes are made signed."""
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
def score_tile(
    q, q_m, q_e, k_ptr, k_scale_ptr, row, inside,
    D: tl.constexpr, KV_BITS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scores int32 ``[ROWS, BLOCK_N]`` of queries ``[ROWS, D]``, of the keys from ``row`` on."""
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
    k_m, k_e = scale_unpack(tl.load(k_scale_ptr + rows, mask=inside, other=0))
    c_m, c_e = scale_mul(q_m[:, None], q_e[:, None], k_m[None, :], k_e[None, :])
    shift = tl.minimum(tl.maximum(-(c_e + _FRAC), 0), 63)
    return saturate(round_shift_right(dot.to(tl.int64) * c_m, shift), _WIDTH).to(tl.int32)


@jit
def exponents(v_m, v_e, visible):
    """Largest exponent among the values that each row sees, int32 ``[ROWS]``."""
    counts = visible & (v_m != 0)[None, :]
    return tl.max(tl.where(counts, v_e[None, :], EXPONENT_LEAST), 1)


@jit
def value_tile(
    v_ptr, row, slot, inside,
    D: tl.constexpr, PAGE: tl.constexpr, KV_BITS: tl.constexpr, TRANSPOSED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Values int8 ``[BLOCK_N, D]`` from ``row`` on, which is ``slot`` in its page."""
    offs_n, offs_d = tl.arange(0, BLOCK_N), tl.arange(0, D)
    if KV_BITS == 4:
        offs = (row + offs_n)[:, None] * (D // 2) + (offs_d % (D // 2))[None, :]
    elif TRANSPOSED:
        offs = (row - slot) * D + slot + offs_d[None, :] * PAGE + offs_n[:, None]
    else:
        offs = (row + offs_n)[:, None] * D + offs_d[None, :]
    v = tl.load(v_ptr + offs, mask=inside[:, None], other=0)
    if KV_BITS == 4:
        v = _nibbles(v, offs_d[None, :] < D // 2)
    return v


@jit
def weight_tile(score, score_max, exponent, v_m, v_e, visible, tables_ptr):
    """Powers in Q15, and weights of 16 bits with the values' scales folded in, both int32."""
    d = tl.where(visible, score_max[:, None] - score, 0)
    p = tl.where(visible, exp2_neg(d, tables_ptr), 0)
    # below 2**31, so that from a shift of 32 on nothing is left
    shift = 15 + tl.minimum(tl.maximum(exponent[:, None] - v_e[None, :], 0), 17)
    w = (((p * v_m[None, :]) >> (shift - 1)) + 1) >> 1
    return p, w

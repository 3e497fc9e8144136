"""Products with few tokens (up to 4): every weight is read once, at the rate memory gives it.

One program computes ``BLOCK_N`` rows. A thread loads chunks of 16 bytes of a row and meets them
with dp4a (:mod:`.fields`): two instructions for four weights, whatever their width. Ternary weights
keep a sum per field over the whole depth; grouped ones are multiplied by their group's scale after
each chunk, all of whose sums are exact. Zero points meet the activations' group sums at the end.

Model: ``round_shift(a @ doubled.T, shift)`` with the weights of
:class:`~lutra_golden.matmul.engine.GroupedWeights`.
Source: for masks without shifts, this project's study of sm_90 machine code (docs/kernels.md).
"""

import numpy as np
import triton.language as tl

from lutra_kernels.arith.fixed import round_shift_right
from lutra_kernels.arrays import Array, empty
from lutra_kernels.jit import jit
from lutra_kernels.launch import Tile
from lutra_kernels.layout import BLOCK, Activations, cdiv
from lutra_kernels.matmul.fields import (
    common_span,
    field_dot,
    field_shift,
    field_words,
    load_words,
    n_planes,
    plane_bits,
    plane_low,
    set_fields,
    word_offsets,
)
from lutra_kernels.matmul.matrix import Matrix
from lutra_kernels.matmul.operands import as_dtype, check_operands, tile_of

__all__ = ["M_MAX", "gemv", "gemv_kernel"]

M_MAX = 4
"""Tokens at most."""
_GROUPS_AT_ONCE = 32  # whose zero points are multiplied at once: loads under way together


@jit
def _ternary(
    x_ptr, row_ptr, n_blocks, stride_x,
    M: tl.constexpr, A_BYTES: tl.constexpr, EVEN: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Sums of codes times activations, ``[BLOCK_N, CHUNKS]`` for each token."""
    CHUNKS: tl.constexpr = 2 * BLOCK_B
    e = tl.arange(0, 4 * CHUNKS)
    inputs = word_offsets(4 * CHUNKS, 8, 32)
    acc = (tl.zeros((BLOCK_N, CHUNKS), tl.int32),) * (M * A_BYTES * 4)
    for block in range(0, n_blocks, BLOCK_B):
        if EVEN:
            mask = None
        else:
            mask = (block + e // 8 < n_blocks)[None, :]
        w = load_words(row_ptr + (block * 8 + e)[None, :], mask, BLOCK_N, CHUNKS, True)
        following = ()
        for r in tl.static_range(M * A_BYTES):
            for f in tl.static_range(4):
                at = x_ptr + r * stride_x + block * 32 + 8 * f
                x = load_words((at + inputs)[None, :], mask, 1, CHUNKS, False)
                following = following + (field_dot(w, x, acc[4 * r + f], 2, f),)
        acc = following
    result = ()
    for m in tl.static_range(M):
        total = tl.zeros((BLOCK_N, CHUNKS), tl.int32)
        for h in tl.static_range(A_BYTES):
            total = total << 8
            for f in tl.static_range(4):
                total += acc[4 * ((A_BYTES - 1 - h) * M + m) + f] >> field_shift(2, f)
        result = result + (total,)
    return result


@jit
def _plane(
    acc, x_ptr, row_ptr, scale_ptr, block, n_blocks, n_groups, stride_x,
    M: tl.constexpr, A_BYTES: tl.constexpr, BITS: tl.constexpr, PLANE: tl.constexpr,
    GROUP: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Add scales times sums of one plane of ``BLOCK_B`` blocks to each token's ``acc``."""
    P: tl.constexpr = plane_bits(BITS, PLANE)
    LOW: tl.constexpr = plane_low(BITS, PLANE)
    CHUNKS: tl.constexpr = BLOCK_B * P
    FIELDS: tl.constexpr = 8 // P
    RUN: tl.constexpr = field_words(P)
    SET: tl.constexpr = set_fields(P, common_span(GROUP))
    words = word_offsets(4 * CHUNKS, 4 * P, 4 * BITS)
    inputs = word_offsets(4 * CHUNKS, RUN, RUN * FIELDS)
    c = tl.arange(0, CHUNKS)
    # the first weight of a chunk in its first field
    if P == 4:
        first = (c // 2) * 64 + (c % 2) * 16
    elif P == 2:
        first = (c // 2) * 128 + (c % 2) * 16
    else:
        first = c * 128
    if EVEN:
        mask = None
    else:
        mask = (block + tl.arange(0, 4 * CHUNKS) // (4 * P) < n_blocks)[None, :]
    w_ptr = row_ptr + (block * (4 * BITS) + 4 * LOW + words)[None, :]
    w = load_words(w_ptr, mask, BLOCK_N, CHUNKS, True)
    result = acc
    for s in tl.static_range(FIELDS // SET):
        if 128 % GROUP == 0:
            # what does not depend on the block is computed once
            group = block * (128 // GROUP) + (first + s * SET * (4 * RUN)) // GROUP
        else:
            group = (block * 128 + first + s * SET * (4 * RUN)) // GROUP
        if EVEN:
            scale = tl.load(scale_ptr + group[None, :])
        else:
            scale = tl.load(scale_ptr + group[None, :], mask=(group < n_groups)[None, :], other=0)
        following = ()
        for m in tl.static_range(M):
            d = tl.zeros((BLOCK_N, CHUNKS), tl.int32)
            for i in tl.static_range(SET):
                part = tl.zeros((BLOCK_N, CHUNKS), tl.int32)
                for h in tl.static_range(A_BYTES):
                    row = (A_BYTES - 1 - h) * M + m
                    at = x_ptr + row * stride_x + block * 32 + RUN * (s * SET + i)
                    x = load_words((at + inputs)[None, :], mask, 1, CHUNKS, False)
                    part = field_dot(w, x, part << 8, P, s * SET + i)
                d += part >> field_shift(P, s * SET + i)
            d = d << LOW
            if WIDE:
                following = following + (result[m] + d.to(tl.int64) * scale.to(tl.int64),)
            else:
                following = following + (result[m] + d * scale.to(tl.int32),)
        result = following
    return result


@jit
def _grouped(
    x_ptr, row_ptr, scale_ptr, n_blocks, n_groups, stride_x,
    M: tl.constexpr, A_BYTES: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Sums of scales times codes times activations, ``[BLOCK_N]`` for each token."""
    P0: tl.constexpr = plane_bits(BITS, 0)
    dtype: tl.constexpr = tl.int64 if WIDE else tl.int32
    acc = (tl.zeros((BLOCK_N, BLOCK_B * P0), dtype),) * M
    high = ()
    if n_planes(BITS) > 1:
        high = (tl.zeros((BLOCK_N, BLOCK_B * plane_bits(BITS, 1)), dtype),) * M
    top = ()
    if n_planes(BITS) > 2:
        top = (tl.zeros((BLOCK_N, BLOCK_B * plane_bits(BITS, 2)), dtype),) * M
    for block in range(0, n_blocks, BLOCK_B):
        acc = _plane(
            acc, x_ptr, row_ptr, scale_ptr, block, n_blocks, n_groups, stride_x,
            M, A_BYTES, BITS, 0, GROUP, WIDE, EVEN, BLOCK_N, BLOCK_B,
        )  # fmt: skip
        if n_planes(BITS) > 1:
            high = _plane(
                high, x_ptr, row_ptr, scale_ptr, block, n_blocks, n_groups, stride_x,
                M, A_BYTES, BITS, 1, GROUP, WIDE, EVEN, BLOCK_N, BLOCK_B,
            )  # fmt: skip
        if n_planes(BITS) > 2:
            top = _plane(
                top, x_ptr, row_ptr, scale_ptr, block, n_blocks, n_groups, stride_x,
                M, A_BYTES, BITS, 2, GROUP, WIDE, EVEN, BLOCK_N, BLOCK_B,
            )  # fmt: skip
    result = ()
    for m in tl.static_range(M):
        total = tl.sum(acc[m], 1)
        if n_planes(BITS) > 1:
            total += tl.sum(high[m], 1)
        if n_planes(BITS) > 2:
            total += tl.sum(top[m], 1)
        result = result + (total,)
    return result


@jit
def _zeros(
    sum_ptr, scale_ptr, zero_ptr, minimum_ptr, n_groups, WIDE: tl.constexpr, OFFSETS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Sums over the groups of scale times zero point, less ``OFFSETS``, times the activations' sum:
    ``[BLOCK_N]``."""
    dtype: tl.constexpr = tl.int64 if WIDE else tl.int32
    acc = tl.zeros((BLOCK_N, BLOCK_G), dtype)
    for group in range(0, n_groups, BLOCK_G):
        g = group + tl.arange(0, BLOCK_G)[None, :]
        scale = tl.load(scale_ptr + g, mask=g < n_groups, other=0).to(tl.int32)
        zero = tl.load(zero_ptr + g, mask=g < n_groups, other=0).to(tl.int32)
        total = tl.load(sum_ptr + g, mask=g < n_groups, other=0)
        less = (scale * zero).to(dtype)
        if OFFSETS:
            less -= tl.load(minimum_ptr + g, mask=g < n_groups, other=0).to(dtype)
        acc += less * total.to(dtype)
    return tl.sum(acc, 1)


@jit
def gemv_kernel(
    x_ptr, w_ptr, scale_ptr, zero_ptr, minimum_ptr, sum_ptr, offset_ptr, o_ptr,
    N, n_blocks, n_groups, shift, stride_x,
    M: tl.constexpr, A_BYTES: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    OFFSETS: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """``o[m, n]`` of ``M`` tokens and ``N`` rows.

    ``x`` int32 words of byte rows ``[A_BYTES * M, stride_x]`` (:mod:`~lutra_kernels.layout`),
    ``w`` int32 words of B128 ``[N, 4 * BITS * n_blocks]``, ``scale`` and ``zero`` unsigned
    ``[N, n_groups]``, ``minimum`` int32 of this shape (``OFFSETS`` only), ``sum`` int32
    ``[M, n_groups]``, ``offset`` int64 ``[N]`` (16-bit activations only), ``o`` int32 or int64
    ``[M, N]``. ``GROUP`` 0 is ternary. ``EVEN``: no block and no group
    hangs over. ``WIDE``: sums before the shift need 64 bits.
    """
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.minimum(offs_n, N - 1).to(tl.int64)[:, None]
    row_ptr = w_ptr + rows * (n_blocks * 4 * BITS)
    if GROUP == 0:
        dots = _ternary(x_ptr, row_ptr, n_blocks, stride_x, M, A_BYTES, EVEN, BLOCK_N, BLOCK_B)
    else:
        dots = _grouped(
            x_ptr, row_ptr, scale_ptr + rows * n_groups, n_blocks, n_groups, stride_x,
            M, A_BYTES, BITS, GROUP, WIDE, EVEN, BLOCK_N, BLOCK_B,
        )  # fmt: skip
    for m in tl.static_range(M):
        if GROUP == 0:
            total = tl.sum(dots[m], 1)
            if WIDE:
                total = total.to(tl.int64)
            total = 2 * (total - tl.load(sum_ptr + m))
        else:
            zeros = _zeros(
                sum_ptr + m * n_groups, scale_ptr + rows * n_groups, zero_ptr + rows * n_groups,
                minimum_ptr + rows * n_groups if OFFSETS else minimum_ptr, n_groups, WIDE, OFFSETS,
                BLOCK_N, BLOCK_G,
            )  # fmt: skip
            total = 2 * dots[m] - zeros
        if A_BYTES == 2:
            total += tl.load(offset_ptr + tl.minimum(offs_n, N - 1)).to(total.dtype)
        tl.store(o_ptr + m * N + offs_n, round_shift_right(total, shift), mask=offs_n < N)


def gemv(a: Activations, w: Matrix, tile: Tile | None = None, out: Array | None = None) -> Array:
    """``acc`` of at most :data:`M_MAX` tokens: int32 ``[M, N]``, or what ``out`` has.

    Rows of several matrices that share their activations are one matrix, and one launch.
    """
    check_operands(a, w)
    if a.m > M_MAX:
        raise ValueError(f"gemv takes at most {M_MAX} tokens, not {a.m}")
    tile = tile or tile_of("gemv", a, w)
    o = empty([a.m, w.n], np.int32) if out is None else out
    gemv_kernel[(cdiv(w.n, tile.block_n),)](
        as_dtype(a.rows, np.int32), as_dtype(w.codes, np.int32), w.scale, w.zero, w.minimum,
        a.sums, w.offset, o, w.n, w.n_blocks, w.n_groups, w.shift, w.n_blocks * 32,
        M=a.m, A_BYTES=a.a_bytes, BITS=w.bits, GROUP=w.group, OFFSETS=w.minimum is not None,
        WIDE=w.is_wide(a.a_bits),
        EVEN=w.k % BLOCK == 0 and w.n_blocks % tile.block_b == 0, BLOCK_N=tile.block_n,
        BLOCK_B=tile.block_b, BLOCK_G=_GROUPS_AT_ONCE, num_warps=tile.num_warps,
    )  # fmt: skip
    return o

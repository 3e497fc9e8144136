"""Products with many tokens on matrix instructions, the weights as the left operand.

``o.T = w @ x.T``: rows of weights fill the instruction's 64 rows however few the tokens are, and
the codes go from registers into it, never back to shared memory. Programs may share a depth
(``SPLIT``): each adds its sum to a workspace of integers, the last one to arrive rounds, stores and
clears; integers commute, so the result is the same in any order of arrival.

Ternary sums run over the whole depth; grouped ones are multiplied by their group's scale as they
leave it, and zero points meet the activations' group sums once, in the first program of a depth.

Model: ``round_shift(a @ doubled.T, shift)`` with the weights of
:class:`~lutra_golden.matmul.engine.GroupedWeights`.
Source: the swapped operands of Machete (vLLM), dequantisation after the group as MixPE,
arXiv 2411.16158.
"""

import numpy as np
import triton.language as tl

from lutra_kernels.arith.fixed import round_shift_right
from lutra_kernels.arrays import Array, empty, zeros
from lutra_kernels.jit import jit
from lutra_kernels.launch import Tile
from lutra_kernels.layout import BLOCK, Activations, cdiv
from lutra_kernels.matmul.fields import common_span
from lutra_kernels.matmul.matrix import Matrix
from lutra_kernels.matmul.operands import as_dtype, check_operands, tile_of
from lutra_kernels.matmul.slices import load_tiles, slice_codes

__all__ = ["Workspace", "gemm", "gemm_kernel"]


@jit
def _load_x(x_ptr, block, n_blocks, PART: tl.constexpr, BLOCK_B: tl.constexpr, EVEN: tl.constexpr):
    """Activations of slice ``PART``: ``[32 * BLOCK_B, BLOCK_M]``."""
    i = tl.arange(0, 32 * BLOCK_B)
    pointers = x_ptr + (block * 128 + (i // 32) * 128 + i % 32 + 32 * PART)[:, None]
    if EVEN:
        x = tl.load(pointers)
    else:
        x = tl.load(pointers, mask=(block + i // 32 < n_blocks)[:, None], other=0)
    return x


@jit
def _ternary(
    x_ptr, high_ptr, row_ptr, first, last, A_BYTES: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Sums of codes times activations from block ``first`` on, ``[BLOCK_N, BLOCK_M]``."""
    i = tl.arange(0, 32 * BLOCK_B)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    high = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    for block in range(first, last, BLOCK_B):
        if EVEN:
            mask = None
        else:
            mask = (block + i // 32 < last)[None, :]
        tiles = load_tiles(row_ptr + block * 32, mask, 2, BLOCK_B)
        for part in tl.static_range(4):
            codes = slice_codes(tiles, part, 2, BLOCK_B)
            x = _load_x(x_ptr, block, last, part, BLOCK_B, EVEN)
            acc = tl.dot(codes, x, acc, out_dtype=tl.int32)
            if A_BYTES == 2:
                x = _load_x(high_ptr, block, last, part, BLOCK_B, EVEN)
                high = tl.dot(codes, x, high, out_dtype=tl.int32)
    if A_BYTES == 2:
        acc += high << 8
    return acc


@jit
def _span_sum(
    tiles, x_ptr, high_ptr, block, last, A_BYTES: tl.constexpr, BITS: tl.constexpr,
    FIRST: tl.constexpr, SPAN: tl.constexpr, EVEN: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sum over the ``SPAN`` weights of a block from ``FIRST`` on: ``[BLOCK_N, BLOCK_M]``."""
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    high = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    for part in tl.static_range(FIRST // 32, (FIRST + SPAN + 31) // 32):
        codes = slice_codes(tiles, part, BITS, 1)
        x = _load_x(x_ptr, block, last, part, 1, EVEN)
        if SPAN == 16:
            half = ((tl.arange(0, 32) // 16) == (FIRST % 32) // 16)[:, None]
            x = tl.where(half, x, 0)
        acc = tl.dot(codes, x, acc, out_dtype=tl.int32)
        if A_BYTES == 2:
            x = _load_x(high_ptr, block, last, part, 1, EVEN)
            if SPAN == 16:
                x = tl.where(half, x, 0)
            high = tl.dot(codes, x, high, out_dtype=tl.int32)
    if A_BYTES == 2:
        acc += high << 8
    return acc


@jit
def _grouped(
    x_ptr, high_ptr, row_ptr, scale_ptr, first, last, n_groups, A_BYTES: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Sums of scales times codes times activations, ``[BLOCK_N, BLOCK_M]``."""
    SPAN: tl.constexpr = common_span(GROUP)
    dtype: tl.constexpr = tl.int64 if WIDE else tl.int32
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype)
    # makes a mask of a condition: Triton 3.9 interprets no scalar ones
    nothing = tl.zeros((1, 1), tl.int32)
    for start in range(first, last, BLOCK_B):
        for step in tl.static_range(BLOCK_B):
            block = start + step
            if EVEN:
                mask = None
            else:
                mask = (block + nothing) < last
            tiles = load_tiles(row_ptr + block * (16 * BITS), mask, BITS, 1)
            for s in tl.static_range(128 // SPAN):
                dot = _span_sum(
                    tiles, x_ptr, high_ptr, block, last, A_BYTES, BITS, s * SPAN, SPAN, EVEN,
                    BLOCK_N, BLOCK_M,
                )  # fmt: skip
                group = (block * 128 + s * SPAN) // GROUP
                if EVEN:
                    scale = tl.load(scale_ptr + group)
                else:
                    here = mask & ((group + nothing) < n_groups)
                    scale = tl.load(scale_ptr + group, mask=here, other=0)
                if WIDE:
                    acc += dot.to(tl.int64) * scale.to(tl.int64)
                else:
                    acc += dot * scale.to(tl.int32)
    return acc


@jit
def _less_zeros(
    acc, sum_ptr, scale_ptr, zero_ptr, minimum_ptr, n_groups, A_BYTES: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, OFFSETS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``acc`` less each group's scale times zero point, less its offset, times the activations'
    sum, and with what codes less 128 lack."""
    # loads of several groups under way at once
    for group in tl.range(0, n_groups, loop_unroll_factor=UNROLL):
        scale = tl.load(scale_ptr + group).to(tl.int32)
        zero = tl.load(zero_ptr + group).to(tl.int32)
        total = tl.load(sum_ptr + group)
        if BITS == 8:
            zero -= 256
        less = (scale * zero).to(acc.dtype)
        if OFFSETS:
            less -= tl.load(minimum_ptr + group).to(acc.dtype)
        acc -= less * total.to(acc.dtype)
        if BITS == 8 and A_BYTES == 2:
            # the bytes' sum is that of the activations less 128 each
            acc -= (scale * (256 * 128 * GROUP)).to(acc.dtype)
    return acc


@jit
def gemm_kernel(
    x_ptr, w_ptr, scale_ptr, zero_ptr, minimum_ptr, sum_ptr, offset_ptr, o_ptr, work_ptr,
    ticket_ptr, M, N, n_blocks, n_groups, shift, split_blocks, stride_x,
    A_BYTES: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSETS: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """``o[m, n]`` of ``M`` tokens and ``N`` rows.

    ``x`` int8 byte rows ``[A_BYTES * M, stride_x]`` (:mod:`~lutra_kernels.layout`), ``w`` int8
    B128 ``[N, 16 * BITS * n_blocks]``, ``scale`` and ``zero`` unsigned ``[N, n_groups]``,
    ``minimum`` int32 of this shape (``OFFSETS`` only), ``sum`` int32 ``[M, n_groups]``, ``offset``
    int64 ``[N]`` (16-bit activations only), ``o`` int32 ``[M, N]``, ``work`` int32 or, ``WIDE``,
    int64 ``[M, N]`` and ``ticket`` int32 per tile, zeros before and after (``SPLIT`` above 1 only).
    ``GROUP`` 0 is ternary. ``EVEN``: no step of ``BLOCK_B`` blocks and no group hangs over.
    """
    pid_n, pid_m, pid_k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.minimum(offs_n, N - 1).to(tl.int64)[:, None]
    tokens = tl.minimum(offs_m, M - 1).to(tl.int64)[None, :]
    row_ptr = w_ptr + rows * (n_blocks * 16 * BITS)
    low_ptr = x_ptr + tokens * stride_x
    high_ptr = low_ptr + tl.cast(M, tl.int64) * stride_x
    first = pid_k * split_blocks
    last = tl.minimum(first + split_blocks, n_blocks)
    if GROUP == 0:
        acc = _ternary(
            low_ptr, high_ptr, row_ptr, first, last, A_BYTES, EVEN, BLOCK_N, BLOCK_M, BLOCK_B
        )
        if WIDE:
            acc = acc.to(tl.int64)
        acc = 2 * acc
        if pid_k == 0:
            acc -= 2 * tl.load(sum_ptr + tokens)
    else:
        acc = _grouped(
            low_ptr, high_ptr, row_ptr, scale_ptr + rows * n_groups, first, last, n_groups,
            A_BYTES, BITS, GROUP, WIDE, EVEN, BLOCK_N, BLOCK_M, BLOCK_B,
        )  # fmt: skip
        acc = 2 * acc
        if pid_k == 0:
            acc = _less_zeros(
                acc, sum_ptr + tokens * n_groups, scale_ptr + rows * n_groups,
                zero_ptr + rows * n_groups,
                minimum_ptr + rows * n_groups if OFFSETS else minimum_ptr, n_groups, A_BYTES, BITS,
                GROUP, OFFSETS, 1 if BLOCK_M > 32 else 4,
            )  # fmt: skip
    if A_BYTES == 2:
        if pid_k == 0:
            acc += tl.load(offset_ptr + rows).to(acc.dtype)
    at = offs_m.to(tl.int64)[None, :] * N + offs_n[:, None]
    mask = (offs_m < M)[None, :] & (offs_n < N)[:, None]
    if SPLIT == 1:
        tl.store(o_ptr + at, round_shift_right(acc, shift), mask=mask)
    else:
        tl.atomic_add(work_ptr + at, acc, mask=mask, sem="relaxed")
        tl.debug_barrier()
        tile = ticket_ptr + pid_m * tl.num_programs(0) + pid_n
        if tl.atomic_add(tile, 1, sem="acq_rel") == SPLIT - 1:
            total = tl.load(work_ptr + at, mask=mask, other=0, cache_modifier=".cg")
            tl.store(o_ptr + at, round_shift_right(total, shift), mask=mask)
            tl.store(work_ptr + at, tl.zeros((BLOCK_N, BLOCK_M), total.dtype), mask=mask)
            tl.store(tile, 0)


class Workspace:
    """Memory that programs of a split depth share; zeros between launches.

    One stream's launches may use the same one.
    """

    def __init__(self, outputs: int, tiles: int) -> None:
        self._sums = zeros([outputs], np.int64)
        self._tickets = zeros([tiles], np.int32)

    def arrays(self, outputs: int, tiles: int) -> tuple[Array, Array]:
        """Sums and tickets; grown when too small."""
        if outputs > self._sums.shape[0]:
            self._sums = zeros([outputs], np.int64)
        if tiles > self._tickets.shape[0]:
            self._tickets = zeros([tiles], np.int32)
        return self._sums, self._tickets


def gemm(
    a: Activations,
    w: Matrix,
    tile: Tile | None = None,
    out: Array | None = None,
    workspace: Workspace | None = None,
) -> Array:
    """``acc`` of any number of tokens: int32 ``[M, N]``.

    Rows of several matrices that share their activations are one matrix, and one launch. A graph of
    launches needs a ``workspace`` that is large enough from its start.
    """
    check_operands(a, w)
    tile = tile or tile_of("gemm", a, w)
    o = empty([a.m, w.n], np.int32) if out is None else out
    split_blocks = cdiv(cdiv(w.n_blocks, tile.split), tile.block_b) * tile.block_b
    split = cdiv(w.n_blocks, split_blocks)
    grid = (cdiv(w.n, tile.block_n), cdiv(a.m, tile.block_m), split)
    wide = w.is_wide(a.a_bits)
    work = tickets = None
    if split > 1:
        workspace = workspace or Workspace(a.m * w.n, grid[0] * grid[1])
        work, tickets = workspace.arrays(a.m * w.n, grid[0] * grid[1])
        work = work if wide else as_dtype(work, np.int32)
    gemm_kernel[grid](
        a.rows, as_dtype(w.codes, np.int8), w.scale, w.zero, w.minimum, a.sums, w.offset, o, work,
        tickets, a.m, w.n, w.n_blocks, w.n_groups, w.shift, split_blocks, w.n_blocks * BLOCK,
        A_BYTES=a.a_bytes, BITS=w.bits, GROUP=w.group, OFFSETS=w.minimum is not None, WIDE=wide,
        EVEN=w.k % BLOCK == 0 and w.n_blocks % tile.block_b == 0, SPLIT=split, BLOCK_N=tile.block_n,
        BLOCK_M=tile.block_m, BLOCK_B=tile.block_b, num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    return o

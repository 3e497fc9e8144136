"""Products by table lookup instead of multiplication, the comparison beside dp4a.

A nibble of packed codes is 4, 2 or 1 weights of 1, 2 or 4 bits, so for each nibble position of a
row one table of 16 sums serves every row: no weight is unpacked. Tables are int16: four activations
of 8 bits, or one times 15, fit. One kernel builds them, one looks up; the rest is as in
:mod:`.gemv`.

Source: T-MAC, arXiv 2407.00088, and LUT Tensor Core, arXiv 2408.06003, whose tables are of sums of
activations by bits; here a table is indexed by a nibble as it lies in memory.
"""

import numpy as np
import triton.language as tl

from lutra_kernels.arith.fixed import round_shift_right
from lutra_kernels.arrays import Array, empty
from lutra_kernels.jit import jit
from lutra_kernels.layout import Activations, cdiv
from lutra_kernels.matmul.matrix import Matrix
from lutra_kernels.matmul.operands import check_operands

__all__ = ["lut_gemv", "lut_kernel", "table_kernel"]

_BLOCK_N, _BLOCK_T = 16, 32


@jit
def table_kernel(x_ptr, t_ptr, BITS: tl.constexpr):
    """Tables of one block of 128: int8 ``[128 * n_blocks]`` to int16 ``[n_blocks, 16 * BITS, 2,
    16]`` by byte, nibble (the low one first) and code."""
    block = tl.program_id(0)
    BYTES: tl.constexpr = 16 * BITS
    t = tl.arange(0, BYTES)[:, None]
    code = tl.arange(0, 16)[None, :]
    for nibble in tl.static_range(2):
        total = tl.zeros((BYTES, 16), tl.int32)
        for i in tl.static_range(4 // BITS):
            # the weight at bits BITS * i of this nibble
            if BITS == 4:
                k = (t // 32) * 64 + 32 * nibble + t % 32
            else:
                field = 8 // BITS - 1 - (nibble * (4 // BITS) + i)
                k = field * BYTES + t
            x = tl.load(x_ptr + block * 128 + k).to(tl.int32)
            total += ((code >> (BITS * i)) & ((1 << BITS) - 1)) * x
        at = t_ptr + ((block * BYTES + t) * 2 + nibble) * 16 + code
        tl.store(at, total.to(tl.int16))


@jit
def lut_kernel(
    t_ptr, w_ptr, scale_ptr, zero_ptr, sum_ptr, o_ptr, N, n_bytes, n_groups, shift,
    BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """``o`` int32 ``[N]`` of one token. ``t`` from :func:`table_kernel`, ``w`` uint8 ``[N,
    n_bytes]``, ``scale`` and ``zero`` unsigned ``[N, n_groups]``, ``sum`` int32 ``[n_groups]``."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.minimum(offs_n, N - 1).to(tl.int64)[:, None]
    t = tl.arange(0, BLOCK_T)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_T), tl.int64)
    for start in range(0, n_bytes, BLOCK_T):
        byte = start + t
        w = tl.load(w_ptr + rows * n_bytes + byte).to(tl.int32)
        low = tl.load(t_ptr + byte * 32 + (w & 15)).to(tl.int32)
        high = tl.load(t_ptr + byte * 32 + 16 + (w >> 4)).to(tl.int32)
        if GROUP == 0:
            acc += low + high
        else:
            # all weights of a byte lie in one group: GROUP is a multiple of 128
            group = byte // (16 * BITS) * 128 // GROUP
            scale = tl.load(scale_ptr + rows * n_groups + group).to(tl.int32)
            acc += (scale * (low + high)).to(tl.int64)
    total = 2 * tl.sum(acc, 1)
    if GROUP == 0:
        total -= 2 * tl.load(sum_ptr)
    else:
        for group in range(0, n_groups):
            scale = tl.load(scale_ptr + rows * n_groups + group).to(tl.int64)
            zero = tl.load(zero_ptr + rows * n_groups + group).to(tl.int64)
            total -= tl.sum(scale * zero, 1) * tl.load(sum_ptr + group)
    tl.store(o_ptr + offs_n, round_shift_right(total, shift), mask=offs_n < N)


def lut_gemv(a: Activations, w: Matrix) -> Array:
    """``acc`` int32 ``[1, N]`` of one token by lookups; codes of 1, 2 or 4 bits."""
    check_operands(a, w)
    if w.minimum is not None:
        raise ValueError("lut_gemv takes no offsets of groups")
    if a.m != 1 or a.a_bits != 8:
        raise ValueError(f"lut_gemv takes one token of 8 bits, not {a.m} of {a.a_bits}")
    if w.bits not in (1, 2, 4):
        raise ValueError(f"lut_gemv takes codes of 1, 2 or 4 bits, not {w.bits}")
    if w.group % 128:
        raise ValueError(f"lut_gemv takes groups of multiples of 128, not {w.group}")
    n_bytes = w.n_blocks * 16 * w.bits
    tables = empty([n_bytes, 2, 16], np.int16)
    table_kernel[(w.n_blocks,)](a.rows, tables, BITS=w.bits, num_warps=4)
    o = empty([1, w.n], np.int32)
    lut_kernel[(cdiv(w.n, _BLOCK_N),)](
        tables, w.codes, w.scale, w.zero, a.sums, o, w.n, n_bytes, w.n_groups, w.shift,
        BITS=w.bits, GROUP=w.group, BLOCK_N=_BLOCK_N, BLOCK_T=min(_BLOCK_T, 16 * w.bits),
        num_warps=4,
    )  # fmt: skip
    return o

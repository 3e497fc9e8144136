"""Products with very many tokens: weights expanded to int8 once, then a plain int8 product.

Ternary weights expand to themselves. Twice a grouped weight, ``scale * (2 code - zero)``, is an
integer of more than 8 bits; it expands to signed digits in base 256, one int8 matrix each, so that
any int8 product does the rest: cuBLAS by ``torch._int_mm``. Which of this and :mod:`.gemm` is
faster is for measurement to say.
"""

from importlib import import_module

import numpy as np
import triton.language as tl

from lutra_kernels.arith.fixed import round_shift_right
from lutra_kernels.arrays import Array, HostArray, download, empty, zeros
from lutra_kernels.jit import jit
from lutra_kernels.layout import BLOCK, Activations, cdiv
from lutra_kernels.matmul.matrix import Matrix
from lutra_kernels.matmul.operands import as_dtype, check_operands
from lutra_kernels.matmul.slices import load_tiles, slice_codes

__all__ = ["combine_kernel", "expand", "expand_kernel", "expanded_product", "n_digits"]

_BLOCK_N = 32
_BLOCK = 1024
_ROWS = 8  # what cuBLAS wants of an int8 matrix
_M_MIN = 17  # what torch._int_mm takes at least


@jit
def expand_kernel(
    w_ptr, scale_ptr, zero_ptr, o_ptr, N, padded_n, n_blocks, n_groups, BITS: tl.constexpr,
    GROUP: tl.constexpr, DIGITS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One block of 128 weights of ``BLOCK_N`` rows: B128 int8 ``[N, 16 * BITS * n_blocks]`` to
    digits int8 ``[DIGITS, padded_n, 128 * n_blocks]``, least significant first."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    block = tl.program_id(1)
    rows = tl.minimum(offs_n, N - 1).to(tl.int64)[:, None]
    i = tl.arange(0, 32)
    tiles = load_tiles(w_ptr + rows * (n_blocks * 16 * BITS) + block * (16 * BITS), None, BITS, 1)
    stride = tl.cast(padded_n, tl.int64) * n_blocks * 128
    for part in tl.static_range(4):
        value = slice_codes(tiles, part, BITS, 1).to(tl.int32)
        if BITS == 8:
            value += 128
        k = block * 128 + part * 32 + i
        if GROUP == 0:
            value -= 1
        else:
            group = (k // GROUP)[None, :]
            scale = tl.load(scale_ptr + rows * n_groups + group, mask=group < n_groups, other=0)
            zero = tl.load(zero_ptr + rows * n_groups + group, mask=group < n_groups, other=0)
            value = scale.to(tl.int32) * (2 * value - zero.to(tl.int32))
        at = o_ptr + rows * (n_blocks * 128) + k[None, :]
        for digit in tl.static_range(DIGITS):
            low = ((value + 128) & 255) - 128
            tl.store(at + digit * stride, low.to(tl.int8), mask=(offs_n < N)[:, None])
            value = (value - low) >> 8


@jit
def combine_kernel(
    p_ptr, o_ptr, N, padded_n, shift, DIGITS: tl.constexpr, TERNARY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Products int32 ``[DIGITS, M, padded_n]`` put together and rounded: int32 ``[M, N]``."""
    m = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    part = tl.num_programs(0).to(tl.int64) * padded_n
    total = tl.zeros((BLOCK,), tl.int64)
    for digit in tl.static_range(DIGITS):
        at = p_ptr + part * digit + m * padded_n + n
        total += tl.load(at, mask=n < N, other=0).to(tl.int64) << (8 * digit)
    if TERNARY:
        total = 2 * total
    tl.store(o_ptr + m * N + n, round_shift_right(total, shift), mask=n < N)


def n_digits(w: Matrix, scale_peak: int = 255) -> int:
    """Digits of twice a weight, whose scale is at most ``scale_peak``."""
    if w.group == 0:
        return 1
    peak, digits = scale_peak * 2 * ((1 << w.bits) - 1), 1
    # the largest number with this many digits of -128..127
    while peak > sum(127 << (8 * i) for i in range(digits)):
        digits += 1
    return digits


def expand(w: Matrix, digits: int) -> Array:
    """Digits of the doubled weights, or ternary weights: int8 ``[digits, padded N, 128 *
    n_blocks]``, rows filled up with zeros to a multiple of 8."""
    padded_n = cdiv(w.n, _ROWS) * _ROWS
    o = (empty if padded_n == w.n else zeros)([digits, padded_n, w.n_blocks * BLOCK], np.int8)
    expand_kernel[(cdiv(w.n, _BLOCK_N), w.n_blocks)](
        as_dtype(w.codes, np.int8), w.scale, w.zero, o, w.n, padded_n, w.n_blocks, w.n_groups,
        BITS=w.bits, GROUP=w.group, DIGITS=digits, BLOCK_N=_BLOCK_N, num_warps=4,
    )  # fmt: skip
    return o


def _int_mm(rows: Array, digit: int, weights: Array) -> Array:
    """``rows @ weights[digit].T`` in int32."""
    if isinstance(rows, HostArray):
        x, w = download(rows).astype(np.int64), download(weights)[digit].astype(np.int64)
        return HostArray(np.ascontiguousarray((x @ w.T).astype(np.int32)))
    torch = import_module("torch")
    return torch._int_mm(rows, weights[digit].t())


def expanded_product(
    a: Activations, w: Matrix, weights: Array | None = None, out: Array | None = None
) -> Array:
    """``acc`` int32 ``[M, N]`` of activations of 8 bits, 17 tokens or more.

    ``weights`` from :func:`expand`, if they are kept; otherwise they are expanded for this product.
    """
    check_operands(a, w)
    if a.a_bits != 8:
        raise ValueError("an expanded product takes activations of 8 bits, not 16")
    if w.minimum is not None:
        raise ValueError("an expanded product takes no offsets of groups")
    if a.m < _M_MIN:
        raise ValueError(f"an expanded product takes {_M_MIN} tokens or more, not {a.m}")
    if weights is None:
        weights = expand(w, n_digits(w, scale_peak(w)))
    digits = weights.shape[0]
    parts = [_int_mm(a.rows, digit, weights) for digit in range(digits)]
    if isinstance(parts[0], HostArray):
        products: Array = HostArray(np.stack([download(part) for part in parts]))
    else:
        products = import_module("torch").stack(parts)
    o = empty([a.m, w.n], np.int32) if out is None else out
    combine_kernel[(a.m, cdiv(w.n, _BLOCK))](
        products,
        o,
        w.n,
        weights.shape[1],
        w.shift,
        DIGITS=digits,
        TERNARY=w.group == 0,
        BLOCK=_BLOCK,
    )
    return o


def scale_peak(w: Matrix) -> int:
    """The largest scale that the matrix's scales could hold."""
    if w.scale is None:
        return 1
    return 255 if "uint8" in str(w.scale.dtype) else 65535

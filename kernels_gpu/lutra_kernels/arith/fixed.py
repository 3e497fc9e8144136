"""The token path's roundings inside kernels; model: :mod:`lutra_golden.arith.fixed`."""

import triton.language as tl

from lutra_kernels.jit import jit

__all__ = ["bit_length", "note", "round_shift", "round_shift_right", "saturate"]


@jit
def round_shift_right(x, n):
    """``x * 2**-n`` rounded half up, for ``0 <= n``; ``n`` at most the width of ``x``."""
    # floor(floor(x / 2**(n - 1)) / 2 + 1/2): nothing is added before bits are lost
    return tl.where(n > 0, ((x >> (tl.maximum(n, 1) - 1)) + 1) >> 1, x)


@jit
def round_shift(x, n):
    """``x * 2**-n`` rounded half up; exact for ``n <= 0``. ``x`` int64, ``n`` in -62..63."""
    return tl.where(n > 0, round_shift_right(x, n), x << tl.maximum(-n, 0))


@jit
def saturate(x, WIDTH: tl.constexpr):
    """``x`` clamped to a signed number of ``WIDTH`` bits."""
    # a constant of a module on the right of a shift is not understood by the interpreter
    limit: tl.constexpr = tl.constexpr(1) << (WIDTH - 1)
    return tl.minimum(tl.maximum(x, -limit), limit - 1)


@jit
def bit_length(x):
    """Bits of non-negative int64 numbers, int32; zero for zero."""
    length = (x != 0).to(tl.int32)
    for i in tl.static_range(6):
        high = (x >> (32 >> i)) != 0
        x = tl.where(high, x >> (32 >> i), x)
        length += tl.where(high, 32 >> i, 0)
    return length


@jit
def note(flag_ptr, left):
    """Set the flag of saturation if any element of ``left``, of two dimensions, is true."""
    seen = tl.max(tl.max(left.to(tl.int32), 1), 0)
    tl.store(flag_ptr, seen, mask=seen != 0)

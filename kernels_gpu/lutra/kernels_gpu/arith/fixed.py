"""The token path's roundings inside kernels; model: :mod:`lutra.sim.golden.arith.fixed`."""

import triton.language as tl

from lutra.kernels_gpu.jit import jit

__all__ = ["round_shift", "round_shift_right", "saturate"]


@jit
def round_shift_right(x, n):
    """``x * 2**-n`` rounded half up, for ``0 <= n``; ``n`` below the width of ``x``."""
    below = tl.maximum(n - 1, 0)
    rounded = (x >> n) + ((x >> below) & 1)
    return tl.where(n > 0, rounded, x)


@jit
def round_shift(x, n):
    """``x * 2**-n`` rounded half up; exact for ``n <= 0``. ``x`` int64, ``n`` in -62..63."""
    right = tl.maximum(n, 1)
    left = tl.maximum(-n, 0)
    rounded = (x >> right) + ((x >> (right - 1)) & 1)
    return tl.where(n > 0, rounded, x << left)


@jit
def saturate(x, WIDTH: tl.constexpr):
    """``x`` clamped to a signed number of ``WIDTH`` bits."""
    low: tl.constexpr = -(1 << (WIDTH - 1))
    high: tl.constexpr = (1 << (WIDTH - 1)) - 1
    return tl.minimum(tl.maximum(x, low), high)

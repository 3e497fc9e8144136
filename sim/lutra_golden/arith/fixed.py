"""Rounding, saturation and exact integer matrix products: the only ones the token path uses."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Int", "Saturation", "bit_length", "exact_matmul", "round_shift", "saturate"]

Int = NDArray[np.int64]


class Saturation:
    """The flag of the token path: ``seen`` once a value has left its range, until it is cleared."""

    def __init__(self) -> None:
        self.seen = False

    def note(self, left: ArrayLike) -> None:
        """Set the flag if any element of ``left`` is true."""
        self.seen |= bool(np.any(left))


def round_shift(x: ArrayLike, n: ArrayLike) -> Int:
    """Return ``x * 2**-n`` rounded half up (towards plus infinity on a tie); exact for ``n <= 0``.

    ``x`` is any signed integer array, ``n`` the shift per element in ``[-62, 63]``; the shapes
    broadcast.
    """
    x, n = np.asarray(x, np.int64), np.asarray(n, np.int64)
    right = np.maximum(n, 1)
    # floor(x / 2**n + 1/2) without the carry that adding the half first could overflow
    rounded = (x >> right) + ((x >> (right - 1)) & 1)
    return np.where(n > 0, rounded, x << np.maximum(-n, 0))


def saturate(x: ArrayLike, width: int) -> Int:
    """Clamp ``x`` to ``signed(width)``."""
    return np.clip(np.asarray(x, np.int64), -(1 << (width - 1)), (1 << (width - 1)) - 1)


def bit_length(x: ArrayLike) -> Int:
    """Number of bits of each non-negative integer below 2**63; zero for zero."""
    x = np.asarray(x, np.int64)
    high = x >> 31
    # below 2**32 a float64 holds the integer exactly, so frexp's exponent is its bit length
    length_high = np.frexp(high.astype(np.float64))[1].astype(np.int64)
    length_low = np.frexp((x & 0x7FFFFFFF).astype(np.float64))[1].astype(np.int64)
    return np.where(high > 0, length_high + 31, length_low)


def exact_matmul(a: Int, b: NDArray[np.floating] | Int) -> Int:
    """Return the integer product ``a @ b`` of an integer ``a`` and an integer-valued ``b``.

    NumPy has no fast integer matrix product; this one uses the floating-point unit as an integer
    adder. Every partial sum stays below 2**24 (float32 ``b``) or 2**53 (otherwise), where floating
    point is integer arithmetic: no rounding exists, so the order of the sum cannot matter. A
    caller that passes float32 promises the bound; the packer checks it.
    """
    kind = np.float32 if b.dtype == np.float32 else np.float64
    return (a.astype(kind) @ b.astype(kind, copy=False)).astype(np.int64)

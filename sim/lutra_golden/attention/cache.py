"""Keys and values as bytes of the KV cache."""

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int

__all__ = ["KV_WIDTHS", "kv_bytes", "kv_elements"]

KV_WIDTHS = (8, 4)
"""Bits that an element of the KV cache may have."""


def kv_bytes(x: Int, width: int) -> NDArray[np.uint8]:
    """Keys or values ``[..., head_dim]`` as bytes ``[..., head_dim * width / 8]``.

    Of 8 bits, one to a byte. Of 4 bits, two: dimension ``2 i`` in the lower half of byte ``i``,
    ``2 i + 1`` in the upper half. So dimension ``d`` begins at bit ``width * d`` of the row.
    """
    if width == 8:
        return x.astype(np.int8).view(np.uint8)
    even, odd = x[..., 0::2] & 15, x[..., 1::2] & 15
    return (even | odd << 4).astype(np.uint8)


def kv_elements(data: NDArray[np.uint8], width: int) -> Int:
    """Inverse of :func:`kv_bytes`."""
    if width == 8:
        return data.view(np.int8).astype(np.int64)
    pairs = np.stack([data & 15, data >> 4], axis=-1).astype(np.int64)  # [..., bytes, 2]
    return ((pairs ^ 8) - 8).reshape(*data.shape[:-1], 2 * data.shape[-1])

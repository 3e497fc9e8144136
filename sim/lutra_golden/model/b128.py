"""B128, the canonical layout of packed codes: rows in blocks of 128 weights along the depth.

Codes are unsigned. Those of 1, 2 or 4 bits are one plane, those of 3, 5, 6 and 8 bits two: 2 + 1,
4 + 1, 4 + 2 and 4 + 4, the plane of the low bits first. In a block of a plane lie

- 4 bits: 64 bytes, byte ``32 b + t`` holds weight ``64 b + t`` (low) and ``64 b + 32 + t`` (high);
- 2 bits: 32 bytes, byte ``t`` holds weights ``t``, ``32 + t``, ``64 + t``, ``96 + t``, first on
  top;
- 1 bit: 16 bytes, byte ``t`` holds weights ``t``, ``16 + t``, ... ``112 + t``, first on top.

The planes of a block follow each other; a depth that is no multiple of 128 is filled with code 0.
Two-bit blocks are those of bitnet.cpp's I2_S on x86.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "CODE_BITS", "from_b128", "row_bytes", "to_b128"]

BLOCK = 128
"""Weights of a block."""
Bytes = NDArray[np.uint8]
_WEIGHTS = 1 << 20  # that are packed at a time: few enough for a processor's cache
_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (4, 4)}
CODE_BITS = tuple(_PLANES)
"""Bits of codes that there is a layout for."""


def row_bytes(k: int, bits: int) -> int:
    """Bytes of a row of ``k`` weights."""
    return -(-k // BLOCK) * BLOCK * bits // 8


def to_b128(codes: Bytes, bits: int) -> Bytes:
    """Pack codes ``[N, K]`` to ``[N, row_bytes(K, bits)]``."""
    (n, k), blocks = codes.shape, -(-codes.shape[1] // BLOCK)
    packed = np.empty((n, blocks, BLOCK * bits // 8), np.uint8)
    n_rows = max(_WEIGHTS // max(k, 1), 1)
    for rows in (slice(first, first + n_rows) for first in range(0, n, n_rows)):
        padded = np.ascontiguousarray(codes[rows])
        if k % BLOCK:
            padded = np.zeros((len(padded), blocks * BLOCK), np.uint8)
            padded[:, :k] = codes[rows]
        first, low = 0, 0
        for width in _PLANES[bits]:
            size = BLOCK * width // 8
            plane = _pack(padded.reshape(-1, blocks, BLOCK), low, width)
            packed[rows, :, first : first + size] = plane
            first, low = first + size, low + width
    return packed.reshape(n, row_bytes(k, bits))


def from_b128(data: Bytes, bits: int, k: int) -> Bytes:
    """Inverse of :func:`to_b128`: codes ``[N, k]``."""
    n = len(data)
    blocks = data.reshape(n, -(-k // BLOCK), BLOCK * bits // 8)
    codes = np.zeros((n, blocks.shape[1], BLOCK), np.uint8)
    first, low = 0, 0
    for width in _PLANES[bits]:
        size = BLOCK * width // 8
        codes |= _unpack(blocks[:, :, first : first + size], width) * np.uint8(1 << low)
        first, low = first + size, low + width
    return codes.reshape(n, blocks.shape[1] * BLOCK)[:, :k]


def _pack(codes: Bytes, low: int, width: int) -> Bytes:
    """The bits from ``low`` on of ``[N, blocks, 128]`` as the bytes of a plane."""
    n, blocks, _ = codes.shape
    per_byte, size = 8 // width, BLOCK * width // 8
    cell = f"V{min(32, size)}"  # NumPy copies large elements faster than rows of some bytes
    fields = codes.view(cell).reshape(n, blocks, -1, per_byte)
    packed = None
    for i in range(per_byte):
        field = fields[..., i].copy().view(np.uint8)
        if low:
            field >>= np.uint8(low)
        field &= np.uint8((1 << width) - 1)
        # NumPy multiplies bytes ten times as fast as it shifts them to the left
        field *= np.uint8(1 << (4 * i if width == 4 else 8 - width * (i + 1)))
        packed = field if packed is None else np.bitwise_or(packed, field, out=packed)
    assert packed is not None
    return packed.reshape(n, blocks, size)


def _unpack(data: Bytes, width: int) -> Bytes:
    """Inverse of :func:`_pack`."""
    n, blocks, size = data.shape
    if width == 4:
        beats = data.reshape(n, blocks, 2, 1, 32)
        return np.concatenate([beats & np.uint8(15), beats >> np.uint8(4)], axis=3).reshape(
            n, blocks, BLOCK
        )
    per_byte, mask = 8 // width, np.uint8((1 << width) - 1)
    fields = [data >> np.uint8(8 - width * (i + 1)) & mask for i in range(per_byte)]
    return np.stack(fields, axis=2).reshape(n, blocks, per_byte * size)

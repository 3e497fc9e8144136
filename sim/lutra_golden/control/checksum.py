"""Checksum of memory: a polynomial over GF(2**64), half a word per cycle in hardware."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHECKSUM_TAPS", "CHECKSUM_WIDTH", "checksum"]

CHECKSUM_WIDTH = 64
CHECKSUM_TAPS = 0b11011
"""``x**64`` in the field, a bit per power of x: x**64 + x**4 + x**3 + x + 1 is primitive."""

_WORD_BYTES = CHECKSUM_WIDTH // 8


def checksum(data: NDArray[np.uint8]) -> int:
    """Checksum of bytes, which are whole words of 64 bits, least significant byte first.

    It is 0 in the beginning, and each word in turn makes it ``x * checksum + word`` in GF(2**64).
    Any change of a single word is seen, and so are two words that changed places; a change of a
    word is not if the next one changes by x times as much.

    A product by x is a shift and an exclusive or: a bit of the sum has three terms at most. In
    NumPy pairs of neighbours become one word, by products with x, x**2, x**4, ..., until one is
    left.
    """
    if len(data) % _WORD_BYTES:
        raise ValueError(f"data must be whole words of {_WORD_BYTES} bytes, not {len(data)} bytes")
    words, factor = np.frombuffer(data, "<u8").astype(np.uint64), 2
    while len(words) > 1:
        if len(words) % 2:
            # a zero in front changes nothing
            words = np.concatenate([np.zeros(1, np.uint64), words])
        words = _product(words[::2], factor) ^ words[1::2]
        factor = int(_product(np.array([factor], np.uint64), factor)[0])
    return int(words[0]) if len(words) else 0


def _product(words: NDArray[np.uint64], factor: int) -> NDArray[np.uint64]:
    """Products of words by a factor in GF(2**64)."""
    result = np.zeros_like(words)
    while factor:
        if factor & 1:
            result ^= words
        wrapped = words >> np.uint64(CHECKSUM_WIDTH - 1)
        words = (words << np.uint64(1)) ^ (wrapped * np.uint64(CHECKSUM_TAPS))
        factor >>= 1
    return result

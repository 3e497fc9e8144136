"""Checksum of memory: against its definition, word by word, and what it sees."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lutra_golden.control.checksum import checksum

FIELD = (1 << 64) | 0b11011


def by_definition(data: bytes) -> int:
    value = 0
    for at in range(0, len(data), 8):
        value <<= 1
        if value >> 64:
            value ^= FIELD
        value ^= int.from_bytes(data[at : at + 8], "little")
    return value


def random_bytes(n_words: int) -> NDArray[np.uint8]:
    return np.random.default_rng(n_words).integers(0, 256, 8 * n_words, np.uint8)


@pytest.mark.parametrize("n_words", [0, 1, 2, 3, 7, 8, 63, 64, 65, 129, 1000])
def test_it_is_what_the_definition_says(n_words: int) -> None:
    data = random_bytes(n_words)
    assert checksum(data) == by_definition(data.tobytes())


def test_published_values() -> None:
    """The generator x is of full order: x**(2**64 - 1) is 1, and x**((2**64 - 1) / p) is not."""

    def product(a: int, b: int) -> int:
        value = 0
        while b:
            value ^= a * (b & 1)
            a <<= 1
            a ^= FIELD * (a >> 64)
            b >>= 1
        return value

    def power(n: int) -> int:
        value, square = 1, 2
        while n:
            value = product(value, square) if n & 1 else value
            square, n = product(square, square), n >> 1
        return value

    order = (1 << 64) - 1
    primes = (3, 5, 17, 257, 641, 65537, 6700417)
    assert np.prod(primes, dtype=object) == order
    assert power(order) == 1
    assert all(power(order // prime) != 1 for prime in primes)


def test_changes_are_seen() -> None:
    data = random_bytes(64)
    right = checksum(data)
    for bit in range(0, 8 * len(data), 11):
        other = data.copy()
        other[bit // 8] ^= 1 << bit % 8
        assert checksum(other) != right
    words = data.view(np.uint64)
    swapped, inverted = words.copy(), words.copy()
    swapped[[3, 44]] = swapped[[44, 3]]
    inverted[8:16] = ~inverted[8:16]
    assert right not in {checksum(swapped.view(np.uint8)), checksum(inverted.view(np.uint8))}


def test_the_change_that_is_not_seen() -> None:
    """A change of a word, and x times it of the next."""
    words = random_bytes(64).view(np.uint64)
    right = checksum(words.view(np.uint8))
    words[5:7] ^= np.array([0x10, 0x20], np.uint64)
    assert checksum(words.view(np.uint8)) == right


def test_whole_words_only() -> None:
    message = "^data must be whole words of 8 bytes, not 12 bytes$"
    with pytest.raises(ValueError, match=message):
        checksum(np.zeros(12, np.uint8))

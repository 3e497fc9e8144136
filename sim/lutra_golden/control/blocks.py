"""Blocks of 32-bit words in memory: descriptors of runs, and their results."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["WORD_WIDTH", "Word", "pack", "pack_words", "unpack", "unpack_words"]

WORD_WIDTH = 32


@dataclass(frozen=True)
class Word:
    """A value of ``width`` bits at word ``first`` of a block, low word first."""

    first: int
    doc: str
    width: int = WORD_WIDTH

    @property
    def count(self) -> int:
        """Words that it takes."""
        return -(-self.width // WORD_WIDTH)


def pack(layout: Mapping[str, Word], n_bytes: int, values: Mapping[str, int]) -> bytes:
    """Block of ``n_bytes`` with ``values``; what is left out, or lies between them, is zero."""
    block = 0
    if unknown := values.keys() - layout:
        raise ValueError(f"a block of {sorted(layout)} has no {sorted(unknown)}")
    for name, value in values.items():
        word = layout[name]
        if not 0 <= value < 1 << word.width:
            raise ValueError(f"{name} must fit {word.width} bits, not {value}")
        block |= value << WORD_WIDTH * word.first
    return block.to_bytes(n_bytes, "little")


def unpack(layout: Mapping[str, Word], data: bytes) -> dict[str, int]:
    """Inverse of :func:`pack`; bits that mean nothing are ignored."""
    block = int.from_bytes(data, "little")
    return {
        name: block >> WORD_WIDTH * word.first & ((1 << word.width) - 1)
        for name, word in layout.items()
    }


def pack_words(words: list[int]) -> bytes:
    """Words one after the other; ValueError where one does not fit."""
    for word in words:
        if not 0 <= word < 1 << WORD_WIDTH:
            raise ValueError(f"a word must fit {WORD_WIDTH} bits, not {word}")
    return np.array(words, "<u4").tobytes()


def unpack_words(data: bytes | NDArray[np.uint8]) -> list[int]:
    """Inverse of :func:`pack_words`."""
    return np.frombuffer(data, "<u4").tolist()

"""Blocks of GGUF's types with codebooks, IQ1, IQ2 and IQ3, as codes on grids.

A number of such a block stands for 4 or 8 weights, by a table. The tables hold integers, and IQ1
moves them by an eighth, so the weights of a group lie on a grid under its scale. That scale is the
block's, a float16, times an odd number of a few bits. The tables are those of the package ``gguf``:
it decodes a block whose scale is replaced by 1, and what it gives, divided by the group's factor,
are the integers, exactly.
Source: ``ggml-common.h`` and ``ggml-quants.c`` of https://github.com/ggml-org/ggml.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CODEBOOKS", "Codebook"]

_BLOCK = 256
_Bytes = NDArray[np.uint8]
_Numbers = NDArray[np.integer[Any]]
_FOUR, _LOW, _HIGH = np.uint8(4), np.uint8(0x0F), np.uint8(0xF0)


def _words(raw: _Bytes, n_bytes: int) -> _Numbers:
    return np.ascontiguousarray(raw).view(f"<u{n_bytes}")


def _nibbles(raw: _Bytes) -> _Bytes:
    """Fields of four bits, the lowest of each byte first."""
    return np.stack([raw & _LOW, raw >> _FOUR], axis=-1).reshape(*raw.shape[:-1], -1)


def _iq2_xxs(blocks: _Bytes) -> _Numbers:
    # above the signs, in every second word
    return _words(blocks[..., 2:], 4)[..., 1::2] >> 28


def _iq2_xs(blocks: _Bytes) -> _Numbers:
    return _nibbles(blocks[..., 66:])


def _iq2_s(blocks: _Bytes) -> _Numbers:
    return _nibbles(blocks[..., 74:])


def _iq3_xxs(blocks: _Bytes) -> _Numbers:
    return _words(blocks[..., 66:], 4) >> 28


def _iq3_s(blocks: _Bytes) -> _Numbers:
    return _nibbles(blocks[..., 106:])


def _iq1_s(blocks: _Bytes) -> _Numbers:
    return _words(blocks[..., 34:], 2) >> 12 & 7


def _iq1_m(blocks: _Bytes) -> _Numbers:
    fields = _words(blocks[..., 48:], 2)[..., None] >> np.array([0, 3, 6, 9], np.uint16)
    return fields.reshape(*blocks.shape[:-1], -1) & 7


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """A type with a codebook.

    With ``d`` the scale of a block and ``s`` the number of a group in it, from ``numbers`` of
    blocks ``[..., bytes]``, a weight is ``d * (2 * s + 1) * unit * (code - zero)``.
    """

    number: int
    """Of the type, in files."""
    numbers: Callable[[_Bytes], _Numbers]
    unit: float
    zero: float
    bits: int
    group: int
    scattered: bool = False
    """True if the scale is the upper quarter of the block's last four words of 16 bits, and not
    its first two bytes."""

    def halves(self, blocks: _Bytes) -> _Bytes:
        """The scale of each block as the bytes of a float16, ``[..., 2]``."""
        if not self.scattered:
            return blocks[..., :2]
        return blocks[..., -7::4] >> _FOUR | blocks[..., -5::4] & _HIGH

    def steps(self, blocks: _Bytes) -> NDArray[np.float32]:
        """Step of each group in units of its block's scale, ``[..., groups]``."""
        return (2 * self.numbers(blocks).astype(np.float32) + 1) * np.float32(self.unit)

    def codes(self, blocks: _Bytes) -> _Bytes:
        """Codes of blocks ``[..., bytes]``, as ``[..., 256]``."""
        plain, one = blocks.copy(), np.array([1], "<f2").view(np.uint8)
        if self.scattered:
            plain[..., -7::2] &= _LOW
            plain[..., -7::4] |= one << _FOUR
            plain[..., -5::4] |= one & _HIGH
        else:
            plain[..., :2] = one
        package: Any = import_module("gguf")
        kind = package.GGMLQuantizationType(self.number)
        # as one row: the package takes few rows at a time
        values: NDArray[np.float32] = package.dequantize(plain.reshape(1, -1), kind)
        groups = values.reshape(*blocks.shape[:-1], -1, self.group)
        found = groups / self.steps(blocks)[..., None] + np.float32(self.zero)
        return found.astype(np.uint8).reshape(*blocks.shape[:-1], _BLOCK)


CODEBOOKS: Mapping[str, Codebook] = {
    # 8, 25 and 43 of either sign
    "IQ2_XXS": Codebook(number=16, numbers=_iq2_xxs, unit=1 / 8, zero=43, bits=7, group=32),
    "IQ2_XS": Codebook(number=17, numbers=_iq2_xs, unit=1 / 8, zero=43, bits=7, group=16),
    "IQ2_S": Codebook(number=22, numbers=_iq2_s, unit=1 / 8, zero=43, bits=7, group=16),
    # 2, 6, 10, 14, 18, 22, 26 and 31
    "IQ3_XXS": Codebook(number=18, numbers=_iq3_xxs, unit=1 / 2, zero=31, bits=6, group=32),
    # odd numbers up to 15
    "IQ3_S": Codebook(number=21, numbers=_iq3_s, unit=2, zero=7.5, bits=4, group=32),
    # odd eighths up to 9/8: -1, 0 and 1, and an eighth more or less
    "IQ1_S": Codebook(number=19, numbers=_iq1_s, unit=1 / 4, zero=4.5, bits=4, group=32),
    "IQ1_M": Codebook(
        number=29, numbers=_iq1_m, unit=1 / 4, zero=4.5, bits=4, group=16, scattered=True
    ),
}  # fmt: skip
"""By the names of types."""

"""Number formats by their usual names: bits of a weight, bits of an activation."""

import re
from dataclasses import dataclass

__all__ = ["A_BITS", "FORMATS", "TERNARY_NAME", "W_BITS", "Format"]

W_BITS = (1, 2, 3, 4, 6, 8)
"""Bits of a weight with group scales."""
A_BITS = (8, 16)
"""Bits of an activation, signed integers with a scale per token."""
TERNARY_NAME = "1.58"
"""Bits of a ternary weight in a format's name."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """``W4A8`` and the like. ``ternary`` weights, ``W1.58``, are codes of two bits."""

    w_bits: int
    a_bits: int
    ternary: bool = False

    def __post_init__(self) -> None:
        if self.w_bits not in W_BITS:
            raise ValueError(f"w_bits must be one of {W_BITS}, not {self.w_bits}")
        if self.a_bits not in A_BITS:
            raise ValueError(f"a_bits must be one of {A_BITS}, not {self.a_bits}")
        if self.ternary and self.w_bits != 2:
            raise ValueError(f"w_bits of a ternary format must be 2, not {self.w_bits}")

    @classmethod
    def parse(cls, name: str) -> "Format":
        """The format of a name in either case; ValueError lists the names there are."""
        match = re.fullmatch(r"W([0-9.]+)A([0-9]+)", name.upper())
        if match is not None and f"W{match[1]}A{match[2]}" in FORMATS:
            ternary = match[1] == TERNARY_NAME
            return cls(
                w_bits=2 if ternary else int(match[1]), a_bits=int(match[2]), ternary=ternary
            )
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {name!r}")

    @property
    def q_max(self) -> int:
        """Largest magnitude of an activation."""
        return (1 << (self.a_bits - 1)) - 1

    def __str__(self) -> str:
        return f"W{TERNARY_NAME if self.ternary else self.w_bits}A{self.a_bits}"


FORMATS = tuple(f"W{w}A{a}" for a in A_BITS for w in (1, TERNARY_NAME, *W_BITS[1:]))
"""Names of all formats."""

"""Number formats by their usual names: bits of a weight, bits of an activation."""

import re
from dataclasses import dataclass

__all__ = ["A_BITS", "FORMATS", "GROUPS", "TERNARY_NAME", "W_BITS", "Format"]

W_BITS = (1, 2, 3, 4, 6, 8)
"""Bits of a weight with group scales."""
A_BITS = (8, 16)
"""Bits of an activation, signed integers with a scale per token."""
GROUPS = (32, 64, 128)
"""Weights that share a scale, of those that a format's name can have."""
TERNARY_NAME = "1.58"
"""Bits of a ternary weight in a format's name."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """``W4A8`` and the like. ``ternary`` weights, ``W1.58``, are codes of two bits.

    ``W1.58g128A8`` names the ``group`` of weights that share a scale; None leaves it open, and is
    one scale for all weights of a ternary matrix.
    """

    w_bits: int
    a_bits: int
    ternary: bool = False
    group: int | None = None

    def __post_init__(self) -> None:
        if self.w_bits not in W_BITS:
            raise ValueError(f"w_bits must be one of {W_BITS}, not {self.w_bits}")
        if self.a_bits not in A_BITS:
            raise ValueError(f"a_bits must be one of {A_BITS}, not {self.a_bits}")
        if self.ternary and self.w_bits != 2:
            raise ValueError(f"w_bits of a ternary format must be 2, not {self.w_bits}")
        if self.group is not None and self.group not in GROUPS:
            raise ValueError(f"group must be one of {GROUPS}, not {self.group}")

    @classmethod
    def parse(cls, name: str) -> "Format":
        """The format of a name in either case; ValueError lists the names there are."""
        match = re.fullmatch(r"W([0-9.]+)(?:G(32|64|128))?A([0-9]+)", name.upper())
        if match is not None and f"W{match[1]}A{match[3]}" in FORMATS:
            ternary = match[1] == TERNARY_NAME
            return cls(
                w_bits=2 if ternary else int(match[1]),
                a_bits=int(match[3]),
                ternary=ternary,
                group=None if match[2] is None else int(match[2]),
            )
        raise ValueError(
            f"format must be one of {', '.join(FORMATS)}, or with a group of weights as "
            f"W{TERNARY_NAME}g128A8, not {name!r}"
        )

    @property
    def q_max(self) -> int:
        """Largest magnitude of an activation."""
        return (1 << (self.a_bits - 1)) - 1

    def __str__(self) -> str:
        group = "" if self.group is None else f"g{self.group}"
        return f"W{TERNARY_NAME if self.ternary else self.w_bits}{group}A{self.a_bits}"


FORMATS = tuple(f"W{w}A{a}" for a in A_BITS for w in (1, TERNARY_NAME, *W_BITS[1:]))
"""Names of all formats."""

"""Matrices of released models' layers, stacked where they share activations."""

from dataclasses import dataclass

__all__ = ["FORMATS", "SHAPES", "Shape", "Width", "parse_width"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """``[n, k]`` weights of a model."""

    model: str
    name: str
    n: int
    k: int


SHAPES = (
    Shape(model="2b-4t", name="qkv", n=3840, k=2560),
    Shape(model="2b-4t", name="o", n=2560, k=2560),
    Shape(model="2b-4t", name="gate_up", n=13824, k=2560),
    Shape(model="2b-4t", name="down", n=2560, k=6912),
    Shape(model="llama-3-8b", name="qkv", n=6144, k=4096),
    Shape(model="llama-3-8b", name="o", n=4096, k=4096),
    Shape(model="llama-3-8b", name="gate_up", n=28672, k=4096),
    Shape(model="llama-3-8b", name="down", n=4096, k=14336),
)
"""BitNet-b1.58-2B-4T and Llama 3 8B."""


@dataclass(frozen=True, kw_only=True)
class Width:
    """Bits of a weight and group of its scales; 0 is ternary."""

    bits: int
    group: int

    @property
    def name(self) -> str:
        return f"W{self.bits}g{self.group}" if self.group else "W1.58"


FORMATS = ("W1.58", "W2g128", "W3g128", "W4g128", "W6g128", "W8g128")
"""Widths that are timed by default."""


def parse_width(name: str) -> Width:
    """``W1.58`` or ``W4g128``; ValueError says what a name looks like."""
    if name == "W1.58":
        return Width(bits=2, group=0)
    bits, found, group = name.removeprefix("W").partition("g")
    if not (name.startswith("W") and found and bits.isdigit() and group.isdigit()):
        raise ValueError(f"format must be W1.58 or like W4g128, not {name!r}")
    return Width(bits=int(bits), group=int(group))

"""Plain multipliers, the baseline: parameters and bit-exact model."""

from dataclasses import dataclass
from enum import IntEnum

from lutra_golden.arith.fixed import Int
from lutra_golden.matmul.grouped import DigitParams

__all__ = ["Adders", "MacParams"]


class Adders(IntEnum):
    """Material of dot products; the values and the order of words are the same."""

    DSP = 1
    """DSP slices of an FPGA, which multiply too; two rows share one where they fit."""
    CHAINS = 2
    """Carry chains: for the LUTs of an FPGA."""
    CELLS = 3
    """Carry-save adders: for standard cells."""


@dataclass(frozen=True, kw_only=True)
class MacParams(DigitParams):
    """Shape of the multiplier engine: ``w_width`` is 2, 4 or 8, digits are unsigned.

    ``adders`` : :class:`Adders`, what a product and its sum are made of.
    """

    kind = "mac"

    w_width: int = 4
    step_depth: int = 16
    max_planes: int = 2
    adders: Adders = Adders.DSP

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.w_width not in (2, 4, 8):
            raise ValueError(f"w_width of the mac engine must be 2, 4 or 8, not {self.w_width}")
        if self.adders not in tuple(Adders):
            raise ValueError(f"adders must be 1 (DSP), 2 (chains) or 3 (cells), not {self.adders}")

    def product(self, a: Int, digit: Int) -> Int:
        return a * digit

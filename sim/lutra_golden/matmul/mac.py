"""Plain multipliers, the baseline: parameters and bit-exact model."""

from dataclasses import dataclass
from enum import IntEnum

from lutra_golden.arith.fixed import Int
from lutra_golden.matmul.grouped import DigitParams

__all__ = ["Adders", "MacParams", "chain_latency"]

# of a DSP48E2: bits of an unsigned operand at its 27-bit port; longest cascade, which is latency
_DSP_OPERAND = 26
_DSP_CASCADE = 16


class Adders(IntEnum):
    """Material of dot products; the values and the order of words are the same."""

    DSP = 1
    """DSP slices of an FPGA, which multiply too; two rows share one where they fit."""
    CHAINS = 2
    """Carry chains: for the LUTs of an FPGA."""
    CELLS = 3
    """Carry-save adders: for standard cells."""


def chain_latency(n_terms: int, w_width: int) -> int:
    """Cycles of carry chains that add ``n_terms`` terms in each of ``w_width`` planes."""
    n_levels = (n_terms - 1).bit_length() + (w_width - 1).bit_length()
    return 1 + -(-n_levels // 2)


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

    @property
    def n_terms(self) -> int:
        """Terms of a row in a plane."""
        return self.step_depth

    @property
    def rows_per_dsp(self) -> int:
        """Rows that share a DSP slice."""
        return self._packing()[0]

    @property
    def cascade(self) -> int:
        """DSP slices of a cascade."""
        return self._packing()[1]

    @property
    def prepare_cycles(self) -> int:
        return 1

    @property
    def datapath_latency(self) -> int:
        if self.adders == Adders.DSP:
            return 2 + self.cascade + (self.step_depth // self.cascade - 1).bit_length()
        if self.adders == Adders.CHAINS:
            return chain_latency(self.n_terms, self.w_width)
        return 2

    def _packing(self) -> tuple[int, int]:
        divisors = [n for n in range(1, _DSP_CASCADE + 1) if self.step_depth % n == 0]
        for cascade in reversed(divisors):
            sum_width = self.a_width + self.w_width + (cascade - 1).bit_length()
            if sum_width + self.w_width <= _DSP_OPERAND:
                return 2, cascade
        return 1, divisors[-1]

    def product(self, a: Int, digit: Int) -> Int:
        return a * digit

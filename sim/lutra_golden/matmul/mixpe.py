"""Mixed-precision PEs: products by shift and add, one dequantisation per group.

Source: MixPE, arXiv 2411.16158, sections 3.1 (dequantisation after the group's matmul) and 3.2
(shift and add instead of multipliers).
"""

from dataclasses import dataclass

import numpy as np

from lutra_golden.arith.fixed import Int
from lutra_golden.matmul.grouped import DigitParams
from lutra_golden.matmul.mac import Adders, chain_latency

__all__ = ["MixpeParams"]


@dataclass(frozen=True, kw_only=True)
class MixpeParams(DigitParams):
    """Shape of the mixed-precision PE array: ``w_width`` is 4 or 8, digits are unsigned.

    ``adders`` : :class:`Adders`, chains or cells.
    """

    kind = "mixpe"

    w_width: int = 4
    step_depth: int = 16
    max_planes: int = 2
    adders: Adders = Adders.CHAINS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.w_width not in (4, 8):
            raise ValueError(f"w_width of the mixpe engine must be 4 or 8, not {self.w_width}")
        if self.adders not in (Adders.CHAINS, Adders.CELLS):
            raise ValueError(
                f"adders of the mixpe engine must be 2 (chains) or 3 (cells), not {self.adders}"
            )

    @property
    def n_terms(self) -> int:
        """Terms of a row in a plane: one for each pair of activations."""
        return -(-self.step_depth // 2)

    @property
    def prepare_cycles(self) -> int:
        return 1

    @property
    def datapath_latency(self) -> int:
        if self.adders == Adders.CHAINS:
            return chain_latency(self.n_terms, self.w_width)
        return 2

    def product(self, a: Int, digit: Int) -> Int:
        total = np.zeros(np.broadcast_shapes(a.shape, digit.shape), np.int64)
        for bit in range(self.w_width):
            total += ((digit >> bit) & 1) * (a << bit)
        return total

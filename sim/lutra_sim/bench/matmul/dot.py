"""Which datapath the bench of dot products is for."""

from dataclasses import dataclass

from lutra_golden.matmul.lut import LutParams
from lutra_golden.matmul.mac import MacParams
from lutra_golden.matmul.mixpe import MixpeParams
from lutra_hw.matmul.lut import LutDatapath
from lutra_hw.matmul.mac import MacDatapath
from lutra_hw.matmul.mixpe import MixpeDatapath

__all__ = ["DotShape"]


@dataclass(frozen=True)
class DotShape:
    """Parameters for :mod:`lutra_sim.bench.matmul.tb_dot`; exactly one of them is set."""

    lut: LutParams | None = None
    mac: MacParams | None = None
    mixpe: MixpeParams | None = None

    def datapath(self) -> LutDatapath | MacDatapath | MixpeDatapath:
        """The component."""
        if self.lut is not None:
            return LutDatapath(self.lut)
        if self.mac is not None:
            return MacDatapath(self.mac)
        if self.mixpe is not None:
            return MixpeDatapath(self.mixpe)
        raise ValueError("a shape must have lut, mac or mixpe parameters, not none")

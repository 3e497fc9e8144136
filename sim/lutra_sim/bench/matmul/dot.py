"""Which datapath the bench of dot products is for."""

from dataclasses import dataclass

from lutra_golden.matmul.mac import MacParams
from lutra_golden.matmul.mixpe import MixpeParams
from lutra_hw.matmul.mac import MacDatapath
from lutra_hw.matmul.mixpe import MixpeDatapath

__all__ = ["DotShape"]


@dataclass(frozen=True)
class DotShape:
    """Parameters for :mod:`lutra_sim.bench.matmul.tb_dot`; exactly one of the two is set."""

    mac: MacParams | None = None
    mixpe: MixpeParams | None = None

    def datapath(self) -> MacDatapath | MixpeDatapath:
        """The component."""
        if self.mac is not None:
            return MacDatapath(self.mac)
        if self.mixpe is not None:
            return MixpeDatapath(self.mixpe)
        raise ValueError("a shape must have mac or mixpe parameters, not none")

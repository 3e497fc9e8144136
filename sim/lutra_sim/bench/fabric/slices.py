"""Two DSP slices in a cascade, every input of which a bench can drive."""

from dataclasses import dataclass
from typing import Any

from amaranth import ClockSignal, Const, Instance, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["ADDER", "N_SLICES", "Slices", "SlicesParams"]

N_SLICES = 2
ADDER = {
    "USE_MULT": "NONE",
    "USE_SIMD": "ONE48",
    "MREG": 0,
    **dict.fromkeys(("AREG", "ACASCREG", "BREG", "BCASCREG", "CREG", "PREG"), 1),
    **dict.fromkeys(("OPMODEREG", "ALUMODEREG", "CARRYINREG", "CARRYINSELREG", "INMODEREG"), 0),
}
"""Parameters of an adder of 48 bits with one register before and one behind it."""
_INPUTS = {"A": 30, "B": 18, "C": 48, "OPMODE": 9}
_SHARED = {"ALUMODE": 4, "INMODE": 5, "CARRYIN": 1, "CARRYINSEL": 3}
_RUN = {
    **dict.fromkeys(("CEA2", "CEB2", "CEC", "CEP"), 1),
    **dict.fromkeys(("CEA1", "CEB1", "RSTA", "RSTB", "RSTC", "RSTP"), 0),
}


@dataclass(frozen=True, kw_only=True)
class SlicesParams:
    """Parameters for :mod:`lutra_sim.bench.fabric.tb_slices`.

    ``changed`` are parameters and constant inputs that are not an adder's; ``port`` is an input
    that the bench sets to ``value`` once, all else being well.
    """

    changed: dict[str, Any]
    port: str = ""
    value: int = 0


class Slices(wiring.Component):
    """DSP48E2 cells, each with the PCOUT of the one before it on PCIN, the first with zero.

    Members
    -------
    a, b, c, opmode : ``In``; of each slice.
    alumode, inmode, carryin, carryinsel : ``In``; of all slices.
    p : ``Out``; of each slice.
    """

    p: Any

    def __init__(self, params: SlicesParams) -> None:
        self.params = params
        members = {
            name.lower(): In(data.ArrayLayout(width, N_SLICES)) for name, width in _INPUTS.items()
        }
        members |= {name.lower(): In(width) for name, width in _SHARED.items()}
        super().__init__(members | {"p": Out(data.ArrayLayout(48, N_SLICES))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        changed = self.params.changed
        cascade: Any = Const(0, 48)
        for number in range(N_SLICES):
            cells = {f"p_{name}": changed.get(name, value) for name, value in ADDER.items()}
            cells |= {f"i_{name}": Const(changed.get(name, v), 1) for name, v in _RUN.items()}
            cells |= {f"i_{name}": getattr(self, name.lower())[number] for name in _INPUTS}
            cells |= {f"i_{name}": getattr(self, name.lower()) for name in _SHARED}
            cascade_o = Signal(48, name=f"cascade_{number}")
            m.submodules[f"slice_{number}"] = Instance(
                "DSP48E2",
                **cells,
                i_CLK=ClockSignal(),
                i_PCIN=cascade,
                o_P=self.p[number],
                o_PCOUT=cascade_o,
            )
            cascade = cascade_o
        return m

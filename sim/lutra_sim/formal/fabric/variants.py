"""A cell made of primitives against the same cell made of operators."""

from collections.abc import Callable
from typing import Any

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.core.fabric import Fabric
from lutra_sim.formal.property import Property

__all__ = ["TablesEqual", "Variants", "VariantsEqual"]


class Variants(wiring.Component):
    """A cell in two fabrics, with the same inputs.

    Members
    -------
    inputs of the cell.
    generic_<output>, xcup_<output> : ``Out``
    """

    def __init__(self, make: Callable[[Fabric], wiring.Component]) -> None:
        self.cells: dict[Fabric, Any] = {fabric: make(fabric) for fabric in Fabric}
        members: dict[str, Any] = {}
        for fabric, cell in self.cells.items():
            for name, member in cell.signature.members.items():
                if member.flow is In:
                    members[name] = member
                else:
                    members[f"{fabric}_{name}"] = Out(member.shape)
        super().__init__(members)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        for fabric, cell in self.cells.items():
            m.submodules[fabric.value] = cell
            for name, member in cell.signature.members.items():
                if member.flow is In:
                    m.d.comb += getattr(cell, name).eq(getattr(self, name))
                else:
                    m.d.comb += getattr(self, f"{fabric}_{name}").eq(getattr(cell, name))
        return m


class VariantsEqual(Property):
    """``o`` is the same in both fabrics."""

    def __init__(self, make: Callable[[Fabric], wiring.Component]) -> None:
        super().__init__(Variants(make))

    @property
    def depth(self) -> int:
        # what registers held before the proof began has left a pipeline by then
        return getattr(self.dut.cells[Fabric.GENERIC], "latency", 0) + 1

    def rules(self, m: Module) -> None:
        self.claim(m, "both give the same", self.dut.generic_o == self.dut.xcup_o)


class TablesEqual(VariantsEqual):
    """The same of tables, used as they ask for: while one is written each index is ``entry``, and
    nobody looks at ``o``."""

    def rules(self, m: Module) -> None:
        dut = self.dut
        for reader in (index for table in dut.index for index in table):
            self.assume(m, ~dut.en | (reader == dut.entry))
        self.claim(m, "both read the same", dut.en | (dut.generic_o == dut.xcup_o))

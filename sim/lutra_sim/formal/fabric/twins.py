"""Twins of primitives against Yosys' own models of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from amaranth import ClockSignal, Const, Instance, Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra_sim.formal.property import MODEL, Property

__all__ = ["Pairs", "RamTwin", "Twin", "carry_twin", "lut_twin"]

_RAM_PORTS = "ABCDEFGH"


class Pairs(wiring.Component):
    """Pairs of a twin and a model with the same inputs, a pair for each choice of parameters.

    Members
    -------
    inputs of the primitive.
    twin_<output>, model_<output> : ``Out``; of each pair.
    """

    def __init__(
        self,
        primitive: str,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        parameters: Sequence[Mapping[str, Any]] = ({},),
        clock: str | None = None,
    ) -> None:
        self.primitive, self.inputs, self.outputs = primitive, inputs, outputs
        self.parameters, self.clock = parameters, clock
        members = {name: In(width) for name, width in inputs.items()}
        for kind in ("twin", "model"):
            for name, width in outputs.items():
                members[f"{kind}_{name}"] = Out(data.ArrayLayout(width, len(parameters)))
        super().__init__(members)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        for kind, name in (("twin", self.primitive), ("model", f"{MODEL}{self.primitive}")):
            for number, parameters in enumerate(self.parameters):
                connections: dict[str, Any] = {f"p_{key}": v for key, v in parameters.items()}
                connections |= {f"i_{key}": getattr(self, key) for key in self.inputs}
                for key in self.outputs:
                    connections[f"o_{key}"] = getattr(self, f"{kind}_{key}")[number]
                if self.clock is not None:
                    connections[f"i_{self.clock}"] = ClockSignal()
                m.submodules[f"{kind}_{number}"] = Instance(name, **connections)
        return m


class Twin(Property):
    """Outputs of a twin and of the model are equal, in every cycle."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__(pairs)
        self.models = [pairs.primitive]

    def rules(self, m: Module) -> None:
        for name in self.dut.outputs:
            twin, model = (getattr(self.dut, f"{kind}_{name}") for kind in ("twin", "model"))
            self.claim(m, f"{name} is the model's", twin.as_value() == model.as_value())


class RamTwin(Twin):
    """The same of RAM32M16, whose memories are equal too: what an induction needs."""

    def __init__(self) -> None:
        inputs = {"WE": 1}
        inputs |= {f"ADDR{port}": 5 for port in _RAM_PORTS}
        inputs |= {f"DI{port}": 2 for port in _RAM_PORTS}
        outputs = {f"DO{port}": 2 for port in _RAM_PORTS}
        super().__init__(Pairs("RAM32M16", inputs, outputs, clock="WCLK"))

    def rules(self, m: Module) -> None:
        super().rules(m)
        for port in _RAM_PORTS.lower():
            twin = self.probe(f"twin_0.{port}", 64)
            model = self.probe(f"model_0.mem_{port}", 64)
            self.claim(m, f"memory {port} is the model's", twin == model)


def lut_twin(used: Sequence[int]) -> Twin:
    """LUT6_2 with every INIT of one bit, with their complements, and with those that are used."""
    single = [1 << k for k in range(64)]
    tables = [*single, *((1 << 64) - 1 - table for table in single), *used]
    parameters = [{"INIT": Const(table, 64)} for table in tables]
    return Twin(Pairs("LUT6_2", {f"I{k}": 1 for k in range(6)}, {"O5": 1, "O6": 1}, parameters))


def carry_twin() -> Twin:
    """CARRY8 as one chain."""
    inputs = {"CI": 1, "CI_TOP": 1, "S": 8, "DI": 8}
    return Twin(Pairs("CARRY8", inputs, {"O": 8, "CO": 8}, [{"CARRY_TYPE": "SINGLE_CY8"}]))

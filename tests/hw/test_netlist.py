"""Names in netlists."""

import re

import pytest

pytest.importorskip("amaranth")

from amaranth import Module, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra_hw.netlist import to_named_verilog, to_rtlil, to_verilog

_PAIR = data.StructLayout({"m": unsigned(3), "e": data.ArrayLayout(2, 2)})


class Delay(wiring.Component):
    """A register for each element of an array of structures."""

    def __init__(self) -> None:
        layout = data.ArrayLayout(_PAIR, 3)
        super().__init__({"i": In(layout), "o": Out(layout)})

    def elaborate(self, platform):
        m = Module()
        for place in range(3):
            m.d.sync += self.o[place].eq(self.i[place])
        return m


@pytest.mark.parametrize("convert", [to_rtlil, to_verilog])
def test_no_wire_is_called_like_a_bit(convert) -> None:
    text = convert(Delay(), "delay")
    names = set(re.findall(r"\\(\S+)", text))
    assert {"o.0", "o.2.m", "o.1.e.1"} <= names
    assert not any("[" in name for name in names)
    # selects stay
    assert re.search(r"\[\d+:0\]", text)


class Pair(wiring.Component):
    """Two delays, one behind the other."""

    def __init__(self) -> None:
        layout = data.ArrayLayout(_PAIR, 3)
        super().__init__({"i": In(layout), "o": Out(layout)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.first = first = Delay()
        m.submodules.second = second = Delay()
        m.d.comb += [
            first.i.eq(self.i),
            second.i.eq(first.o),
            self.o.eq(second.o),
        ]
        return m


class Field(wiring.Component):
    """A structure that passes through."""

    def __init__(self) -> None:
        super().__init__({"i": In(_PAIR), "o": Out(_PAIR)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = Copy()
        m.d.comb += [inner.i.eq(self.i), self.o.eq(inner.o)]
        return m


class Copy(wiring.Component):
    """A register for a structure."""

    def __init__(self) -> None:
        super().__init__({"i": In(_PAIR), "o": Out(_PAIR)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.i)
        return m


def test_ports_have_wires_in_the_netlist() -> None:
    text, ports = to_named_verilog(Pair(), "pair")
    assert set(ports) == {f"{name}.{port}" for name in ("first", "second") for port in "io"}
    for port in ports.values():
        module, _, wire = str(port["wire"]).rpartition(".")
        body = text.split(f"module \\{module} " if "." in module else f"module {module}(")[1]
        assert re.search(rf"\b{re.escape(wire)}\b", body.split("endmodule")[0])


def test_ports_have_fields() -> None:
    _, ports = to_named_verilog(Field(), "field")
    assert ports["inner.i"]["fields"] == {"m": (0, 3), "e": (3, 4)}


class Unnamed(Pair):
    """A pair in it has no name."""

    def elaborate(self, platform):
        m = Module()
        m.submodules += (pair := Pair())
        m.submodules.last = last = Delay()
        m.d.comb += [pair.i.eq(self.i), last.i.eq(pair.o), self.o.eq(last.o)]
        return m


def test_submodules_without_a_name_have_no_ports() -> None:
    text, ports = to_named_verilog(Unnamed(), "unnamed")
    assert ports.keys() == {"last.i", "last.o"}
    assert to_verilog(Unnamed(), "unnamed") == text

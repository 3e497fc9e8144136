"""Bisection on the RTL: no false alarm, and planted faults named by unit, cycle and signal."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")

from tests.system.planted import bisect_with, is_named, mutant
from tests.system.small_architectures import config_of_engine, make

from lutra.compile.compiler import compile_model
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.diagnose.bisect import bisect
from lutra.diagnose.passes import GoldenPasses
from lutra.diagnose.trace import watch

pytestmark = pytest.mark.rtl

NAMED = (
    "missing carry of a negated value",
    "sine with the wrong sign",
    "denominators never begin anew",
    "all parameters from the first word on",
)
"""Faults of different units; ``python -m tests.system.planted`` tries all of the catalogue."""


@pytest.mark.slow
def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    """Every stream of three passes, with and without keys of earlier ones."""
    model = make(tmp_path)("bitnet")
    with AcceleratorDevice(RtlTransport(traceable=True)) as device:
        device.load_program(model, compile_model(model, config_of_engine("ternary")))
        prompt = [5, 77, 123, 9, 201, 42, 18]
        assert bisect(device, model, prompt, 2).same
        with GoldenPasses(model, prompt, 2, device.pass_tokens) as passes:
            for index, _ in enumerate(passes):
                watched = watch(device, passes, index)
                assert (watched.differs, watched.finding) == (None, None)


@pytest.mark.parametrize(
    "words", [NAMED[0], *(pytest.param(words, marks=pytest.mark.slow) for words in NAMED[1:])]
)
def test_names_the_faulty_unit(words: str, tmp_path: Path) -> None:
    wave = tmp_path / "wave.vcd"
    fault = mutant(words)
    found = bisect_with(fault, wave)
    assert is_named(fault, found["unit"]), found
    assert found["layer"] == "0"
    assert found["signal"].startswith("accelerator.core.")
    first, end = found["wave_cycles"]
    assert first <= found["cycle"] <= end
    times = [line for line in wave.read_text().splitlines() if line.startswith("#")]
    assert len(times) == 2 * (end - first)

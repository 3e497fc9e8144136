"""Bisection by comparing what is in memory: tokens, layers, instructions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.host.diagnose.faulty import FAULTS, Fault, FaultyTransport
from tests.host.tiles import Compiled, compiled
from tests.system.small_architectures import config_of_engine, make

from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.base import Chunk, PassResult
from lutra.devices.golden import GoldenDevice
from lutra.diagnose.bisect import bisect

PROMPT = [5, 77, 123, 9, 201, 42, 18]


@pytest.fixture(scope="module")
def bitnet(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    model = make(tmp_path_factory.mktemp("models"))("bitnet")
    return compiled(model, config_of_engine("ternary"))


def with_fault(found: Compiled, fault: Fault | None) -> AcceleratorDevice:
    transport = InterpretedTransport() if fault is None else FaultyTransport(fault)
    device = AcceleratorDevice(transport)
    device.load_program(found.model, found.program)
    return device


def test_nothing_differs(bitnet: Compiled) -> None:
    with with_fault(bitnet, None) as device:
        found = bisect(device, bitnet.model, PROMPT, 2)
    assert found.same
    assert found.passes == 3
    assert list(found.lines()) == ["device interpreted gives the same as golden in 3 passes"]


@pytest.mark.parametrize(
    ("fault", "opcode", "unit"),
    [
        ("matmul", "LMMA", "matmul engine"),
        ("norm", "LMMA", "vector unit"),
        ("residual", "RESADD", "vector unit"),
        ("attention", "LMMA", "attention unit"),
        ("load", "EMBED", "load unit"),
    ],
)
def test_names_the_instruction_that_shows_it(
    fault: str, opcode: str, unit: str, bitnet: Compiled
) -> None:
    with with_fault(bitnet, FAULTS[fault]) as device:
        found = bisect(device, bitnet.model, PROMPT, 2)
    assert found.pass_index == 0
    assert found.opcode == opcode
    assert found.layer == ("embedding" if fault == "load" else "0")
    assert found.unit is not None
    assert unit in found.unit.split(" or ")
    if fault == "residual":
        assert (found.unit, found.token, found.elements) == (unit, 1, (7, 7))
    assert any(line.startswith("instruction") for line in found.lines())


class WrongLayer(GoldenDevice):
    """The golden device, which adds one to what layer 1 gives."""

    name = "wrong"

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        result = super()._pass(chunks)
        if 1 not in chunks[0].layers:
            return result
        if result.residual is not None:
            return replace(result, residual=result.residual + 1)
        assert result.logits is not None
        return replace(result, logits=result.logits + 1)


def test_names_the_layer_on_any_device(bitnet: Compiled) -> None:
    with WrongLayer() as device:
        device.load(bitnet.model)
        found = bisect(device, bitnet.model, PROMPT, 1)
    assert (found.layer, found.instruction) == ("1", None)
    assert found.difference == "304 of 304 logits differ"
    assert next(found.lines()) == "device wrong differs from golden in pass 0"


def test_wave_is_for_the_simulation_only(bitnet: Compiled, tmp_path: Path) -> None:
    with with_fault(bitnet, FAULTS["load"]) as device:
        found = bisect(device, bitnet.model, PROMPT, 1, wave=tmp_path / "wave.vcd")
    assert found.wave is None
    assert not list(tmp_path.iterdir())

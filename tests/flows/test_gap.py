"""Cycles between tokens: what is counted, on a small model and the simulated accelerator."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.host.random_model import Shape, write_model
from tests.host.tiles import compiled
from tests.hw.core.test_accelerator import SMALL

from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.models import load_model
from lutra.quantize.pack import pack_model
from lutra_flows.gap import greedy, main, on, sampled, sampler_us

pytestmark = [pytest.mark.rtl, pytest.mark.usefixtures("no_coverage")]


def test_a_descriptor_of_several_tokens_saves_the_others(tmp_path: Path) -> None:
    write_model(tmp_path, Shape(intermediate_size=48, num_hidden_layers=1))
    model, program = compiled(pack_model(load_model(tmp_path)), SMALL)
    clocked = on("rtl")
    with AcceleratorDevice(clocked.transport) as device:
        device.load_program(model, program)
        free, bound = sampled(device, clocked, 6), greedy(device, 6)
    assert len(free.results) == 6 and len(free.between) == 5
    # the same accesses of registers, and the same words of descriptor and result block
    assert len(set(free.between)) == 1 and 0 < free.between[0] < 200
    assert 0 < bound.saved < 300 < bound.per_token
    # arg-max and scale are written, and the next token, chunk and counts
    assert bound.between is not None and 24 <= bound.between < 150
    assert sampler_us(free.results) > 0


@pytest.mark.parametrize("n", [1, 33])
def test_two_tokens_to_those_of_a_descriptor(n: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-n", str(n)]) == 2
    assert capsys.readouterr().err == f"error: -n must be in 2..32, not {n}\n"

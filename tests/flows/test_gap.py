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
        free, bound = sampled(device, clocked, 6), greedy(device, clocked, 6)
    assert len(free.results) == 6 and len(free.between) == 5
    # the same accesses of registers, and the same words of descriptor and result block
    assert len(set(free.between)) == 1 and 0 < free.between[0] < 200
    assert 0 < bound.saved < 300 < bound.per_token
    assert sampler_us(free.results) > 0


def test_a_single_token_has_no_gap(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-n", "1"]) == 2
    assert capsys.readouterr().err == "error: -n must be 2 or more, not 1\n"

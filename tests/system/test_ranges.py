"""Ranges of layers on the RTL: golden's streams and logits, and a model that runs in two places."""

from dataclasses import replace

import numpy as np
import pytest
from tests.host.random_model import SHAPES, config_for, load, write_model
from tests.host.splits import check_split
from tests.host.tiles import Compiled, compiled, golden, on_transport

from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import Device
from lutra.devices.cpu.device import CpuDevice
from lutra.models import find_model, load_model
from lutra.quantize.pack import pack_model
from lutra_golden.core.configs import NANO
from lutra_golden.timing.memory import IDEAL_MEMORY, MemoryTiming, random_timing

pytestmark = [pytest.mark.rtl, pytest.mark.usefixtures("no_coverage")]

PASS_TOKENS = 5


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A model of three layers."""
    shape = replace(SHAPES["grouped"], num_hidden_layers=3)
    folder = write_model(tmp_path_factory.mktemp("model"), shape)
    return compiled(pack_model(load(folder)), config_for(shape, pass_tokens=PASS_TOKENS))


@pytest.mark.parametrize("timing", [IDEAL_MEMORY, *map(random_timing, (6, 7))])
def test_first_middle_and_last_layers(found: Compiled, timing: MemoryTiming) -> None:
    """Every range by itself, with tokens of several sequences in a pass."""
    texts = np.random.default_rng(timing.seed).integers(0, found.model.vocab_size, (4, 11)).tolist()
    device = on_transport(found, RtlTransport(timing=timing)).device
    check_split([device] * 3, golden(found.model).device, texts, (0, 1, 2, 3), timing.seed)
    device.close()


def test_a_model_in_two_places(found: Compiled) -> None:
    """The stream goes from the RTL to golden or the CPU in mid-model, or the other way."""
    texts = np.random.default_rng(1).integers(0, found.model.vocab_size, (3, 9)).tolist()
    rtl = on_transport(found, RtlTransport(timing=random_timing(8))).device
    reference, cpu = golden(found.model).device, CpuDevice(1)
    cpu.load(found.model)
    places: list[tuple[list[Device], tuple[int, ...]]] = [
        ([rtl, reference], (0, 1, 3)),
        ([reference, rtl], (0, 2, 3)),
        ([cpu, rtl, cpu], (0, 1, 2, 3)),
        ([rtl, cpu, rtl], (0, 1, 2, 3)),
    ]
    for devices, cuts in places:
        check_split(devices, reference, texts, cuts)
    for device in (rtl, cpu):
        device.close()


@pytest.mark.slow
def test_the_shipped_model_in_two_halves() -> None:
    """A prompt of two passes, and single tokens."""
    each = compiled(pack_model(load_model(find_model("tales"))), NANO)
    device = on_transport(each, RtlTransport()).device
    n, half = each.program.n_layers, each.program.n_layers // 2
    texts = np.random.default_rng(2).integers(0, each.model.vocab_size, (2, 12)).tolist()
    check_split([device, device], golden(each.model).device, texts, (0, half, n))
    device.close()

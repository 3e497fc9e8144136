"""Plans over accelerators: the bits are golden's wherever a request goes on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from tests.host.boards import Interpreted, Served, board
from tests.host.random_model import SHAPES, config_for, load, write_model
from tests.host.serving.plans.mortal import die_at_any_call, hand_over_at_every_token
from tests.host.serving.plans.test_device import KINDS, plans
from tests.host.tiles import Compiled, compiled, golden, on_transport

from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.accelerator.transport import Transport
from lutra.devices.base import Device, Step, StepResult
from lutra.devices.cpu.device import CpuDevice
from lutra.quantize.pack import pack_model
from lutra.serving.plans.device import PlannedDevice, fixed
from lutra_golden.timing.memory import random_timing

N_LAYERS = 3
PROMPT = np.random.default_rng(0).integers(0, 60, 11).tolist()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    shape = replace(SHAPES["grouped"], num_hidden_layers=N_LAYERS)
    folder = write_model(tmp_path_factory.mktemp("model"), shape)
    return compiled(pack_model(load(folder)), config_for(shape, pass_tokens=5))


def story(device: Device) -> list[StepResult]:
    """A prompt of three passes, three tokens, and the same from the prompt's fourth on."""
    session = device.session()
    results = device.run([Step(session=session, tokens=PROMPT)])
    for _ in range(3):
        token = int(results[-1].argmax[-1])
        results += device.run([Step(session=session, tokens=[token])])
    other = session.fork(4)
    results += device.run([Step(session=other, tokens=[1, 2]), Step(session=session, tokens=[3])])
    for each in (session, other):
        each.close()
    return results


def check(found: Compiled, kind: str, devices: Sequence[Device]) -> None:
    with PlannedDevice(devices, fixed(plans(N_LAYERS)[kind])) as device:
        device.load(found.model)
        results = story(device)
        assert not device.notes
    for a, b in zip(results, story(golden(found.model).device), strict=True):
        for name in ("logits", "scale", "argmax"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def pairs(found: Compiled, transport: Transport) -> list[list[Device]]:
    """The accelerator before the CPU, and behind it."""
    accelerator, cpu = on_transport(found, transport).device, CpuDevice(1)
    cpu.load(found.model)
    return [[accelerator, cpu], [cpu, accelerator]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 1])
def test_the_interpreted_accelerator(kind: str, place: int, found: Compiled) -> None:
    check(found, kind, pairs(found, InterpretedTransport())[place])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_emulated_board(kind: str, place: int, found: Compiled) -> None:
    """Behind its agent."""
    with Served(Interpreted(found.program.config)) as served:
        check(found, kind, pairs(found, board(served.port))[place])


def in_one_step(found: Compiled, tokens: Sequence[int]) -> StepResult:
    """Logits of all tokens on golden."""
    device = golden(found.model).device
    [result] = device.run([Step(session=device.session(), tokens=tokens)])
    return result


@pytest.mark.slow
def test_hand_over_at_every_token(found: Compiled) -> None:
    """Between an emulated board and the CPU."""
    with Served(Interpreted(found.program.config)) as served:
        devices = pairs(found, board(served.port))[0]
        tokens = PROMPT[:7]
        hand_over_at_every_token(found.model, devices, tokens, in_one_step(found, tokens))
        for device in devices:
            device.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_board_or_a_cpu_dies_at_any_call(kind: str, victim: int, found: Compiled) -> None:
    """Sessions, passes, layers that are exported and restored."""
    with Served(Interpreted(found.program.config)) as served:
        devices = pairs(found, board(served.port))[0]
        plan, tokens = plans(N_LAYERS)[kind], PROMPT[:7]
        expected = in_one_step(found, tokens)
        n = die_at_any_call(found.model, plan, devices, victim, tokens, expected)
        for device in devices:
            device.close()
    assert n > 2 or (kind, victim) == ("whole", 1)


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.usefixtures("no_coverage")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 1])
def test_the_rtl(kind: str, place: int, found: Compiled) -> None:
    check(found, kind, pairs(found, RtlTransport(timing=random_timing(8)))[place])


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.usefixtures("no_coverage")
def test_hand_over_to_and_from_the_rtl(found: Compiled) -> None:
    devices = pairs(found, RtlTransport())[0]
    tokens = PROMPT[:5]
    hand_over_at_every_token(found.model, devices, tokens, in_one_step(found, tokens))
    for device in devices:
        device.close()

"""Plans with devices that are lent elsewhere: the bits of one device, whatever becomes of the link.

Tokens, residual streams, keys and values cross sockets, in both directions.
"""

from collections.abc import Sequence

import numpy as np
import pytest
from tests.host.devices.lent import lent
from tests.host.serving.plans.test_device import (
    KINDS,
    N_LAYERS,
    TEXT,
    Mortal,
    golden,
    golden_run,
    model,
    phases,
    pipeline,
    planned,
    plans,
    same,
    story,
)

from lutra.devices.base import Device, DeviceError, Step, StepResult
from lutra.devices.golden import GoldenDevice
from lutra.devices.remote.shape import LinkShape
from lutra.serving.plans.device import PlannedDevice
from lutra.serving.plans.layout import Plan
from lutra_golden.model.packed import PackedModel

__all__ = ["model"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("elsewhere", [(0,), (1,), (0, 1)], ids=str)
def test_every_plan_gives_the_bits_of_one_device(
    kind: str, elsewhere: Sequence[int], model: PackedModel
) -> None:
    """Over links of 20 MB/s and half a millisecond."""
    with lent(Mortal()) as first, lent(GoldenDevice()) as second:
        shapes = [LinkShape(latency_s=5e-4, bytes_per_s=2e7) for _ in range(2)]
        devices: list[Device] = [Mortal(), GoldenDevice()]
        for i in elsewhere:
            devices[i] = (first, second)[i].device(shape=shapes[i])
        with planned(model, plans(N_LAYERS)[kind], devices) as device:
            for n in (1, 7, 30):
                same(story(device, TEXT[0][:n], 2), story(golden(model), TEXT[0][:n], 2))
            assert not device.notes
            assert kind == "whole" or all(shapes[i].n_bytes for i in elsewhere)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_link_that_is_lost_at_any_message_leaves_its_device_out(
    kind: str, victim: int, model: PackedModel
) -> None:
    """Before each message, and before each answer, of which the device has done the work."""
    expected = short_story(golden(model))
    plan, lose_at, lost = plans(N_LAYERS)[kind], 0, True
    with lent(GoldenDevice()) as there:
        while lost:
            shape = LinkShape()
            devices: list[Device] = [GoldenDevice(), GoldenDevice()]
            devices[victim] = there.device(shape=shape)
            with planned(model, plan, devices) as device:
                shape.lose_at = shape.events + lose_at
                same(short_story(device), expected)
                lost = bool(device.notes)
                if lost:
                    note = r"is left out: .* waits for lutra://127.0.0.1:\d+: "
                    [said] = device.notes
                    assert_matches(note, said)
                    assert device.sites == [1 - victim]
            lose_at += 1
    assert lose_at > 4 or (kind, victim) == ("whole", 1)


def assert_matches(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text), text


def short_story(device: Device) -> list[StepResult]:
    """A prompt, two tokens, another turn."""
    session = device.session()
    results = device.run([Step(session=session, tokens=TEXT[0][:12], logits_from=11)])
    for _ in range(2):
        token = int(results[-1].argmax[-1])
        results += device.run([Step(session=session, tokens=[token])])
    results += device.run([Step(session=session, tokens=TEXT[1][:18], logits_from=17)])
    return results


@pytest.mark.parametrize("move", [Plan.on(0, 3), Plan.on(1, 3), pipeline(3, 2)], ids=str)
def test_hand_over_at_every_token(move: Plan, model: PackedModel) -> None:
    """Plans change in mid-sentence, between any two tokens of prompt and answer."""
    tokens = TEXT[0][:9]
    [expected] = golden_run(model, tokens)
    with lent(GoldenDevice()) as there:
        for at in range(1, len(tokens)):
            chosen = [Plan.on(1 - move.decode[0].site, 3)]
            devices = [GoldenDevice(), there.device()]
            with PlannedDevice(devices, lambda _m, _s, c=chosen: c) as device:
                device.load(model)
                session = device.session()
                results = device.run([Step(session=session, tokens=tokens[:at])])
                session.plan = move
                for token in tokens[at:]:
                    results += device.run([Step(session=session, tokens=[token])])
                logits = np.concatenate([each.logits for each in results])
                np.testing.assert_array_equal(logits, expected.logits)


def test_the_last_link_s_error_is_told_and_the_device_comes_back(model: PackedModel) -> None:
    shape = LinkShape()
    with lent(GoldenDevice()) as there:
        devices = [there.device(shape=shape)]
        with planned(model, Plan.on(0, N_LAYERS), devices) as device:
            session = device.session()
            device.run([Step(session=session, tokens=[1, 2])])
            shape.lose()
            with pytest.raises(DeviceError, match="a step of 1 tokens waits for lutra://"):
                device.run([Step(session=session, tokens=[3])])
            shape.mend()
            assert device.take_back() == [0]
            [found] = device.run([Step(session=session, tokens=[3])])
            [expected] = golden_run(model, [1, 2, 3])
            np.testing.assert_array_equal(found.logits, expected.logits[-1:])


def test_a_link_that_is_lost_when_memory_is_reserved(model: PackedModel) -> None:
    shape = LinkShape()
    with lent(GoldenDevice()) as there:
        with planned(
            model, phases(N_LAYERS), [GoldenDevice(), there.device(shape=shape)]
        ) as device:
            session = device.session()
            session.reserve(9, 1)
            shape.lose()
            session.reserve(10)
            assert device.sites == [0]
            assert "memory for 10 positions waits for lutra://" in device.notes[0]
            [found] = device.run([Step(session=session, tokens=[1, 2, 3])])
            [expected] = golden_run(model, [1, 2, 3])
            np.testing.assert_array_equal(found.logits, expected.logits)


def test_a_device_that_is_back_has_work_again(model: PackedModel) -> None:
    shape = LinkShape()
    with lent(GoldenDevice()) as there:
        devices = [GoldenDevice(), there.device(shape=shape)]
        with planned(model, Plan.on(1, N_LAYERS), devices) as device:
            assert device.take_back() == []
            shape.lose()
            same(short_story(device), short_story(golden(model)))
            assert device.sites == [0]
            assert device.take_back() == []
            assert device.sites == [0]
            shape.mend()
            assert device.take_back() == [1]
            before = shape.n_bytes
            same(short_story(device), short_story(golden(model)))
            assert shape.n_bytes > before

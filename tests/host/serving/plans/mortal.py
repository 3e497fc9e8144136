"""Devices of any kind that die: at a call of theirs, or of their sessions, and ever after."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tests.host.serving.plans.test_device import moved_at, pipeline

from lutra.devices.base import Device, DeviceError, Session, Step, StepResult
from lutra.serving.plans.device import PlannedDevice, fixed
from lutra.serving.plans.layout import Plan
from lutra_golden.model.packed import PackedModel

__all__ = ["Life", "die_at_any_call", "hand_over_at_every_token"]

_OF_SESSIONS = "export", "restore"


class Life:
    """Counts calls of a device and of its sessions; fails at number ``dies_at``, and ever after."""

    def __init__(self, device: Device) -> None:
        self.calls, self.dies_at = 0, -1
        self._undo: list[Callable[[], None]] = []
        self._watch(device, "run")
        session = device.session

        def watched() -> Session:
            self._live()
            made = session()
            for name in _OF_SESSIONS:
                self._watch(made, name)
            return made

        self._put(device, "session", watched)

    def end(self) -> None:
        """Let the device be as it was."""
        for undo in self._undo:
            undo()

    def _put(self, owner: Any, name: str, value: object) -> None:
        setattr(owner, name, value)
        self._undo.append(lambda: delattr(owner, name))

    def _watch(self, owner: Any, name: str) -> None:
        found = getattr(owner, name)

        def counted(*args: object, **options: object) -> object:
            self._live()
            return found(*args, **options)

        self._put(owner, name, counted)

    def _live(self) -> None:
        self.calls += 1
        if self.calls > self.dies_at >= 0:
            raise DeviceError("it hangs: power it off and on")


def _short_story(device: Device, tokens: Sequence[int]) -> list[StepResult]:
    """A prompt, of which the last three tokens come one by one."""
    session = device.session()
    results = device.run([Step(session=session, tokens=tokens[:-3])])
    for token in tokens[-3:]:
        results += device.run([Step(session=session, tokens=[token])])
    session.close()
    return results


def _compare(results: Sequence[StepResult], expected: StepResult) -> None:
    for name in ("logits", "scale", "argmax"):
        found = np.concatenate([getattr(each, name) for each in results])
        np.testing.assert_array_equal(found, getattr(expected, name))


def die_at_any_call(
    model: PackedModel,
    plan: Plan,
    devices: Sequence[Device],
    victim: int,
    tokens: Sequence[int],
    expected: StepResult,
) -> int:
    """Let one of the devices, which have the model, die at each of its calls: the others go on,
    and no bit is another. The number of its calls."""
    at = 0
    while True:
        device, life = PlannedDevice(devices, fixed(plan)), Life(devices[victim])
        try:
            device.load(model)
            life.dies_at = life.calls + at
            _compare(_short_story(device, tokens), expected)
        finally:
            life.end()
        if not device.notes:
            return at
        assert "is left out: it hangs" in device.notes[0]
        assert device.sites == [each for each in range(len(devices)) if each != victim]
        at += 1


def hand_over_at_every_token(
    model: PackedModel, devices: Sequence[Device], tokens: Sequence[int], expected: StepResult
) -> None:
    """Change the plan of two devices, which have the model, between any two tokens: from each one
    to the other, and to both."""
    n = len(model.layers)
    moves = (0, Plan.on(1, n)), (1, Plan.on(0, n)), (0, pipeline(n, 1)), (1, pipeline(n, 1))
    for site, move in moves:
        for at in range(1, len(tokens)):
            device = PlannedDevice(devices, fixed(Plan.on(site, n)))
            device.load(model)
            _compare(moved_at(device, move, tokens, at), expected)

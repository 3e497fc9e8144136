"""Steps whose rows are divided between devices: each in a thread, with meetings in between."""

import threading
from collections.abc import Callable, Sequence

from lutra.closing import Closing
from lutra.devices.base import Device, StepResult
from lutra.devices.shares import Meeting, Share, SharingDevice, joined
from lutra.serving.plans.layout import Stage
from lutra.serving.plans.legs import all_at_once
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shares import divide

__all__ = ["RowRunner", "sharing"]

RunShare = Callable[[Share], list[StepResult]]
"""Runs a device's share of the steps that all have."""


def sharing(device: Device, label: str) -> SharingDevice:
    """A device as one that computes shares; LutraError if it does not."""
    if not isinstance(device, SharingDevice):
        raise LutraError(
            f"device {label} computes whole layers only: divide layers between it and others, or "
            "rows between cpu, cuda and golden"
        )
    return device


class RowRunner(Closing):
    """Runs stages whose devices have shares; the meetings of each set of devices are kept."""

    def __init__(self) -> None:
        self._meetings: dict[tuple[int, ...], Meeting] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Release the meetings."""
        with self._lock:
            meetings, self._meetings = self._meetings, {}
        for each in meetings.values():
            each.close()

    def run(
        self,
        stage: Stage,
        devices: Sequence[Device],
        model: PackedModel,
        calls: Sequence[RunShare],
    ) -> list[StepResult]:
        """Results of steps of which each of ``calls`` runs the share of one of the ``devices``.

        One call at a time for each set of devices. When one fails its error is raised, not that
        of those who were waiting for it.
        """
        meeting = self._meeting(stage.sites, devices, model)
        rows = [share.rows for share in stage.shares]
        heads = [share.heads_weight for share in stage.shares]
        shares = divide(model, rows, heads)
        found: dict[int, list[StepResult]] = {}
        errors: list[BaseException] = []

        def run(i: int) -> None:
            try:
                found[i] = calls[i](Share(shares[i], meeting))
            except BaseException as error:
                errors.append(error)  # before the others hear of it
                meeting.leave()

        all_at_once([lambda i=i: run(i) for i in range(len(calls))])
        if errors:
            with self._lock:
                self._meetings.pop(stage.sites, None)
            meeting.close()
            raise errors[0]
        every = zip(*(found[i] for i in range(len(calls))), strict=True)
        return [joined(each, shares) for each in every]

    def _meeting(
        self, sites: tuple[int, ...], devices: Sequence[Device], model: PackedModel
    ) -> Meeting:
        with self._lock:
            if sites not in self._meetings:
                kinds = {sharing(each, each.name).meeting for each in devices}
                kind = kinds.pop() if len(kinds) == 1 else Meeting
                rows = min(each.pass_tokens for each in devices)
                self._meetings[sites] = kind(model, rows, len(devices))
            return self._meetings[sites]

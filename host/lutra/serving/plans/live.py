"""Devices of a plan that have not failed, and who knows that one has."""

import logging
import threading
from collections.abc import Collection, Generator, Sequence
from contextlib import ExitStack, contextmanager

from lutra.devices.base import Device, DeviceError
from lutra_golden.errors import LutraError

__all__ = ["LiveDevices", "SiteFailed"]

_log = logging.getLogger(__name__)


class SiteFailed(Exception):
    """Device number ``site`` has failed of ``error``."""

    def __init__(self, site: int, error: DeviceError) -> None:
        super().__init__(str(error))
        self.site, self.error = site, error


class LiveDevices:
    """``devices`` by number; ``left`` are the numbers of those that have not failed."""

    def __init__(self, devices: Sequence[Device], labels: Sequence[str]) -> None:
        self.devices, self.labels = list(devices), list(labels)
        self.left: list[int] = list(range(len(devices)))
        self.notes: list[str] = []
        """A line on each device that was left out, or came back."""
        self._turns = [threading.RLock() for _ in devices]
        self._busy = [0] * len(devices)
        self._reasons: dict[int, DeviceError] = {}
        self._lock = threading.Lock()

    @property
    def left_out(self) -> list[int]:
        """Numbers of the devices that have failed."""
        return [site for site in range(len(self.devices)) if site not in self.left]

    def back(self, site: int) -> None:
        """Count on a device again."""
        with self._lock:
            self.left = sorted({*self.left, site})
            self._note(f"device {self.labels[site]} is back")

    def all_again(self) -> None:
        """Count on all of them again."""
        with self._lock:
            self.left = list(range(len(self.devices)))

    @contextmanager
    def on(self, site: int) -> Generator[Device]:
        """The device of this number; SiteFailed if it has failed, or does."""
        if site not in self.left:
            why = self._reasons[site]
            raise SiteFailed(
                site, DeviceError(f"device {self.labels[site]} has failed before: {why}")
            )
        try:
            yield self.devices[site]
        except DeviceError as error:
            raise SiteFailed(site, error) from error
        except LutraError as error:
            if site in self.left:
                raise
            # it failed meanwhile, and what it says of its sessions is no more than that
            raise SiteFailed(site, DeviceError(str(error))) from error

    @contextmanager
    def turn(self, sites: Sequence[int]) -> Generator[None]:
        """Have devices to oneself; what waits for its turn is not yet timed."""
        with ExitStack() as held:
            for site in sorted(sites):
                held.enter_context(self._turns[site])
            for site in sites:
                self._busy[site] += 1
            try:
                yield
            finally:
                for site in sites:
                    self._busy[site] -= 1

    def beside(self, sites: Collection[int]) -> tuple[int, ...]:
        """Other devices that somebody has now."""
        return tuple(i for i, n in enumerate(self._busy) if n and i not in sites)

    def leave_out(self, failed: SiteFailed) -> bool:
        """Count on a device no more; False if that was known, DeviceError if none is left."""
        with self._lock:
            is_new = failed.site in self.left
            if is_new:
                self.left = [site for site in self.left if site != failed.site]
                self._reasons[failed.site] = failed.error
                self._note(f"device {self.labels[failed.site]} is left out: {failed.error}")
        if not self.left:
            raise failed.error
        return is_new

    def _note(self, note: str) -> None:
        self.notes.append(note)
        _log.warning("%s", note)

"""Power that a board draws, by its own sensors, while something runs on it."""

import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

__all__ = ["PowerMeter", "Sensed", "hwmon_power"]

_PERIOD_S = 0.2
_MICRO = 1e-6  # of a watt, in which Linux counts


@runtime_checkable
class Sensed(Protocol):
    """A device, or a way to one, that may have sensors of power."""

    def power(self) -> Mapping[str, float]:
        """Watts by the name of the sensor, now; empty where there are none."""
        ...


def hwmon_power(root: Path = Path("/")) -> dict[str, float]:
    """Watts by sensor of this machine, as Linux has them in ``/sys/class/hwmon``.

    Source: the kernel's documentation, ``hwmon/sysfs-interface``. ``root`` stands for the root of
    the file system.
    """
    found: dict[str, float] = {}
    for path in sorted(root.glob("sys/class/hwmon/*/power*_input")):
        try:
            watts = int(path.read_text()) * _MICRO
            name = (path.parent / "name").read_text().strip()
        except (OSError, ValueError):
            continue  # a sensor that is off, or of a driver that is going
        label = path.with_name(path.name.replace("_input", "_label"))
        if label.is_file():
            name = f"{name} {label.read_text().strip()}"
        found[name if name not in found else f"{name} ({path.parent.name}/{path.name})"] = watts
    return found


class PowerMeter:
    """Means of a device's sensors while a ``with`` block runs, read five times a second.

    Where the device has none, nothing is read after the first time, which does not count.
    """

    def __init__(self, device: object) -> None:
        self._device = device
        self._watts: defaultdict[str, list[float]] = defaultdict(list)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="power", daemon=True)

    @property
    def watts(self) -> dict[str, float]:
        """Mean watts by sensor."""
        return {name: sum(each) / len(each) for name, each in self._watts.items()}

    @property
    def n_samples(self) -> int:
        """Times that the sensors were read."""
        return max(map(len, self._watts.values()), default=0)

    def __enter__(self) -> "PowerMeter":
        if self._power():
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            for name, watts in self._power().items():
                self._watts[name].append(watts)

    def _power(self) -> Mapping[str, float]:
        return self._device.power() if isinstance(self._device, Sensed) else {}

"""Work of an accelerator's units in its last run, by its performance counters."""

from collections.abc import Mapping
from dataclasses import dataclass

from lutra.devices.base import Device
from lutra_golden.control.registers import COUNTERS

__all__ = ["Activity", "UnitActivity", "is_simulated"]

_UNITS = tuple(name.removesuffix("_busy") for name in COUNTERS if name.endswith("_busy"))
_BEATS = tuple(name.removesuffix("_beats") for name in COUNTERS if name.endswith("_beats"))


@dataclass(frozen=True, kw_only=True)
class UnitActivity:
    """Clock cycles in which a unit was ``busy``, and of these the ones it was ``waiting`` in."""

    unit: str
    busy: int
    waiting: int


@dataclass(frozen=True, kw_only=True)
class Activity:
    """A run of so many ``cycles``: its ``units``, and the ``beats`` of each way to memory."""

    cycles: int
    units: tuple[UnitActivity, ...]
    beats: Mapping[str, int]

    @classmethod
    def of(cls, counters: Mapping[str, int]) -> "Activity | None":
        """That of :meth:`~lutra.devices.base.Device.counters`; None if nothing is counted."""
        if "cycles" not in counters:
            return None
        units = (
            UnitActivity(
                unit=name, busy=counters[f"{name}_busy"], waiting=counters[f"{name}_stall"]
            )
            for name in _UNITS
        )
        beats = {name: counters[f"{name}_beats"] for name in _BEATS}
        return cls(cycles=counters["cycles"], units=tuple(units), beats=beats)


def is_simulated(device: Device) -> bool:
    """True if the clock of the hardware is a simulator's."""
    return device.name == "rtl" or "emulated" in device.facts()

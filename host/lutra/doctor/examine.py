"""All checks of a machine, in order, and whether what was asked for can run."""

from collections.abc import Callable, Iterator, Sequence

from lutra.devices.hardware import alveo_functions, zynq_family
from lutra.doctor.alveo import alveo_checks
from lutra.doctor.basics import common_checks, device_check
from lutra.doctor.machine import Finding, Level, Machine
from lutra.doctor.zynq import zynq_checks

__all__ = ["BOARDS_HERE", "examine", "is_wrong"]

Progress = Callable[[str, float], None]
_PLAIN = ("cuda", "cpu", "rtl")
BOARDS_HERE = {"pynq": zynq_checks, "xrt": alveo_checks}
"""Checks of the devices that are boards."""


def examine(
    machine: Machine, device: str | None = None, progress: Progress | None = None
) -> Iterator[Finding]:
    """Checks of what all devices need, and of ``device``, or of all that this machine may have."""
    yield from common_checks()
    for name in _PLAIN:
        if device in (None, name):
            yield device_check(name, asked=device == name, progress=progress)
    for name, checks in BOARDS_HERE.items():
        if device == name or (device is None and name in _boards(machine)):
            yield from checks(machine)


def is_wrong(findings: Sequence[Finding], machine: Machine, device: str | None) -> bool:
    """True if an error concerns what was asked for: ``device``, or else any board that is here."""
    asked = {None, device} if device else {None, *_boards(machine)}
    return any(each.level == Level.ERROR and each.device in asked for each in findings)


def _boards(machine: Machine) -> list[str]:
    """Devices of the boards that this machine has, or has a part of."""
    found: list[str] = []
    if zynq_family(machine.root) is not None:
        found.append("pynq")
    if alveo_functions(machine.root):
        found.append("xrt")
    return found

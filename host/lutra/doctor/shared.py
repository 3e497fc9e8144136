"""Checks that every kind of board needs: bitstreams, and files that may not be opened."""

import getpass
from collections.abc import Iterator, Sequence
from pathlib import Path

from lutra.devices.accelerator.bitstreams import default_bitstreams
from lutra.devices.boards import BOARD_DRIVERS, check_known, no_bitstream
from lutra.doctor.machine import Finding, Machine, Reporter
from lutra_golden.errors import LutraError

__all__ = ["bitstreams", "dotted", "permissions"]

_NAME = "bitstream"


def bitstreams(device: str) -> Iterator[Finding]:
    """Every bitstream in the usual place, compared with this Lutra's configurations."""
    driver, report = BOARD_DRIVERS[device], Reporter(device)
    try:
        found = default_bitstreams(driver.suffix)
    except LutraError as refused:
        yield report.error(_NAME, str(refused))
        return
    if not found:
        yield report.error(_NAME, no_bitstream(driver).removeprefix(f"device {device} "))
    for each in found:
        handoff = each.path.with_suffix(".hwh")
        try:
            check_known(each)
        except LutraError as refused:
            yield report.error(_NAME, str(refused))
            continue
        if driver.suffix == ".bit" and not handoff.is_file():
            mend = f"copy `lutra.hwh` of its build to `{handoff}`"
            yield report.error(_NAME, f"{each.path.name} has no .hwh file", mend)
            continue
        text = f"{each.path.name}, configuration {each.config or 'unknown'}"
        yield report.good(_NAME, f"{text}, fingerprint {each.fingerprint:016x}")


def permissions(
    machine: Machine, files: Sequence[Path], mend: str, report: Reporter
) -> Iterator[Finding]:
    """Files that a driver opens; those that are missing are the business of other checks."""
    there = [path for path in files if path.exists()]
    shut = [path for path in there if not machine.may_open(path)]
    names = ", ".join(f"/{path.relative_to(machine.root)}" for path in shut or there)
    if shut:
        yield report.error("permissions", f"{getpass.getuser()} may not open {names}", mend)
    elif there:
        yield report.good("permissions", f"{names} can be opened")


def dotted(version: Sequence[int]) -> str:
    """A version as it is written."""
    return ".".join(map(str, version))

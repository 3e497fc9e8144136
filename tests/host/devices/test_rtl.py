"""What the simulated device refuses before anything is built; tests/system runs it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from lutra.compile.program import Program
from lutra.devices.rtl import RtlDevice
from lutra_golden.errors import LutraError


def test_a_program_of_another_configuration_is_refused(program: Callable[[str], Program]) -> None:
    """Both fingerprints, and the option that makes them agree."""
    found = program("least")
    other = replace(found.config, name="other", max_outstanding=2)
    message = (
        f"^the program was made for configuration {found.config.fingerprint:016x}, the device is "
        f"{other.fingerprint:016x}: compile it again with --config other$"
    )
    with pytest.raises(LutraError, match=message):
        RtlDevice(other).load(found)


def test_nothing_runs_before_a_program_is_loaded(program: Callable[[str], Program]) -> None:
    device = RtlDevice(program("least").config)
    with pytest.raises(LutraError, match=r"^no program is loaded: call load\(program\) first$"):
        device.run_tile([1], 0, 0)
    with pytest.raises(LutraError, match=r"^no program is loaded"):
        device.counters()
    device.close()

"""Without the tools that simulate the RTL, one line says what is missing and what runs instead."""

import sys
from pathlib import Path

import pytest

from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import DeviceError
from lutra.devices.choose import choose_device
from lutra_golden.core.configs import NANO
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_sim.rtl import toolchain

ELSEWHERE = "; device auto runs without it: -dev auto"


def refusal() -> str:
    with pytest.raises(LutraError) as error:
        RtlTransport().open(NANO, 1 << 20)
    return str(error.value)


def test_a_tool_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERILATOR", "no-such-verilator")
    assert refusal() == (
        "VERILATOR is 'no-such-verilator', which is not a program: set it to the path of "
        "Verilator, or unset it to use the installed wheel" + ELSEWHERE
    )


def test_a_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("amaranth")
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    monkeypatch.setattr(toolchain, "check_toolchain", lambda: None)
    for name in list(sys.modules):
        if name.partition(".")[0] == "lutra_hw":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "amaranth", None)
    assert refusal() == (
        f"device rtl needs amaranth, which is not installed: run `{install_command('sim')}`"
        + ELSEWHERE
    )


class Waits:
    """A simulator that notes for how long it is to wait."""

    def __init__(self) -> None:
        self.seen: list[float | None] = []

    def wait(self, max_cycles: int | None, *, timeout_s: float | None) -> int:
        self.seen.append(timeout_s)
        return 1


def test_a_run_has_the_time_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line gives it no limit: a simulation may take hours, and counts cycles."""
    transport, waits = RtlTransport(), Waits()
    monkeypatch.setattr(transport, "_simulator", waits)
    for seconds in (0.5, None):
        assert transport.wait(seconds) == 1
    assert waits.seen == [0.5, None]
    device, _ = choose_device("rtl")
    assert isinstance(device, AcceleratorDevice)
    assert device._timeout_s is None


def test_a_run_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    error = pytest.importorskip("lutra_sim.rtl.device").RtlError

    class Endless:
        def wait(self, max_cycles: int | None, *, timeout_s: float | None) -> int:
            raise error(f"not done after {max_cycles} cycles: load busy")

    monkeypatch.setattr(RtlTransport, "simulator", Endless())
    transport = RtlTransport()
    transport.max_cycles = 7
    with pytest.raises(DeviceError, match=r"^not done after 7 cycles: load busy$"):
        transport.wait(None)

"""Without the tools that simulate the RTL, one line says what is missing and what runs instead."""

import sys
from pathlib import Path

import pytest

from lutra.devices.accelerator.rtl import RtlTransport
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

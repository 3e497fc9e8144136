"""``lutra devices`` and ``lutra tune``."""

import json
import shutil

import pytest

from lutra.commands import devices, tune
from lutra.commands.cli import main
from lutra.devices import choose
from lutra_golden.install import install_command


def test_every_device_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(choose, "gpu_count", lambda: 0)
    assert main(["devices", "--json"]) == 0
    rows = {row["device"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["cuda", "cpu", "golden", "interpreted", "rtl"]
    compiler = shutil.which("cc") is not None
    assert rows["cpu"]["available"] == compiler
    assert rows["golden"]["available"] and rows["golden"]["auto"] == (not compiler)
    assert sum(row["auto"] for row in rows.values()) == 1
    if compiler:
        assert rows["cpu"]["detail"].split(",")[0].endswith(" threads")


def test_what_is_missing_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    monkeypatch.setenv("COLUMNS", "500")
    assert main(["devices"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("rtl"))
    command = install_command("sim")
    assert line.rstrip().split(maxsplit=2)[1:] == [
        "no",
        f"needs amaranth, which is not installed: run `{command}`",
    ]


def test_a_missing_compiler_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("amaranth")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["devices", "--json"]) == 0
    rtl = json.loads(capsys.readouterr().out)[-1]
    assert (rtl["device"], rtl["available"]) == ("rtl", False)
    assert rtl["detail"].startswith("CXX is 'no-such-compiler', which is not a program: ")


def test_without_a_gpu_there_is_nothing_to_tune(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "missing", lambda: "no CUDA device found: install one")
    assert main(["tune", "--models", "2b-4t"]) == 2
    error = "error: cannot tune: no CUDA device found: install one\n"
    assert capsys.readouterr().err == error

"""``lutra devices`` and ``lutra tune``."""

import json
import shutil

import pytest

from lutra.commands import devices, tune
from lutra.commands.cli import main
from lutra.devices import choose


def test_every_device_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(choose, "gpu_count", lambda: 0)
    assert main(["devices", "--json"]) == 0
    rows = {row["device"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["cuda", "cpu", "golden", "rtl"]
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
    assert main(["devices"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("rtl"))
    assert line.split()[1] == "no" and "needs amaranth" in line


def test_without_a_gpu_there_is_nothing_to_tune(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "missing", lambda: "there is no CUDA device: a GPU is needed")
    assert main(["tune", "--models", "2b-4t"]) == 2
    error = "error: there is nothing to tune, there is no CUDA device: a GPU is needed\n"
    assert capsys.readouterr().err == error

"""``lutra devices`` and ``lutra tune``."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from lutra.commands import devices, tune
from lutra.commands.cli import main
from lutra.devices import choose
from lutra.devices.cpu import build
from lutra.devices.cpu.library import library
from lutra.progress import StepProgress
from lutra_golden.install import install_command


def test_every_device_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(choose, "gpu_count", lambda: 0)
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    assert main(["devices", "--json"]) == 0
    rows = {row["device"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["cuda", "cpu", "golden", "interpreted", "rtl", "pynq", "xrt"]
    for board in ("pynq", "xrt"):
        assert not rows[board]["available"] and not rows[board]["auto"]
    assert rows["xrt"]["detail"].startswith("needs XRT's Python module (")
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
    monkeypatch.setenv("COLUMNS", "40")  # a command is on one line, to be copied
    assert main(["devices"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("rtl"))
    command = install_command("sim")
    assert line.rstrip().split(maxsplit=2)[1:] == [
        "no",
        f"needs amaranth, which is not installed: run `{command}`",
    ]


def test_kernels_that_are_compiled_show_their_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift || exit; done; echo x > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choose, "gpu_count", lambda: 0)
    monkeypatch.setattr(build, "LIBRARY", "libtest.so")
    seen: list[tuple[str, float]] = []
    monkeypatch.setattr(StepProgress, "__call__", lambda _self, *report: seen.append(report))
    library.cache_clear()
    try:
        assert main(["devices"]) == 0
    finally:
        library.cache_clear()
    assert {stage for stage, _ in seen} == {"compiling the CPU's kernels"}
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0) and len(shares) > 5
    # what that compiler makes cannot be loaded
    assert re.search(r"^cpu +no +cannot load ", capsys.readouterr().out, re.MULTILINE)


def test_a_missing_compiler_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("amaranth")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["devices", "--json"]) == 0
    rows = {row["device"]: row for row in json.loads(capsys.readouterr().out)}
    rtl = rows["rtl"]
    assert not rtl["available"]
    assert rtl["detail"].startswith("CXX is 'no-such-compiler', which is not a program: ")


def test_without_a_gpu_there_is_nothing_to_tune(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "missing", lambda: "no CUDA device found: install one")
    assert main(["tune", "--models", "2b-4t"]) == 2
    error = "error: cannot tune: no CUDA device found: install one\n"
    assert capsys.readouterr().err == error

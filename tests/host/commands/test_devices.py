"""``lutra devices`` and ``lutra tune``."""

import json
import re
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from lutra.commands import devices, tune
from lutra.commands.cli import main
from lutra.devices import auto, describe, processors
from lutra.devices.cpu import build
from lutra.devices.cpu.library import library
from lutra.devices.emulated.card import EmulatedCard
from lutra.devices.estimate import Rate
from lutra.open_model import open_packed_model
from lutra.progress import StepProgress
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import U55C
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import find_profile


def test_every_device_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(auto, "gpu_count", lambda: 0)
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
        assert rows["cpu"]["runs"].startswith("models whose weights and caches fit ")
    assert rows["interpreted"]["runs"].startswith("configurations nano, ")
    for name, row in rows.items():
        assert row["model"] == row["available"], name
        assert row["refusal"] is None


def test_a_card_and_what_it_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what ``auto`` and ``doctor`` ask, too; the card itself is left alone."""
    card, model = EmulatedCard(find_profile("u55c")), open_packed_model("tales")
    module = card.module()
    module.__spec__ = ModuleSpec("pyxrt", None)
    monkeypatch.setitem(sys.modules, "pyxrt", module)
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    monkeypatch.setattr(auto, "gpu_count", lambda: 0)
    monkeypatch.setattr(processors, "CpuDevice", lambda *_: processors.GoldenDevice())
    monkeypatch.setattr(describe, "CpuDevice", no_compiler)
    monkeypatch.setattr(auto, "Estimates", Fast)

    def row() -> devices.Row:
        return next(row for row in devices.rows_of(model) if row.device == "xrt")

    found = row()
    assert found.available and not found.model and not found.auto
    assert found.detail.startswith("the accelerator on the card xcu55c")
    assert found.runs == found.refusal
    assert (found.runs or "").startswith(f"has no bitstream in {tmp_path / 'bitstreams'}: make one")
    (tmp_path / "bitstreams").mkdir()
    shutil.copy(card.image(U55C), tmp_path / "bitstreams" / "lutra.xclbin")
    facts = {"configuration": "u55c", "fingerprint": f"{U55C.fingerprint:016x}"}
    (tmp_path / "bitstreams" / "lutra.json").write_text(json.dumps(facts))
    found = row()
    assert found.auto and found.model and found.refusal is None
    assert found.runs == "bitstreams of u55c (lutra.xclbin)"
    card.close()


def no_compiler(**_options: object) -> None:
    raise LutraError("device cpu needs a C compiler")


class Fast:
    """A profile in which a card is the fastest."""

    def decode(
        self, device: str, model: PackedModel, config: AcceleratorConfig | None = None
    ) -> Rate:
        return Rate(tokens_per_s=float(device == "xrt"))


def test_what_is_missing_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe, "find_spec", lambda name: None)
    monkeypatch.setenv("COLUMNS", "40")  # a command is on one line, to be copied
    assert main(["devices"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("rtl"))
    command = install_command("sim")
    assert line.rstrip().split(maxsplit=3)[1:] == [
        "no",
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
    monkeypatch.setattr(auto, "gpu_count", lambda: 0)
    monkeypatch.setattr(build, "LIBRARY", "libtest.so")
    seen: list[tuple[str, float]] = []
    monkeypatch.setattr(StepProgress, "__call__", lambda _self, *report: seen.append(report))
    library.cache_clear()
    try:
        assert main(["devices"]) == 0
    finally:
        library.cache_clear()
    shares = [share for stage, share in seen if stage == "compiling the CPU's kernels"]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0) and len(shares) > 5
    # what that compiler makes cannot be loaded
    assert re.search(r"^cpu +no +no +cannot load ", capsys.readouterr().out, re.MULTILINE)


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

"""A wheel has the library where there is a compiler, and is for any machine where there is none."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lutra.devices.cpu.interface import golden_header

pytest.importorskip("hatchling")

ROOT = Path(__file__).resolve().parents[4]


class App:
    """Messages of the hook."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, text: str) -> None:
        self.warnings.append(text)


def build(version: str = "standard") -> tuple[dict[str, Any], list[str]]:
    """A build's data after the hook, and its warnings."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app, data = App(), {"force_include": {}, "pure_python": True, "tag": None}
    hook = module.LibraryHook(str(ROOT), {}, None, None, str(ROOT), "wheel", app)
    hook.initialize(version, data)
    # what the hook keeps until the wheel is written
    data["files"] = {name: Path(path).read_text() for path, name in data["force_include"].items()}
    return data, app.warnings


def test_with_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, given = tmp_path / "cc", tmp_path / "golden.h"
    compiler.write_text(
        "#!/bin/sh\nfor x; do case $x in -I*) "
        f'cp "${{x#-I}}/golden.h" {given};; esac; done\n'
        'while [ "$1" != -o ]; do shift; done; echo library > "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    data, warnings = build()
    assert data["files"] == {"lutra/devices/cpu/liblutra_cpu.so": "library\n"}
    assert given.read_text() == golden_header()
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-")
    assert data["tag"] != "py3-none-any"
    assert warnings == []


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    data, warnings = build()
    assert (data["files"], data["pure_python"], data["tag"]) == ({}, True, None)
    assert len(warnings) == 1
    assert warnings[0].endswith("; the wheel goes without it")


def test_an_editable_install_without_a_compiler_compiles_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    data, warnings = build("editable")
    assert data["files"] == {}
    assert len(warnings) == 1
    assert warnings[0].endswith("; it is compiled when it is first used")

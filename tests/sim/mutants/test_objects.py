"""Objects are kept by what they are made of, wherever that lies."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lutra_sim.mutants import objects
from lutra_sim.mutants.objects import main

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def write(folder: Path, number: int) -> list[str]:
    """A source with a header; returns the arguments that compile it."""
    folder.mkdir(exist_ok=True)
    (folder / "a.h").write_text(f"enum {{ NUMBER = {number} }};\n")
    (folder / "a.c").write_text('#include "a.h"\nint number(void) { return NUMBER; }\n')
    return ["cc", f"-I{folder}", "-c", str(folder / "a.c"), "-o", str(folder / "a.o")]


def test_what_was_compiled_elsewhere_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))
    commands: list[list[str]] = []

    original = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if "-MM" not in command:
            commands.append(command)
        return original(command, **options)

    monkeypatch.setattr(objects.subprocess, "run", run)
    for folder, number, n_compiled in (("a", 1, 1), ("b", 1, 1), ("b", 2, 2), ("a", 1, 2)):
        assert main(write(tmp_path / folder, number)) == 0
        assert len(commands) == n_compiled
        assert commands[-1][-1] == "-O1"
    found = [(tmp_path / name / "a.o").read_bytes() for name in ("a", "b")]
    assert found[0] != found[1]


def test_other_uses_of_the_compiler(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["cc", "--version"]) == 0
    assert capfd.readouterr().out
    compiling = write(tmp_path / "a", 1)
    (tmp_path / "a" / "a.h").unlink()
    assert main(compiling) != 0
    assert "a.h" in capfd.readouterr().err

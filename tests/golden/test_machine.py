"""Cores, the cache folder, commands of the environment and groups of processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lutra_golden.errors import LutraError
from lutra_golden.machine import available_cores, cache_root, command_of, end_group, unwritable


def test_available_cores() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    """Nothing is made by asking, nor left behind."""
    assert unwritable(tmp_path) is unwritable(tmp_path / "a" / "b") is None
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "a"):
        assert unwritable(path) == "Not a directory"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_folder_that_even_a_superuser_cannot_write() -> None:
    assert unwritable(Path("/proc/nope")) in ("No such file or directory", "Permission denied")


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.setenv("LUTRA_CACHE", "~/here")
    assert cache_root() == Path.home() / "here"
    monkeypatch.setenv("LUTRA_CACHE", "")
    assert cache_root() == Path.home() / ".cache" / "lutra"


def test_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL", "tool -p 2222 -F 'my config'")
    assert command_of("TOOL", "other", "a tool") == ["tool", "-p", "2222", "-F", "my config"]
    for nothing in ("", None):
        if nothing is None:
            monkeypatch.delenv("TOOL")
        else:
            monkeypatch.setenv("TOOL", nothing)
        assert command_of("TOOL", "other -x", "a tool") == ["other", "-x"]


@pytest.mark.parametrize(
    ("named", "why"),
    [("tool 'x", "No closing quotation"), (" ", "no program"), ("'' -p 1", "no program")],
)
def test_what_is_no_command(named: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL", named)
    with pytest.raises(LutraError) as error:
        command_of("TOOL", "other", "a tool")
    assert str(error.value) == f"TOOL is no command ({why}): give a tool, not {named!r}"


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
def test_end_group() -> None:
    """Children of the process end too: their pipe closes."""
    script = "sleep 60 & echo started; wait"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    end_group(process)
    assert process.stdout.read() == b""
    process.stdout.close()
    end_group(process)  # again: nothing is left to end

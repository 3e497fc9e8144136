"""``lutra doctor``: what it prints, and its exit status."""

import json
import sys
from pathlib import Path

import pytest
from tests.host.doctor.trees import kv260

from lutra.commands import doctor
from lutra.commands.cli import main
from lutra.doctor import basics
from lutra.doctor.machine import Machine, version_of
from lutra_golden.errors import LutraError


@pytest.fixture(autouse=True)
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without boards, whose devices are all there."""
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(basics, "describe", lambda name, _progress: f"this is {name}")
    monkeypatch.setattr(basics, "gpu_count", lambda: 0)
    monkeypatch.setattr(basics, "interpreted", lambda: False)
    monkeypatch.setattr(doctor, "Machine", lambda: Machine(root=tmp_path / "tree"))


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 6
    assert lines[0].split()[1:3] == ["all", "Python"]
    assert lines[1] == f"ok       all    cache            {tmp_path / 'cache'}, 0 MiB"
    assert lines[3] == "ok       cuda   device           there is no GPU"
    assert lines[4] == "ok       cpu    device           this is cpu"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "-dev", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["wrong"]
    assert found["checks"][-1] == {
        "name": "device", "level": "ok", "text": "this is cpu", "mend": None, "device": "cpu",
    }  # fmt: skip


def test_an_error_counts_where_its_device_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, _progress: object) -> str:
        raise LutraError(f"device {name} needs a compiler: install one")

    monkeypatch.setattr(basics, "describe", refuse)
    assert main(["doctor"]) == 0
    assert "error    cpu    device           needs a compiler: install one" in (
        capsys.readouterr().out
    )
    assert main(["doctor", "-dev", "golden"]) == 0
    for device in ("cpu", "rtl", "cuda"):
        assert main(["doctor", "-dev", device]) == 1


def test_a_cache_that_cannot_be_written_is_everybodys(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "file"))
    assert main(["doctor", "-dev", "golden"]) == 1
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"error    all    cache            {tmp_path}/file cannot be written (")
    assert line.endswith("): choose a folder that can: `export LUTRA_CACHE=FOLDER`")


def test_a_full_disk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basics, "_DISK_LEAST", 1 << 60)
    assert main(["doctor", "-dev", "golden"]) == 0
    line = capsys.readouterr().out.splitlines()[2]
    assert line.startswith("warning  all    disk") and "see what is large: `du -sh " in line


def test_a_board(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """There is no bitstream yet, so it cannot be used yet."""
    kv260(tmp_path / "tree")
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "ok       pynq   board            Kria KV260 (ZynqMP SMK-K26 Rev1/B/A)" in lines
    assert any(line.startswith("error    pynq   bitstream        has no bits") for line in lines)


def test_this_machine_as_it_is() -> None:
    """Nothing is injected: packages and modules are this Python's."""
    machine = Machine()
    assert machine.package("numpy") == version_of(sys.modules["numpy"].__version__)
    assert machine.package("no-such-package") is None
    assert machine.module("json") is json
    assert machine.text("no/such/file") is None


@pytest.mark.parametrize(
    ("text", "numbers"), [("2.16.204", (2, 16, 204)), ("3.0rc1", (3, 0)), ("v3", ()), ("", ())]
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert version_of(text) == numbers

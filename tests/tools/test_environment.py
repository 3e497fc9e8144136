"""The environment of ``make run``: installed once, taken up again, one message when it fails."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "environment.py"

LOG = """\
Obtaining file:///somewhere/lutra
Collecting numpy>=2.0
  Downloading numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl (16.8 MB)
Collecting rich>=13.7
  Using cached rich-14.0-py3-none-any.whl (240 kB)
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, at work on a project in ``tmp_path`` whose pip is a stub that succeeds."""
    spec = importlib.util.spec_from_file_location("environment", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    for name, value in {
        "ROOT": tmp_path,
        "VENV": venv,
        "STAMP": venv / "stamp.json",
        "LOG": venv / "install.log",
        "check_tools": lambda: None,
        "create_venv": lambda: fake_venv(venv, status=0),
    }.items():
        monkeypatch.setattr(module, name, value)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return module


def fake_venv(venv: Path, *, status: int) -> None:
    """An interpreter that writes down what it is asked and answers with ``status``."""
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    python = venv / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "$@" >> {venv}/calls\n'
        f"echo ERROR: No space left on device\nexit {status}\n"
    )
    python.chmod(0o755)


def calls(environment: ModuleType) -> list[str]:
    """The extras of every installation so far."""
    path = environment.VENV / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line[line.index("[") :] for line in lines if " install " in line]


def test_installs_once(environment: ModuleType) -> None:
    assert environment.main(["sim"]) == 0
    assert environment.main(["sim"]) == 0
    assert calls(environment) == ["[sim]"]


def test_keeps_what_an_earlier_command_installed(environment: ModuleType) -> None:
    for extras in (["sim"], ["sim", "dev"], ["sim"]):
        assert environment.main(extras) == 0
    assert calls(environment) == ["[sim]", "[dev,sim]"]


def test_follows_pyproject(environment: ModuleType) -> None:
    assert environment.main(["sim"]) == 0
    (environment.ROOT / "pyproject.toml").write_text("[project]\nname = 'lutra'\n")
    assert environment.main(["sim"]) == 0
    assert calls(environment) == ["[sim]", "[sim]"]


def test_another_environment_has_its_own_packages(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "create_venv", lambda: fake_venv(environment.VENV, status=0))
    arguments = ["--venv", ".venv-board", "--with", "numpy==1.26.4", "--with", "pytest", "sim"]
    assert environment.main(arguments) == 0
    assert environment.main(arguments) == 0
    assert environment.VENV == environment.ROOT / ".venv-board"
    assert calls(environment) == ["[sim] numpy==1.26.4 pytest"]
    assert environment.main(["--venv", ".venv-board", "--with", "numpy==1.26.3", "sim"]) == 0
    assert calls(environment)[1:] == ["[sim] numpy==1.26.3"]
    assert not (environment.ROOT / ".venv").exists()


def test_the_old_distribution_is_removed_first(environment: ModuleType) -> None:
    environment.create_venv()
    environment.write_stamp({"root": str(environment.ROOT), "key": "old", "extras": ["sim"]})
    packages = environment.VENV / "lib/python3.11/site-packages"
    for name in ("lutra-0.1.0", "lutra_fpga-0.1.0"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    assert environment.main([]) == 0
    lines = (environment.VENV / "calls").read_text().splitlines()
    assert [line.split()[2] for line in lines] == ["uninstall", "install"]
    assert lines[0].split()[-1] == "lutra"
    (packages / "lutra-0.1.0.dist-info").rmdir()
    (environment.VENV / "calls").unlink()
    assert environment.main(["dev"]) == 0
    assert calls(environment) == ["[dev,sim]"]


def test_an_old_distribution_that_stays_is_an_error(
    environment: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.create_venv()
    environment.write_stamp({"root": str(environment.ROOT)})
    (environment.VENV / "lib/python3.11/site-packages/lutra-0.1.0.dist-info").mkdir(parents=True)
    fake_venv(environment.VENV, status=1)
    assert environment.main(["sim"]) == 2
    assert capsys.readouterr().err == (
        "error: pip could not uninstall lutra, the old name of Lutra in .venv: ERROR: No space "
        "left on device; remove .venv, then run the same command again\n"
    )


def test_a_failure_is_taken_up_again(
    environment: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.create_venv()
    environment.write_stamp({"root": str(environment.ROOT)})
    fake_venv(environment.VENV, status=1)
    assert environment.main(["sim"]) == 2
    assert "error: pip could not install lutra-fpga[sim]" in (message := capsys.readouterr().err)
    assert "  ERROR: No space left on device\n" in message
    assert "run the same command again" in message
    fake_venv(environment.VENV, status=0)
    assert environment.main(["sim"]) == 0
    assert calls(environment) == ["[sim]", "[sim]"]


def test_a_broken_stamp_counts_as_none(environment: ModuleType) -> None:
    environment.VENV.mkdir()
    environment.STAMP.write_text(json.dumps({"key": environment.key([])})[:20])
    assert environment.main([]) == 0
    assert calls(environment) == ["[]"]


def test_share(environment: ModuleType) -> None:
    assert environment.installed_share("", 10, 0) == (0.0, "reading pyproject.toml")
    log = "Obtaining file:///somewhere/lutra\n  Installing build dependencies: started\n"
    assert environment.installed_share(log, 10, 0) == (0.0, "fetching what it is built with")
    log += "  Installing build dependencies: finished with status 'done'\n"
    log += "  Preparing editable metadata (pyproject.toml): started\n"
    assert environment.installed_share(log, 10, 0) == (0.0, "compiling the CPU's kernels")
    share, doing = environment.installed_share(LOG, 10, 0)
    assert share == pytest.approx(0.12)
    assert doing == "fetching rich"
    log = f"{LOG}  Building editable for lutra-fpga (pyproject.toml): started\n"
    assert environment.installed_share(log, 10, 0) == (0.6, "building the package")
    share, doing = environment.installed_share(f"{LOG}Installing collected packages: a, b\n", 10, 1)
    assert share == pytest.approx(0.8)
    assert doing == "unpacking 2 packages"


def test_progress_names_the_time_left(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(environment.time, "monotonic", lambda: now)
    with environment.Progress("installing") as progress:
        now = 30.0
        progress.show(0.25, "fetching torch")
        now = 31.0
        progress.show(0.3, "not shown: too soon")
        now = 80.0
        progress.finish()
    assert capsys.readouterr().err.splitlines() == [
        "installing    0%  0:00",
        "installing: fetching torch   25%  0:30, about 1:30 left",
        "installing  done in 1:20",
    ]


def test_a_step_that_stands_names_no_time_left(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An estimate by the share that stays would rise; it falls, and is gone after a while."""
    now = 0.0
    monkeypatch.setattr(environment.time, "monotonic", lambda: now)
    with environment.Progress("installing") as progress:
        for now, share in ((30.0, 0.5), (47.0, 0.6), (56.0, 0.6), (65.0, 0.6), (90.0, 0.9)):
            progress._next_line = now
            progress.show(share, "")
    assert capsys.readouterr().err.splitlines()[1:] == [
        "installing   50%  0:30, about 0:30 left",
        "installing   60%  0:47, about 0:31 left",
        "installing   60%  0:56, about 0:22 left",
        "installing   60%  1:05",
        "installing   90%  1:30, about 0:10 left",
    ]


def test_the_script_needs_nothing_installed() -> None:
    text = SCRIPT.read_text()
    modules = {
        line.split()[1].partition(".")[0]
        for line in text.splitlines()
        if line.startswith(("import ", "from "))
    }
    assert modules <= set(sys.stdlib_module_names)

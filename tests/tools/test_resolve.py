"""``make test-install``: extras come from pyproject.toml, and what pip refuses is said."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.pyproject import PYPROJECT

WHEEL = Path("lutra.whl")
SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "resolve.py"


@pytest.fixture
def resolve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resolve", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pip(folder: Path, output: str, status: int) -> Path:
    """An interpreter whose pip prints ``output``."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {status}\n")
    python.chmod(0o755)
    return python


def test_extras_are_those_of_the_project(resolve: ModuleType) -> None:
    pytest.importorskip("pip")
    assert resolve.extras_of(Path(sys.executable)) == [
        *PYPROJECT["project"]["optional-dependencies"]
    ]


def test_packages_are_those_that_pip_names(resolve: ModuleType, tmp_path: Path) -> None:
    python = pip(tmp_path, "Collecting numpy\nWould install numpy-1.26.4 pynq-4.0.0", 0)
    assert resolve.resolve(python, WHEEL, "pynq") == "numpy-1.26.4 pynq-4.0.0"


def test_what_pip_refuses_is_said(resolve: ModuleType, tmp_path: Path) -> None:
    python = pip(tmp_path, "Collecting x\nERROR: Cannot install x\nERROR: no match for x", 1)
    with pytest.raises(RuntimeError, match=r"^ERROR: no match for x$"):
        resolve.resolve(python, WHEEL, "sim")
    with pytest.raises(RuntimeError, match=r"^ERROR: no match for x$"):
        resolve.make_wheel(python, tmp_path)


def test_a_wheel_is_made_once(resolve: ModuleType, tmp_path: Path) -> None:
    """What extras resolve is the wheel, not the checkout, which pip would build again for each."""
    python = pip(tmp_path, "Saved ./lutra.whl", 0)
    with pytest.raises(RuntimeError, match=r"^pip made 0 wheels, not one$"):
        resolve.make_wheel(python, tmp_path)
    (tmp_path / "lutra.whl").touch()
    assert resolve.make_wheel(python, tmp_path) == tmp_path / "lutra.whl"
    python.write_text('#!/bin/sh\necho "Would install $@"\n')
    assert f" {WHEEL}[sim] " in f"{resolve.resolve(python, WHEEL, 'sim')} "
    assert f" {WHEEL} " in f"{resolve.resolve(python, WHEEL, '')} "


def test_a_missing_python_is_one_line(
    resolve: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolve.main(["--python", "3.99"]) == 2
    assert capsys.readouterr().err == (
        "error: python3.99 does not run: install Python 3.99, or choose versions: "
        'make test-install ARGS="--python 3.12"\n'
    )

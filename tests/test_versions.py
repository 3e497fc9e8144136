"""Every Python and NumPy that Lutra says it runs with: the same code, the same bits."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.golden.digest import digest
from tests.pyproject import PYPROJECT, ROOT

OLDEST = re.fullmatch(r">=(\d+)\.(\d+)", PYPROJECT["project"]["requires-python"])
CODE = ("hw", "sim", "kernels_gpu", "host", "flows", "tests", "tools", "hatch_build.py")


def _oldest() -> tuple[int, int]:
    assert OLDEST is not None
    return int(OLDEST[1]), int(OLDEST[2])


def test_no_code_needs_a_newer_python_than_the_oldest() -> None:
    pytest.importorskip("vermin")
    version = ".".join(map(str, _oldest()))
    command = [sys.executable, "-c", "import vermin; vermin.main()", f"--target={version}-"]
    done = subprocess.run(
        [*command, "--no-tips", "--quiet", "--violations", *CODE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_place_names_the_oldest_python() -> None:
    major, minor = _oldest()
    assert (major, minor) == (3, 10)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"({major}, {minor}) <= sys.version_info" in makefile
    assert f"Python {major}.{minor} or newer" in makefile
    assert f"You need Python {major}.{minor} or newer" in (ROOT / "README.md").read_text("utf-8")
    named = re.findall(r"Python :: 3\.(\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
    assert named == [str(n) for n in range(minor, 15)]
    assert all(f"python3.{n} " in makefile for n in range(minor, 15))


PYTHONS = [f"python3.{n}" for n in range(10, 15)]
DIGEST = "951bfd09cf24349ed40fa3518ed28c2b0ee03b89bd46c97e08c22a8d826614fb"
"""What tests/golden/digest.py prints, here and everywhere."""


def _printed(python: str) -> str:
    """Digest by another interpreter, with golden and its own NumPy alone."""
    command = [python, "-W", "error", "tests/golden/digest.py"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"PYTHONPATH": "sim", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _runs(*command: str) -> bool:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode == 0


def test_every_name_of_numpy_is_there() -> None:
    """Beside pynq that NumPy is 1.26, which lacks what came with 2."""
    paths = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    found = {name for path in paths for name in re.findall(r"\bnp\.(\w+)", path.read_text("utf-8"))}
    assert "float64" in found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sorted(name for name in found if not hasattr(np, name)) == []


def test_bits_are_those_of_every_numpy() -> None:
    assert digest() == DIGEST


@pytest.mark.parametrize("name", PYTHONS)
def test_bits_are_those_of_every_python(name: str) -> None:
    python = shutil.which(name)
    if python is None or not _runs(python, "-c", "import numpy"):
        pytest.skip(f"no {name} with NumPy on PATH")
    assert _printed(python) == DIGEST


@pytest.mark.slow
@pytest.mark.parametrize("name", PYTHONS)
def test_bits_with_the_oldest_and_the_newest_numpy(name: str, tmp_path: Path) -> None:
    python = shutil.which(name)
    if python is None or not _runs(python, "-c", "import venv, ensurepip"):
        pytest.skip(f"no {name} on PATH")
    venv = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", venv], check=True)
    inside = str(venv / "bin" / "python")
    # NumPy 1.26 ends at Python 3.12
    oldest = ["numpy==1.26.*"] if int(name.partition(".")[2]) <= 12 else []
    for package in (*oldest, "numpy>=2"):
        command = [inside, "-m", "pip", "install", "--quiet", "--only-binary=:all:", package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert _printed(inside) == DIGEST


@pytest.mark.pynq
def test_pynq_and_lutra_are_in_one_environment() -> None:
    importlib.import_module("pynq")
    assert importlib.import_module("lutra").__version__
    assert int(np.__version__.partition(".")[0]) < 2

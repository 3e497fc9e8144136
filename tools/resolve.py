"""Resolve every extra of the project with pip, installing nothing: ``python tools/resolve.py``.

Markers are those of the interpreter that runs pip, so each version of Python resolves in its own,
a wheel that it builds first. Standard library only.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["extras_of", "main", "make_wheel", "resolve"]

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.12")


def extras_of(python: Path) -> list[str]:
    """The project's extras, as a build of its metadata by ``python`` has them."""
    code = (
        "import sys; from pip._vendor import tomli;"
        "print(*tomli.load(open(sys.argv[1], 'rb'))['project']['optional-dependencies'])"
    )
    command = [str(python), "-c", code, str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


def make_wheel(python: Path, folder: Path) -> Path:
    """A wheel of the project in ``folder``; RuntimeError if there is none.

    Of a checkout pip would build one for every extra, and compile the CPU device's library each
    time.
    """
    _pip(python, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    found = [*folder.glob("*.whl")]
    if len(found) != 1:
        raise RuntimeError(f"pip made {len(found)} wheels, not one")
    return found[0]


def resolve(python: Path, wheel: Path, extra: str) -> str:
    """Packages that pip would install for ``extra`` ("" for none); RuntimeError if it cannot."""
    output = _pip(python, "install", "--dry-run", f"{wheel}[{extra}]" if extra else str(wheel))
    found = [line for line in output.splitlines() if line.startswith("Would install ")]
    return found[-1].removeprefix("Would install ") if found else "nothing"


def _pip(python: Path, *arguments: str) -> str:
    """Output of pip; RuntimeError has its last line that says an error."""
    options = ["--no-input", "--disable-pip-version-check"]
    command = [str(python), "-m", "pip", *arguments, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()
        errors = [line.strip() for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise RuntimeError(errors[-1] if errors else "no output")
    return done.stdout


def _runs(version: str) -> bool:
    """True if this version of Python is on PATH; some managers leave commands there that fail."""
    python = shutil.which(f"python{version}")
    return python is not None and not subprocess.run([python, "-V"], capture_output=True).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each extra and version; returns 1 if one cannot be resolved."""
    parser = argparse.ArgumentParser(prog="make test-install", description=__doc__)
    parser.add_argument("--python", nargs="+", default=VERSIONS, help="versions (%(default)s)")
    parser.add_argument("--extra", nargs="+", help="these extras alone")
    options = parser.parse_args(arguments)
    missing = [version for version in options.python if not _runs(version)]
    if missing:
        print(
            f"error: python{missing[0]} does not run: install Python {missing[0]}, or choose "
            'versions: make test-install ARGS="--python 3.12"',
            file=sys.stderr,
        )
        return 2
    failed = 0
    for version in options.python:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([f"python{version}", "-m", "venv", folder], check=True)
            python = Path(folder) / "bin" / "python"
            try:
                wheel = make_wheel(python, Path(folder))
            except RuntimeError as error:
                failed += 1
                print(f"python{version} lutra-fpga: FAILED: no wheel: {error}", flush=True)
                continue
            for extra in options.extra or ["", *extras_of(python)]:
                start = time.monotonic()
                name = f"python{version} lutra-fpga" + (f"[{extra}]" if extra else "")
                try:
                    packages = resolve(python, wheel, extra).split()
                except RuntimeError as error:
                    failed += 1
                    print(f"{name}: FAILED: {error}", flush=True)
                else:
                    passed = time.monotonic() - start
                    print(f"{name}: {len(packages)} packages, {passed:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

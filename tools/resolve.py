"""Resolve every extra of the project with pip, installing nothing: ``python tools/resolve.py``.

Markers are those of the interpreter that runs pip, so each version of Python resolves in its own.
Standard library only.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["extras_of", "main", "resolve"]

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


def resolve(python: Path, extra: str) -> str:
    """Packages that pip would install for ``extra`` ("" for none); RuntimeError if it cannot."""
    command = [str(python), "-m", "pip", "install", "--dry-run", "--no-input"]
    command += ["--disable-pip-version-check", f"{ROOT}[{extra}]" if extra else str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    if done.returncode:
        errors = [line.strip() for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise RuntimeError(errors[-1] if errors else "no output")
    found = [line for line in done.stdout.splitlines() if line.startswith("Would install ")]
    return found[-1].removeprefix("Would install ") if found else "nothing"


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
            for extra in options.extra or ["", *extras_of(python)]:
                start = time.monotonic()
                name = f"python{version} lutra-fpga" + (f"[{extra}]" if extra else "")
                try:
                    packages = resolve(python, extra).split()
                except RuntimeError as error:
                    failed += 1
                    print(f"{name}: FAILED: {error}", flush=True)
                else:
                    passed = time.monotonic() - start
                    print(f"{name}: {len(packages)} packages, {passed:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

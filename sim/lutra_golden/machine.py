"""This machine, to every part of the project: cores, cache folder, commands, processes."""

import os
import shlex
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from lutra_golden.errors import LutraError

__all__ = ["available_cores", "cache_root", "command_of", "end_group", "unwritable"]


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_root() -> Path:
    """Folder of everything that is built once: ``$LUTRA_CACHE``, or ``~/.cache/lutra``."""
    return Path(os.environ.get("LUTRA_CACHE") or Path.home() / ".cache" / "lutra").expanduser()


def command_of(variable: str, default: str, what: str) -> list[str]:
    """Words of the command that an environment variable names, or of ``default``.

    ``what`` the command is, to whoever named none.
    """
    named = os.environ.get(variable) or default
    try:
        words, why = shlex.split(named), "no program"
    except ValueError as error:
        words, why = [], str(error)
    if not words or not words[0]:
        raise LutraError(f"{variable} is no command ({why}): give {what}, not {named!r}")
    return words


def unwritable(folder: Path) -> str | None:
    """Reason why nothing can be written below ``folder``, which need not exist yet, or None."""
    path = folder.absolute()
    try:
        there = next(each for each in (path, *path.parents) if each.exists())
        # permissions say less: a superuser has them all, a read-only disk asks for none
        with tempfile.TemporaryDirectory(dir=there):
            return None
    except OSError as error:
        return error.strerror or str(error)


def end_group(process: subprocess.Popen[Any]) -> None:
    """End ``process``, the leader of its group, and its children; wait until it has ended."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait()

"""Checks of every machine: Python, the cache, the disk, and the devices that need no board."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from lutra.devices.describe import describe
from lutra.doctor.machine import Finding, Reporter
from lutra_golden.errors import LutraError
from lutra_golden.machine import cache_root, unwritable
from lutra_kernels import gpu_count, interpreted

__all__ = ["common_checks", "device_check"]

Progress = Callable[[str, float], None]
_DISK_LEAST = 1 << 30  # bytes, for a simulator and a packed model


def common_checks() -> Iterator[Finding]:
    """Python, the cache's folder and its disk."""
    report = Reporter()
    yield report.good("Python", f"{platform.python_version()} on {platform.machine()}")
    folder = cache_root()
    if reason := unwritable(folder):
        text = f"{folder} cannot be written ({reason})"
        yield report.error("cache", text, "choose a folder that can: `export LUTRA_CACHE=FOLDER`")
        return
    yield report.good("cache", f"{folder}, {_size(folder) / 2**20:,.0f} MiB")
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 2**30:,.1f} GiB are free for the cache"
    if free < _DISK_LEAST:
        yield report.warning("disk", text, f"see what is large: `du -sh {folder}/*`")
    else:
        yield report.good("disk", text)


def device_check(name: str, *, asked: bool, progress: Progress | None = None) -> Finding:
    """The device itself, by what it does when it is chosen; no GPU is nothing wrong by itself."""
    if name == "cuda" and not asked and not gpu_count() and not interpreted():
        return Reporter(name).good("device", "there is no GPU")
    try:
        return Reporter(name).good("device", describe(name, progress))
    except LutraError as refused:
        return Reporter(name).error("device", str(refused).removeprefix(f"device {name} "))


def _size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                pass  # it went meanwhile
    return total

"""Parts of a machine that checks read, and their findings."""

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import distributions
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from lutra_golden.strings import StringEnum

__all__ = ["Finding", "Level", "Machine", "Reporter", "version_of"]


class Level(StringEnum):
    """Outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    """It runs, with something missing."""
    ERROR = "error"
    """The device cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A line: what was checked, for which device (None: for all), and what mends it.

    ``mend`` is a command in backquotes, after a word or two where it needs them.
    """

    name: str
    level: Level
    text: str
    mend: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Reporter:
    """Makes the lines of checks that concern ``device``, or all devices."""

    device: str | None = None

    def good(self, name: str, text: str) -> Finding:
        """A check that found nothing wrong."""
        return Finding(name=name, level=Level.OK, text=text, device=self.device)

    def warning(self, name: str, text: str, mend: str) -> Finding:
        """A check that found something missing."""
        return Finding(name=name, level=Level.WARNING, text=text, mend=mend, device=self.device)

    def error(self, name: str, text: str, mend: str | None = None) -> Finding:
        """A check that found why the device cannot be used; ``mend`` may stand in ``text``."""
        return Finding(name=name, level=Level.ERROR, text=text, mend=mend, device=self.device)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine, or a copy of another one's files below ``root``.

    ``search`` are folders of Python's packages, this Python's if left out; ``may_open`` tells
    whether this user may open a file to read and write.
    """

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    search: Sequence[str] | None = None
    python: tuple[int, int] = (sys.version_info.major, sys.version_info.minor)
    processor: str = field(default_factory=platform.machine)
    may_open: Callable[[Path], bool] = lambda path: os.access(path, os.R_OK | os.W_OK)

    def path(self, name: str) -> Path:
        """A path below the root, given without its first slash."""
        return self.root / name

    def text(self, name: str) -> str | None:
        """Text of a file, None if it cannot be read."""
        try:
            return self.path(name).read_bytes().decode("utf-8", "replace").strip("\0 \n")
        except OSError:
            return None

    def all(self, pattern: str) -> list[Path]:
        """Paths that match a pattern, sorted."""
        return sorted(self.root.glob(pattern))

    def has_driver(self, *names: str) -> bool:
        """True if the kernel has a module of one of these names, or a driver."""
        return any(
            self.path(place.format(name)).exists()
            for name in names
            for place in ("sys/module/{}", "sys/bus/platform/drivers/{}", "sys/bus/pci/drivers/{}")
        )

    def package(self, name: str) -> tuple[int, ...] | None:
        """Version of an installed package, None if there is none."""
        installed = distributions(name=name)
        if self.search is not None:
            installed = distributions(name=name, path=list(self.search))
        found = next(iter(installed), None)
        return None if found is None else version_of(found.version)

    def module(self, name: str) -> Any:
        """A module, imported; ImportError if it is not there."""
        if self.search is None:
            return import_module(name)
        spec = PathFinder.find_spec(name, list(self.search))
        if spec is None or spec.loader is None:
            raise ImportError(f"No module named {name!r}")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def version_of(text: str) -> tuple[int, ...]:
    """Numbers of a version, up to what is none."""
    numbers: list[int] = []
    for part in text.strip().split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)

"""A planted fault: the text that changes in a file, and the tests that must notice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mutant", "apply", "changed", "planted"]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """In ``file`` of the checkout, ``old`` is there once and becomes ``new``.

    ``tests`` are pytest node ids under ``tests``; each of them alone is not asked to notice, but
    one of them must.
    """

    fault: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file, and the fault in it."""
        return f"{self.file}: {self.fault}"

    @property
    def folder(self) -> str:
        """Folder of the checkout that holds the package: it is on the path of imports."""
        return self.file.partition("/")[0]


def planted(file: str, tests: Sequence[str], *faults: tuple[str, str, str]) -> list[Mutant]:
    """Faults of one file that the same tests must notice: each its name, old text and new text."""
    return [
        Mutant(fault=fault, file=file, old=old, new=new, tests=tuple(tests))
        for fault, old, new in faults
    ]


def changed(mutant: Mutant, text: str) -> str:
    """``text`` of the file of ``mutant`` with the fault.

    Raises ValueError unless the old text is there exactly once.
    """
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(f"{mutant.file} must have {mutant.old!r} once, not {count} times")
    return text.replace(mutant.old, mutant.new)


def apply(mutant: Mutant, root: Path) -> None:
    """Change the file of ``mutant`` under ``root``, a copy of the checkout's folder.

    Raises ValueError as :func:`changed` does.
    """
    path = root / mutant.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(changed(mutant, text), encoding="utf-8")

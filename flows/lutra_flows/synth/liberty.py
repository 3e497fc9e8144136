"""Standard-cell libraries: where they are, and what is in them."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lutra_golden.errors import LutraError

__all__ = ["WHERE", "Library", "load_libraries"]

WHERE = (
    "free ones are at github.com/parallaxsw/OpenSTA: examples/sky130hd_tt.lib.gz (SkyWater 130 nm, "
    "Apache-2.0) and test/asap7 (ASAP7 7 nm, BSD-3-Clause)"
)
_GZIP = b"\x1f\x8b"
_SEQUENTIAL = re.compile(r"^\s*(?:ff|latch|statetable|ff_bank|latch_bank)\s*\(", re.M)
_CELL = re.compile(r"^\s*cell\s*\(", re.M)


@dataclass(frozen=True, kw_only=True)
class Library:
    """A liberty file, unpacked at ``path``."""

    name: str
    path: Path
    digest: str
    combinational: bool
    sequential: bool


def load_libraries(where: Path, cache: Path) -> tuple[Library, ...]:
    """The library in a file, or those in a folder or of a pattern, unpacked into ``cache``.

    The libraries of one family come together: ASAP7 has its cells in five files.
    """
    libraries = tuple(_load(path, cache) for path in _files(where))
    families = {re.split(r"[_\W]", library.name)[0] for library in libraries}
    if len(families) > 1:
        raise LutraError(
            f"--liberty {where} holds libraries of several families: "
            f"{', '.join(sorted(families))}: give one file, or a pattern like 'folder/asap7*'"
        )
    for kind, has in (
        ("combinational", [library.combinational for library in libraries]),
        ("sequential", [library.sequential for library in libraries]),
    ):
        if not any(has):
            raise LutraError(
                f"--liberty {where} has no {kind} cells: "
                "give all of the family's files, in a folder"
            )
    return libraries


def _files(where: Path) -> Sequence[Path]:
    if where.is_file():
        return [where]
    pattern = f"{where}/*" if where.is_dir() else str(where)
    anchor = Path(pattern).anchor
    found = Path(anchor).glob(pattern.removeprefix(anchor))
    files = sorted(path for path in found if path.name.endswith((".lib", ".lib.gz")))
    if not files:
        what = "has no .lib or .lib.gz in it" if where.is_dir() else "does not exist"
        raise LutraError(f"--liberty {where} {what}: {WHERE}")
    return files


def _load(path: Path, cache: Path) -> Library:
    content = path.read_bytes()
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError) as error:
            raise LutraError(f"--liberty {path} is no whole gzip file: {error}") from None
    text = content.decode("utf-8", errors="replace")
    header = re.search(r'^\s*library\s*\(\s*"?([^")\s]+)', text, re.M)
    if header is None:
        raise LutraError(f"--liberty {path} is no liberty file: it has no `library (...)`")
    digest = hashlib.sha256(content).hexdigest()[:20]
    unpacked = cache / "synth" / "liberty" / f"{digest}.lib"
    if not unpacked.is_file():
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        partial = unpacked.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(content)
        partial.replace(unpacked)
    cells = [_SEQUENTIAL.search(cell) is not None for cell in _CELL.split(text)[1:]]
    return Library(
        name=header[1],
        path=unpacked,
        digest=digest,
        combinational=not all(cells),
        sequential=any(cells),
    )

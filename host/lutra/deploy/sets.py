"""Sets of files that take the place of the one before as a whole."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lutra.deploy.link import DeployError, FarLink

__all__ = ["FileSet", "Upload"]

Progress = Callable[[str, float], None]
_HASH_BYTES, _PIECE_BYTES = 1 << 22, 1 << 18


@dataclass(frozen=True)
class _Content:
    """Content of a file: a path, or bytes."""

    source: Path | bytes

    @property
    def size(self) -> int:
        """Bytes of it."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def sha256(self) -> str:
        """Checksum of it."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        digest = hashlib.sha256()
        with self.source.open("rb") as file:
            while data := file.read(_HASH_BYTES):
                digest.update(data)
        return digest.hexdigest()

    def pieces(self, size: int, sent: Callable[[int], None]) -> Iterator[bytes]:
        """Bytes of it, piece by piece; ``sent`` is called with the length of each."""
        with (
            io.BytesIO(self.source)
            if isinstance(self.source, bytes)
            else self.source.open("rb") as file
        ):
            while size and (data := file.read(min(size, _PIECE_BYTES))):
                yield data
                sent(len(data))
                size -= len(data)
        if size:
            raise DeployError(f"{self.source} became shorter while it was copied: run this again")


@dataclass(frozen=True, kw_only=True)
class FileSet:
    """Files by their names in the set, and the place of the set in the board's folder.

    ``link`` leads to the set, or to the file ``target`` of it. With ``executable`` files are
    programs.
    """

    title: str
    link: str
    files: Mapping[str, Path | bytes]
    target: str = ""
    executable: bool = False

    @property
    def kind(self) -> str:
        """Name of its folders, whatever is in the name of the link."""
        return f"{self.title}.{hashlib.sha256(self.link.encode()).hexdigest()[:8]}"


@dataclass
class Upload:
    """A set on its way: what of it is missing on the board."""

    files: FileSet
    digest: str = ""
    table: list[tuple[str, int, str, int]] = field(default_factory=list[tuple[str, int, str, int]])
    missing: list[str] = field(default_factory=list[str])

    @classmethod
    def compare(cls, link: FarLink, files: FileSet) -> "Upload":
        """Compute checksums, and ask the board for what it has."""
        mode = 0o755 if files.executable else 0o644
        try:
            contents = {name: _Content(source) for name, source in sorted(files.files.items())}
            table = [(name, each.size, each.sha256(), mode) for name, each in contents.items()]
        except OSError as error:
            raise DeployError(f"{error.filename} cannot be read: {error.strerror}") from None
        digest = hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]
        missing = link.ask("missing", {"kind": files.kind, "digest": digest, "files": table})
        return cls(files, digest, table, missing)

    @property
    def n_bytes(self) -> int:
        """Bytes that are still to be copied."""
        return sum(size for name, size, _, _ in self.table if name in self.missing)

    def send(self, link: FarLink, progress: Progress) -> None:
        """Copy what is missing, and have the set take its place."""
        files, done, total = self.files, 0, max(self.n_bytes, 1)

        def sent(n_bytes: int) -> None:
            nonlocal done
            done += n_bytes
            progress(f"copying the {files.title}", min(done / total, 0.99))

        own = {"kind": files.kind, "digest": self.digest}
        for row in self.table:
            if row[0] in self.missing:
                pieces = _Content(files.files[row[0]]).pieces(row[1], sent)
                link.ask("put", {**own, "file": row}, pieces)
        place = {"files": self.table, "link": files.link, "target": files.target}
        link.ask("commit", own | place)

"""Packed models that are kept, so that a checkpoint is packed once.

An entry is the folder of a packed model, named by the content of the checkpoint's files, the
settings it was packed with, and the code that packs. Entries are written beside their place and
renamed when they are whole, while the model runs already. The least recently used go when all
together are beyond the bound.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import lutra
from lutra.formats.gguf_split import model_files
from lutra.packed.file import VERSION, is_packed, open_packed, write_packed
from lutra.packed.layers import layer_arrays
from lutra.parallel import each_of
from lutra_golden.errors import LutraError
from lutra_golden.machine import cache_root, unwritable
from lutra_golden.model.checks import pass_numbers
from lutra_golden.model.packed import PackedModel

__all__ = ["LEAST_BYTES", "KeptModel", "KeptModels", "key_of", "wait_until_kept", "write_model"]

LEAST_BYTES = 1 << 25
"""Bytes of a checkpoint from which on it is worth keeping what is packed of it."""
_LIMIT_GB, _LIMIT_NAME = 20.0, "LUTRA_CACHE_GB"
_NICE = 10
_CHUNK = 1 << 24  # bytes of a file that are hashed at a time
_WRITING = ".writing-"
_SEEN = "seen"
_STAMP = "unchanged.json"
_CODE = (
    "lutra.checkpoints", "lutra.devices.cpu", "lutra.formats", "lutra.models", "lutra.packed",
    "lutra.quantize", "lutra.open_model", "lutra_golden",
)  # fmt: skip
"""Packages, and a module, whose code decides on what a checkpoint is packed to."""
_LIBRARIES = ("numpy", "ml_dtypes", "safetensors", "gguf")
_ENDS = (".py", ".c", ".h")


def key_of(
    path: Path,
    settings: Mapping[str, object],
    seen: Path | None = None,
    before_reading: Callable[[], object] | None = None,
) -> str | None:
    """Name of what a checkpoint is packed to; None if it is too small to be kept, or not whole.

    Files are read once: ``seen`` is a folder that remembers the content of files by their names,
    sizes and times. ``before_reading`` is called before any is read from end to end.
    """
    files = list(model_files(path)) if path.is_file() else _model_files_of(path)
    whole = all(each.is_file() for each in files)
    if not whole or sum(each.stat().st_size for each in files) < LEAST_BYTES:
        return None
    contents = [[each.name, _content(each, seen, before_reading)] for each in files]
    text = json.dumps([contents, dict(settings), VERSION, _code()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _model_files_of(folder: Path) -> list[Path]:
    names = [*folder.glob("*.safetensors"), *folder.glob("*.json")]
    return sorted(each for each in names if each.is_file())


def _content(path: Path, seen: Path | None, before_reading: Callable[[], object] | None) -> str:
    """Hash of a file's content, of pieces that the cores share."""
    stat = path.stat()
    known = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    place = None if seen is None else seen / hashlib.sha256(known.encode()).hexdigest()[:32]
    if place is not None:
        with contextlib.suppress(OSError):
            return place.read_text(encoding="ascii")
    if before_reading:
        before_reading()
    data: NDArray[np.uint8] = np.empty(0, np.uint8)
    if stat.st_size:
        data = np.memmap(path, np.uint8, "r").view(np.ndarray)
    pieces = [data[first : first + _CHUNK] for first in range(0, stat.st_size, _CHUNK)]
    digests = each_of(lambda piece: hashlib.sha256(piece.data).digest(), pieces)
    content = hashlib.sha256(b"".join(digests)).hexdigest()
    if place is not None:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            writing = place.with_suffix(f".{os.getpid()}")
            writing.write_text(content, encoding="ascii")
            writing.replace(place)
    return content


@cache
def _code() -> str:
    """Hash of the code that a packed model depends on, and of the versions of the package and of
    the libraries that it uses, which count where the code itself is not to be read."""
    names = (lutra.__name__, *_LIBRARIES)
    digest = hashlib.sha256(json.dumps([[each, _version_of(each)] for each in names]).encode())
    for name in _CODE:
        module = find_spec(name)
        assert module is not None
        assert module.origin is not None
        path = Path(module.origin)
        within = path.parent.rglob("*") if module.submodule_search_locations else [path]
        for each in sorted(each for each in within if each.suffix in _ENDS):
            place = each.relative_to(path.parent).as_posix()
            digest.update(f"{name}\0{place}\0".encode() + each.read_bytes() + b"\0")
    return digest.hexdigest()


def _version_of(library: str) -> str | None:
    """A library's version; None where it is not installed."""
    if library == lutra.__name__:
        return lutra.__version__
    try:
        return version(library)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True)
class KeptModel:
    """An entry: its folder, the model's name and format, its bytes and when it was used last."""

    folder: Path
    name: str
    format: str
    n_bytes: int
    used: float


class _Arrays:
    """The arrays of a layer in memory, as a file of tensors gives them."""

    def __init__(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._arrays = arrays

    def names(self) -> Collection[str]:
        return self._arrays.keys()

    def dtype(self, name: str) -> str:
        return self._arrays[name].dtype.name

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def read(self, name: str) -> NDArray[np.generic]:
        return self._arrays[name]


class _GivenUpError(Exception):
    pass


class _InMemory:
    """The layers of a packed model, as a store gives them to its file, until it is given up."""

    def __init__(self, folder: Path, model: PackedModel, given_up: threading.Event) -> None:
        self.folder, self._layers, self._given_up = folder, model.layers, given_up

    def arrays(self, i: int) -> tuple[_Arrays, dict[str, object]]:
        if self._given_up.is_set():
            raise _GivenUpError
        arrays, numbers = layer_arrays(self._layers[i])
        return _Arrays(arrays), numbers


def write_model(folder: Path, model: PackedModel) -> str:
    """Write a packed model that is in memory into a folder; its fingerprint."""
    writing = folder / _WRITING
    writing.mkdir()
    fingerprint = write_packed(folder, model, _InMemory(writing, model, threading.Event()))
    writing.rmdir()
    return fingerprint


class _Writer(threading.Thread):
    """Keeps a model; ``done`` gets the reason why it is not kept, if there is one.

    The process does not end before it has.
    """

    def __init__(
        self, models: "KeptModels", key: str, model: PackedModel, done: Callable[[str], None]
    ) -> None:
        super().__init__(name="keep a packed model")
        self.given_up = threading.Event()
        self._work: tuple[KeptModels, str, PackedModel, Callable[[str], None]] | None
        self._work = models, key, model, done

    def run(self) -> None:
        assert self._work is not None
        # what the caller does next comes first; Linux has priorities of threads
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, self.native_id or 0, _NICE)
        (models, key, model, done), self._work = self._work, None
        if reason := models.keep(key, model, self.given_up):
            done(reason)


_writers: list[_Writer] = []


def wait_until_kept() -> None:
    """Wait for the models that are being kept; an interrupt gives them up."""
    try:
        while _writers:
            _writers[-1].join()
            _writers.pop()
    except BaseException:
        for each in _writers:
            each.given_up.set()
        raise


class KeptModels:
    """The entries below the cache folder, those included that this process is writing."""

    def __init__(self, root: Path | None = None, limit_bytes: int | None = None) -> None:
        self.folder = (cache_root() if root is None else root) / "packed"
        self.limit_bytes = _limit() if limit_bytes is None else limit_bytes

    @property
    def seen(self) -> Path:
        """Folder that remembers the content of checkpoints."""
        return self.folder / _SEEN

    def has(self, key: str) -> bool:
        """True if there is an entry, which may be damaged."""
        wait_until_kept()
        return is_packed(self.folder / key)

    def find(self, key: str, name: str) -> PackedModel | None:
        """The model of an entry, called ``name``; None if there is none or it was damaged."""
        if not self.has(key):
            return None
        folder = self.folder / key
        try:
            found = open_packed(folder, unchanged=_stamp(folder) == _recorded(folder)).model
        except LutraError:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        # the same content may have another name now; its numbers were in range when it was packed
        return pass_numbers(replace(found, name=name))

    def keep_meanwhile(self, key: str, model: PackedModel, done: Callable[[str], None]) -> None:
        """Keep a model while the caller goes on; ``done`` gets the reason if it is not kept."""
        writer = _Writer(self, key, model, done)
        _writers.append(writer)
        writer.start()

    def keep(
        self, key: str, model: PackedModel, given_up: threading.Event | None = None
    ) -> str | None:
        """Keep a model; returns why it is not kept, None if it is, or if it was ``given_up``."""
        if reason := unwritable(self.folder):
            return f"{self.folder} cannot be written ({reason})"
        writing = self.folder / f"{_WRITING}{os.getpid()}-{key}"
        try:
            self._sweep()
            shutil.rmtree(writing, ignore_errors=True)
            (writing / "layers").mkdir(parents=True)
            layers = _InMemory(writing / "layers", model, given_up or threading.Event())
            write_packed(writing, model, layers)
            (writing / "layers").rmdir()
            (writing / _STAMP).write_text(json.dumps(_stamp(writing)), encoding="ascii")
            n_bytes = _size(writing)
            if n_bytes > self.limit_bytes:
                return (
                    f"its {n_bytes / 1e9:.1f} GB exceed the {self.limit_bytes / 1e9:.1f} GB of "
                    f"{_LIMIT_NAME}"
                )
            self._make_room(n_bytes)
            with contextlib.suppress(OSError):  # another process kept the same meanwhile
                writing.rename(self.folder / key)
        except OSError as error:
            return f"{self.folder} cannot be written ({error.strerror or error})"
        except _GivenUpError:
            return None
        finally:
            shutil.rmtree(writing, ignore_errors=True)
        return None

    def entries(self) -> Sequence[KeptModel]:
        """All entries, the one used last first."""
        wait_until_kept()
        return self._entries()

    def _entries(self) -> Sequence[KeptModel]:
        found: list[KeptModel] = []
        for folder in self.folder.glob("*") if self.folder.is_dir() else ():
            if folder.name.startswith(".") or not is_packed(folder):
                continue
            with contextlib.suppress(OSError, ValueError):
                config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                found.append(
                    KeptModel(
                        folder=folder,
                        name=str(config.get("name")),
                        format=str(config.get("format")),
                        n_bytes=_size(folder),
                        used=folder.stat().st_mtime,
                    )
                )
        return sorted(found, key=lambda each: -each.used)

    def clear(self) -> tuple[int, int]:
        """Remove all entries; returns how many there were, and their bytes."""
        entries = self.entries()  # which has waited for what is written
        shutil.rmtree(self.folder, ignore_errors=True)
        return len(entries), sum(each.n_bytes for each in entries)

    def _make_room(self, n_bytes: int) -> None:
        total = n_bytes
        for each in self._entries():
            total += each.n_bytes
            if total > self.limit_bytes:
                shutil.rmtree(each.folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what processes left that were ended while they wrote."""
        for folder in self.folder.glob(f"{_WRITING}*") if self.folder.is_dir() else ():
            process = folder.name.removeprefix(_WRITING).partition("-")[0]
            if process.isdigit() and not _runs(int(process)):
                shutil.rmtree(folder, ignore_errors=True)


def _stamp(folder: Path) -> list[list[object]]:
    """Names, sizes and times of an entry's files, to recognise them without reading them."""
    files = [folder / "config.json", folder / "model.safetensors"]
    stats = [(each.name, each.stat()) for each in files if each.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _recorded(folder: Path) -> object:
    try:
        found: object = json.loads((folder / _STAMP).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return found


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _limit() -> int:
    text = os.environ.get(_LIMIT_NAME)
    try:
        size = _LIMIT_GB if text is None else float(text)
    except ValueError:
        size = -1.0
    if not 0 <= size < 1e9:
        raise LutraError(f"{_LIMIT_NAME} must be gigabytes, such as 20, not {text!r}")
    return int(size * 1e9)

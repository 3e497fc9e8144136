"""Reading GGUF, version 3: metadata, and tensors as the bytes of a file mapped into memory.

The header is checked completely when a file is opened: every length and offset against the size of
the file, before anything is allocated for it. Layout: docs/gguf.md of
https://github.com/ggml-org/ggml.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lutra.formats.gguf_types import TensorType, kinds_of
from lutra.formats.safetensors import is_pointer
from lutra_golden.errors import LutraError

__all__ = ["GgufFile", "GgufTensor", "Metadata", "Value", "is_gguf"]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # 3 adds nothing but big-endian files
_DEFAULT_ALIGNMENT, _ALIGNMENT_MAX = 32, 1 << 20
_KEY_MAX = (1 << 16) - 1
_N_DIMS = 4
# the fewest bytes of an entry: its key's length, its type and a value; its name's length, a number
# of dimensions, one dimension, a type and an offset
_LEAST_FIELD, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8

_SCALARS: Mapping[int, np.dtype[np.generic]] = {
    number: np.dtype(name).newbyteorder("<")
    for number, name in (
        (0, "u1"), (1, "i1"), (2, "u2"), (3, "i2"), (4, "u4"), (5, "i4"), (6, "f4"), (7, "u1"),
        (10, "u8"), (11, "i8"), (12, "f8"),
    )
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9

Value = bool | int | float | str | list[str] | NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """Location of a tensor in the file; ``shape`` has the outermost dimension first."""

    name: str
    kind: TensorType
    shape: tuple[int, ...]
    start: int
    n_bytes: int


class Metadata:
    """The key-value pairs of a file and their checks; errors name the file, the key and the value.

    A getter gives ``default`` where a key is missing; without one the key must be there.
    """

    def __init__(self, path: Path, values: Mapping[str, Value]) -> None:
        self.path, self._values = path, values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def keys(self) -> Collection[str]:
        """All keys."""
        return self._values.keys()

    def _get(self, key: str, missing: bool) -> Value | None:
        value = self._values.get(key)
        if value is None and not missing:
            raise LutraError(f"{self.path}: metadata has no {key}: copy the model again")
        return value

    def _wrong(self, key: str, expected: str, value: object) -> LutraError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return LutraError(f"{self.path}: {key} must be {expected}, not {shown}")

    def value(self, key: str) -> Value | None:
        """A value of any type; None where it is missing."""
        return self._values.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default is not None)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def whole(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A whole number."""
        value = self._get(key, default is not None)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self._wrong(key, f"a whole number from {minimum} on", value)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._get(key, default is not None)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number", value)
        if not 0 < value < math.inf:
            raise self._wrong(key, "positive", value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, True)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def strings(self, key: str, default: list[str] | None = None) -> list[str]:
        """A list of strings."""
        value = self._get(key, default is not None)
        if value is None and default is not None:
            return default
        if not isinstance(value, list):
            raise self._wrong(key, "a list of strings", value)
        return value

    def numbers(self, key: str) -> NDArray[np.generic] | None:
        """An array of numbers; None where it is missing."""
        value = self._get(key, True)
        if value is not None and not isinstance(value, np.ndarray):
            raise self._wrong(key, "an array of numbers", value)
        return value

    def same_number(self, key: str, default: int | None = None) -> int:
        """A whole number, or an array of such that are all the same: what layers differ in."""
        value = self._values.get(key)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
            first = int(value[0])
            if (value != first).any():
                raise LutraError(
                    f"{self.path}: {key} differs from layer to layer, which is not supported: "
                    "use a model with equal layers"
                )
            if first < 1:
                raise self._wrong(key, "a whole number from 1 on", first)
            return first
        return self.whole(key, default)


class _Cursor:
    """Reads the header front to back; never past the end of the file."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path, self._data, self.at = path, data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def bytes(self, n: int, what: str) -> NDArray[np.uint8]:
        if n > self.left:
            raise LutraError(
                f"{self.path}: {what} at byte {self.at} takes {n} bytes, but {self.left} are left: "
                "the file is cut off or damaged, copy or download it again"
            )
        found = self._data[self.at : self.at + n]
        self.at += n
        return found

    def whole(self, n_bytes: int, what: str) -> int:
        return int.from_bytes(self.bytes(n_bytes, what).tobytes(), "little")

    def count(self, minimum: int, what: str) -> int:
        """A count of entries of at least ``minimum`` bytes each, checked against the bytes left."""
        n = self.whole(8, what)
        if n > self.left // minimum:
            raise LutraError(
                f"{self.path}: {what} at byte {self.at - 8} is {n}, but only {self.left} bytes are "
                "left: the file is cut off or damaged, copy or download it again"
            )
        return n

    def string(self, what: str) -> str:
        n = self.count(1, f"the length of {what}")
        try:
            return self.bytes(n, what).tobytes().decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 ({error.reason})", self.at - n) from None

    def value(self, key: str) -> Value:
        kind = self.whole(4, f"the type of {key}")
        if kind == _STRING:
            return self.string(key)
        if kind != _ARRAY:
            dtype = self._scalar(kind, key)
            found = self.bytes(dtype.itemsize, key).view(dtype)
            return self._flags(found, key)[0] if kind == _BOOL else found[0].item()
        kind = self.whole(4, f"the type of {key}")
        if kind == _ARRAY:
            raise self.error(f"{key} is an array of arrays, which is not supported", self.at - 4)
        if kind == _STRING:
            return self._strings(key)
        dtype = self._scalar(kind, key)
        n = self.count(dtype.itemsize, f"the length of {key}")
        values = self.bytes(n * dtype.itemsize, key).view(dtype).copy()
        if kind == _BOOL:
            return np.array(self._flags(values, key), np.bool_)
        return values

    def _strings(self, key: str) -> list[str]:
        """An array of strings; vocabularies have hundreds of thousands."""
        n, view, found = self.count(8, f"the length of {key}"), self._data.data, list[str]()
        at, size, length = self.at, len(view), Struct("<Q").unpack_from
        for i in range(n):
            end = at + 8
            if end <= size:
                end += length(view, at)[0]
            if end > size or at + 8 > size:
                self.at = at
                self.string(f"{key}[{i}]")  # says what is wrong
            try:
                found.append(str(view[at + 8 : end], "utf-8"))
            except UnicodeDecodeError as error:
                raise self.error(f"{key}[{i}] is not UTF-8 ({error.reason})", at + 8) from None
            at = end
        self.at = at
        return found

    def _scalar(self, kind: int, key: str) -> np.dtype[np.generic]:
        if kind not in _SCALARS:
            raise self.error(f"{key} has the unknown type {kind}", self.at - 4)
        return _SCALARS[kind]

    def _flags(self, values: NDArray[np.generic], key: str) -> list[bool]:
        if (values > np.uint8(1)).any():
            raise self.error(f"{key} must be true or false, not {values.max()}", self.at)
        return cast("list[bool]", (values == np.uint8(1)).tolist())

    def error(self, what: str, at: int) -> LutraError:
        return LutraError(f"{self.path}: {what}, at byte {at}: copy or download the file again")


def is_gguf(path: Path) -> bool:
    """True for a GGUF file, by its suffix or its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A tensor as the header names it, at a place there; several types may share its number."""

    at: int
    name: str
    number: int
    kinds: Sequence[TensorType]
    shape: tuple[int, ...]
    offset: int

    def n_bytes(self, kind: TensorType) -> int:
        return math.prod(self.shape) // kind.block * kind.block_bytes + kind.tail_bytes


def _shown(data: bytes) -> str:
    """Bytes as a text, where they are one."""
    text = data.decode("latin-1")
    is_text = text.isascii() and text.isprintable()
    return repr(text) if is_text else f"the bytes {data.hex(' ')}"


def _room(entries: Sequence[_Entry], end: int) -> dict[int, int]:
    """Bytes from each offset to the next, or to the end."""
    offsets = sorted({each.offset for each in entries})
    ends = [*offsets, end][1:]
    return {offset: after - offset for offset, after in zip(offsets, ends, strict=True)}


def _read_tensor(cursor: _Cursor, index: int) -> _Entry:
    """An entry of the header, its shape with the outermost dimension first."""
    at, name = cursor.at, cursor.string(f"the name of tensor {index}")
    if not 0 < len(name) <= _KEY_MAX:
        raise cursor.error(f"the name of tensor {index} must have 1..{_KEY_MAX} characters", at)
    n_dims = cursor.whole(4, f"the number of dimensions of {name}")
    if not 1 <= n_dims <= _N_DIMS:
        raise cursor.error(f"{name} must have 1..{_N_DIMS} dimensions, not {n_dims}", cursor.at - 4)
    dims = [cursor.whole(8, f"a dimension of {name}") for _ in range(n_dims)]
    number = cursor.whole(4, f"the type of {name}")
    offset = cursor.whole(8, f"the offset of {name}")
    kinds = kinds_of(number, f"{cursor.path}: {name}")
    if min(dims) < 1 or math.prod(dims) >= 1 << 63:
        raise cursor.error(f"{name} has the impossible shape {dims[::-1]}", at)
    # I2_S blocks run over the ends of rows
    depth = math.prod(dims) if kinds[0].tail_bytes else dims[0]
    whole = [kind for kind in kinds if depth % kind.block == 0]
    if not whole:
        raise cursor.error(
            f"{name} is {dims[::-1]}, but {kinds[0].name} needs a multiple of {kinds[0].block} "
            "values",
            at,
        )
    return _Entry(
        at=at, name=name, number=number, kinds=whole, shape=tuple(dims[::-1]), offset=offset
    )


def _choose(
    path: Path, alike: Sequence[_Entry], room: Mapping[int, int], alignment: int
) -> TensorType:
    """The type of all tensors with one number, of several by the bytes that they take."""
    kinds = alike[0].kinds
    if not kinds[0].shared:
        return kinds[0]
    fitting = list(kinds)
    for each in alike:
        gap = room[each.offset]
        fitting = [
            kind
            for kind in fitting
            if kind in each.kinds and 0 <= gap - each.n_bytes(kind) < alignment
        ]
        if not fitting:
            blocks = " or ".join(f"{each.n_bytes(kind)} ({kind.name})" for kind in kinds)
            raise LutraError(
                f"{path}: {each.name} has the type number {each.number} and {gap} bytes, "
                f"not {blocks}: its layout is not known, convert the model again"
            )
    if len(fitting) > 1:
        raise LutraError(
            f"{path}: the bytes of {alike[0].name} do not say if it is "
            f"{' or '.join(kind.name for kind in fitting)}, which share a type number: convert "
            "the model to another type"
        )
    return fitting[0]


class GgufFile:
    """A GGUF file: ``metadata``, and ``tensors`` by their names, in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
        except FileNotFoundError:
            raise LutraError(f"{path} does not exist: give a GGUF file") from None
        except (OSError, ValueError) as error:
            raise LutraError(f"{path} cannot be read ({error}): give a GGUF file") from None
        # a plain view: slices of a memmap cost much more
        self._data: NDArray[np.uint8] = data.view(np.ndarray)
        cursor = _Cursor(path, self._data)
        n_tensors, n_fields = self._read_head(cursor)
        values: dict[str, Value] = {}
        for i in range(n_fields):
            at, key = cursor.at, cursor.string(f"key {i}")
            if not 0 < len(key) <= _KEY_MAX:
                raise cursor.error(f"key {i} must have 1..{_KEY_MAX} characters", at)
            if key in values:
                raise cursor.error(f"key {key!r} appears twice", at)
            values[key] = cursor.value(key)
        self.metadata = Metadata(path, values)
        alignment = self.metadata.whole("general.alignment", _DEFAULT_ALIGNMENT)
        if alignment & (alignment - 1) or alignment > _ALIGNMENT_MAX:
            raise LutraError(
                f"{path}: general.alignment must be a power of two up to {_ALIGNMENT_MAX}, "
                f"not {alignment}"
            )
        entries = [_read_tensor(cursor, i) for i in range(n_tensors)]
        data_start = -(-cursor.at // alignment) * alignment
        room = _room(entries, size - data_start)
        chosen: dict[int, TensorType] = {}
        self.tensors: dict[str, GgufTensor] = {}
        for entry in entries:
            at, name, shape, offset = entry.at, entry.name, entry.shape, entry.offset
            if name in self.tensors:
                raise cursor.error(f"tensor {name!r} appears twice", at)
            if offset % alignment:
                raise cursor.error(
                    f"the offset of {name} must be a multiple of {alignment}, not {offset}", at
                )
            if entry.number not in chosen:
                alike = [each for each in entries if each.number == entry.number]
                chosen[entry.number] = _choose(path, alike, room, alignment)
            kind = chosen[entry.number]
            n_bytes, start = entry.n_bytes(kind), data_start + offset
            if start + n_bytes > size:
                raise LutraError(
                    f"{path}: {name} lies at bytes {start}..{start + n_bytes}, beyond the end of "
                    f"the file ({size}): it is cut off or damaged, copy or download it again"
                )
            self.tensors[name] = GgufTensor(
                name=name, kind=kind, shape=shape, start=start, n_bytes=n_bytes
            )

    def _read_head(self, cursor: _Cursor) -> tuple[int, int]:
        """Numbers of tensors and of key-value pairs."""
        magic = cursor.bytes(min(4, cursor.left), "the magic").tobytes()
        if magic != MAGIC and is_pointer(self.path):
            raise LutraError(
                f"{self.path} is a pointer of Git LFS, not the file: run `git lfs pull` in its "
                "folder, or download the model again"
            )
        if magic != MAGIC:
            begins = f"begins with {_shown(magic)}, not {_shown(MAGIC)}" if magic else "is empty"
            raise LutraError(f"{self.path} is not a GGUF file, it {begins}: give a GGUF file")
        version = cursor.whole(4, "the version")
        if version and not version & 0xFFFF:
            raise LutraError(
                f"{self.path} is a big-endian GGUF file, which is not supported: convert the model "
                "on, or for, a little-endian machine"
            )
        if version not in _VERSIONS:
            raise LutraError(
                f"{self.path} is GGUF version {version}; supported are 2 and 3: "
                "convert the model again"
            )
        n_tensors = cursor.count(_LEAST_TENSOR, "the number of tensors")
        return n_tensors, cursor.count(_LEAST_FIELD, "the number of keys")

    def bytes(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """A tensor's bytes, a view of the file."""
        return self._data[tensor.start : tensor.start + tensor.n_bytes]

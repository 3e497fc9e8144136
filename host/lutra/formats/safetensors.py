"""Reading safetensors, of one file or sharded over several, bfloat16 included."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lutra_golden.errors import LutraError

__all__ = ["SafetensorsFolder", "is_pointer"]

# importing ml_dtypes is what makes NumPy know bfloat16 by name
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ENDS = ".safetensors.index.json"
_PART = re.compile(r"-of-\d+|^adapter_")  # of several files, or of another model
_POINTER = b"version https://git-lfs"
_LENGTH = 8  # bytes of the header's length
_NAMES = {"U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16"}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class SafetensorsFolder:
    """The tensors of a folder, each read when it is asked for.

    The folder holds ``model.safetensors``, or an index, ``model.safetensors.index.json``, and what
    that names; older programs have other names for them. The library checks a file's header against
    its size when it is opened.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._files: dict[Path, Any] = {}
        self._names: dict[Path, frozenset[str]] = {}
        self._maps: dict[Path, _Map] = {}
        single, index = _only(folder, _SINGLE, "*.safetensors"), _only(folder, _INDEX, f"*{_ENDS}")
        if single.is_file() and (single.name == _SINGLE or not index.is_file()):
            self.path = single
            self._shards = dict.fromkeys(self._open(self.path).keys(), self.path)
        elif index.is_file():
            self._shards = _read_index(index)
        elif parts := sorted(path.name for path in folder.glob("*-of-*.safetensors")):
            raise LutraError(
                f"{folder} holds parts of a model such as {parts[0]}, but not {_INDEX}, which says "
                "what is in which: copy that file, too"
            )
        else:
            found = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
            if found:
                raise LutraError(
                    f"{folder / sorted(found)[0]} is a pickle, which can run any code and is not "
                    f"read; expected is {_SINGLE}: convert the model to safetensors"
                )
            raise LutraError(
                f"{folder / _SINGLE} does not exist: the model folder must hold it, or {_INDEX}"
            )

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, framework="numpy")
            except FileNotFoundError:
                raise LutraError(
                    f"{path} does not exist, though {_INDEX} names it: copy the model again"
                ) from None
            except OSError as error:
                raise LutraError(f"{path} cannot be read ({error}): copy the model again") from None
            except SafetensorError as error:
                if is_pointer(path):
                    raise LutraError(
                        f"{path} is a pointer of Git LFS, not the file: run `git lfs pull` in its "
                        "folder, or download the model again"
                    ) from None
                raise LutraError(
                    f"{path} is not a whole safetensors file ({error}): copy or download it again"
                ) from None
        return self._files[path]

    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self._shards.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._open(self._shard(name)).get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """NumPy's name of a tensor's type, without reading it."""
        found = str(self._open(self._shard(name)).get_slice(name).get_dtype())
        return _NAMES.get(found, found)

    def read(self, name: str, *shape: int) -> NDArray[np.generic]:
        """The tensor of this name; it must have this shape, if one is given."""
        path = self._shard(name)
        file = self._open(path)
        try:
            if shape and self.shape(name) != shape:
                raise LutraError(
                    f"{path}: {name} must be {list(shape)}, not {list(self.shape(name))}: "
                    "config.json and the tensors are of different models"
                )
            return cast("NDArray[np.generic]", file.get_tensor(name))
        except SafetensorError as error:
            raise LutraError(f"{path}: {name} cannot be read ({error}): copy it again") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise LutraError(
                f"{path}: {name} has a type that is not supported ({error}): "
                "use a model in BF16, F16 or F32"
            ) from None

    def view(self, name: str, *shape: int) -> NDArray[np.generic]:
        """Like :meth:`read`, but mapped from the file and not to be written to.

        Bytes are read on first access, and shared with other processes that map the file.
        """
        path = self._shard(name)
        dtype = self.dtype(name)
        if dtype not in _NAMES.values():
            return self.read(name, *shape)
        found = self.shape(name)
        if shape and found != shape:
            return self.read(name, *shape)  # raises the error
        if path not in self._maps:
            self._maps[path] = _Map(path)
        return self._maps[path].array(name, np.dtype(dtype), found)

    def _shard(self, name: str) -> Path:
        if name not in self._shards:
            raise LutraError(f"{self.path} has no tensor {name}: copy the model again")
        path = self._shards[name]
        if path not in self._names:
            self._names[path] = frozenset(self._open(path).keys())
        if name not in self._names[path]:
            raise LutraError(f"{path} has no tensor {name}, though {_INDEX} says so: copy it again")
        return path


class _Map:
    """The bytes of a file whose header the library has found good."""

    def __init__(self, path: Path) -> None:
        self._bytes: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        n = int(self._bytes[:_LENGTH].view("<u8")[0])
        self._first = _LENGTH + n
        self._header = json.loads(self._bytes[_LENGTH : self._first].tobytes())

    def array(
        self, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]
    ) -> NDArray[np.generic]:
        """A tensor's elements; a copy where they are not aligned."""
        first, last = self._header[name]["data_offsets"]
        data = self._bytes[self._first + first : self._first + last]
        if (self._first + first) % dtype.itemsize:
            data = data.copy()
        return np.asarray(data).view(dtype).reshape(shape)


def is_pointer(path: Path) -> bool:
    """True if Git LFS left this in a file's place."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _only(folder: Path, name: str, pattern: str) -> Path:
    """The file of this name, or else the only one of the pattern that is no part of several."""
    others = [each for each in folder.glob(pattern) if not _PART.search(each.name)]
    known = (folder / name).is_file() or len(others) != 1
    return folder / name if known else others[0]


def _read_index(path: Path) -> dict[str, Path]:
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LutraError(f"{path} is not JSON ({error}): copy the model again") from None
    table: object = (
        cast("dict[str, object]", content).get("weight_map") if isinstance(content, dict) else None
    )
    if not isinstance(table, dict):
        raise LutraError(f"{path} has no weight_map: copy the model again")
    shards: dict[str, Path] = {}
    for name, file in cast("dict[str, object]", table).items():
        if not isinstance(file, str) or Path(file).name != file:
            raise LutraError(f"{path}: weight_map must name files of its folder, not {file!r}")
        shards[name] = path.parent / file
    return shards

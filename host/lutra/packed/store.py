"""Packed layers on disk while a model is being packed, so that an interrupt loses little."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra.formats.safetensors_writer import write_arrays
from lutra.packed.layers import LayerReader, LayerSizes, layer_arrays
from lutra.quantize.budget import BitPlan
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedLayer

__all__ = ["LayerSource", "PackedStore", "Tensors", "check_finished", "is_unfinished"]

_PREFIX = ".partial-"
_TENSORS, _NUMBERS, _PLAN = "model.safetensors", "layer.json", "plan.json"


def is_unfinished(out: Path) -> bool:
    """True if an interrupt left layers in a folder."""
    return next(out.glob(f"{_PREFIX}*"), None) is not None


def check_finished(path: Path) -> None:
    """Refuse a folder that an interrupted ``lutra pack`` or ``lutra quantize`` left."""
    if path.is_dir() and is_unfinished(path) and not (path / "config.json").exists():
        raise LutraError(
            f"{path} is not packed to the end, because that was interrupted: run the same command "
            "(lutra pack or lutra quantize) again to finish it"
        )


def _lock(descriptor: int, folder: Path) -> None:
    """Lock a folder; the system gives it back when the process ends in any way."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LutraError(
            f"another process packs a model to {folder}: wait until it is done, or give another "
            "folder"
        ) from None
    except OSError:
        pass  # a file system that cannot lock a folder


class Tensors(Protocol):
    """Arrays by their names."""

    def names(self) -> Collection[str]:
        """All names."""
        ...

    def dtype(self, name: str) -> str:
        """NumPy's name of a type."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""
        ...

    def read(self, name: str) -> NDArray[np.generic]:
        """An array."""
        ...


class LayerSource(Protocol):
    """Layers to be written, and a folder for what is not yet whole."""

    folder: Path

    def arrays(self, i: int) -> tuple[Tensors, dict[str, object]]:
        """Arrays and numbers of layer ``i``, as :func:`~.layers.layer_arrays` gives them."""
        ...


class PackedStore(Sequence[PackedLayer]):
    """The layers of a model that are done, within the folder ``out`` that it is packed to.

    ``settings`` is everything that decides what a layer becomes: layers that were packed with
    others are not taken. Nothing is written before the first layer is saved.
    """

    def __init__(self, out: Path, settings: Mapping[str, object], sizes: LayerSizes) -> None:
        text = json.dumps(settings, sort_keys=True)
        self._out, self._sizes = out, sizes
        self.folder = out / f"{_PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Keep the folder for this process; LutraError if another one packs a model to it.

        Errors of writing name it, as those of opening a file name the file. A checkpoint that is
        refused within leaves nothing there: no other run could go on with its layers.
        """
        made = not self._out.exists()
        self._out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._out, os.O_RDONLY)
        try:
            _lock(descriptor, self._out)
            try:
                yield
            except LutraError:
                shutil.rmtree(self.folder, ignore_errors=True)
                raise
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(self._out)) from None
        finally:
            os.close(descriptor)
            if made:
                with contextlib.suppress(OSError):  # unless there is something in it
                    self._out.rmdir()

    def _place(self, i: int) -> Path:
        return self.folder / f"layer-{i:04d}"

    def save(self, i: int, layer: PackedLayer) -> None:
        """Keep layer ``i``; it is there whole or not at all."""
        arrays, numbers = layer_arrays(layer)
        place = self._place(i)
        writing = place.with_suffix(".writing")
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        write_arrays(writing / _TENSORS, arrays)
        (writing / _NUMBERS).write_text(json.dumps(numbers, sort_keys=True), encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        writing.rename(place)

    def load(self, i: int) -> PackedLayer | None:
        """Layer ``i``, or None if it is not finished, or was damaged since."""
        place = self._place(i)
        if not place.is_dir():
            return None
        try:
            reader = LayerReader(SafetensorsFolder(place), self._sizes)
            return reader.read("", ConfigFile.read(place / _NUMBERS))
        except LutraError:
            return None

    def save_plan(self, plan: BitPlan) -> None:
        """Keep the bits that were allotted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _PLAN).write_text(json.dumps(plan.bits), encoding="utf-8")

    def load_plan(self) -> BitPlan | None:
        """The bits that were allotted, or None."""
        try:
            found = json.loads((self.folder / _PLAN).read_text(encoding="utf-8"))
            return BitPlan(tuple(tuple(map(int, layer)) for layer in found))
        except (OSError, ValueError, TypeError):
            return None

    def __len__(self) -> int:
        return sum(1 for each in self.folder.glob("layer-*") if not each.suffix)

    @overload
    def __getitem__(self, index: int) -> PackedLayer: ...
    @overload
    def __getitem__(self, index: slice) -> list[PackedLayer]: ...
    def __getitem__(self, index: int | slice) -> PackedLayer | list[PackedLayer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        layer = self.load(index)
        if layer is None:
            raise IndexError(f"layer {index} is not finished")
        return layer

    def arrays(self, i: int) -> tuple[SafetensorsFolder, dict[str, object]]:
        """Arrays and numbers of layer ``i``, as :func:`~.layers.layer_arrays` gives them."""
        place = self._place(i)
        numbers = json.loads((place / _NUMBERS).read_text(encoding="utf-8"))
        return SafetensorsFolder(place), numbers

    def clear(self) -> None:
        """Forget all layers, also those that other settings left."""
        for folder in self._out.glob(f"{_PREFIX}*"):
            shutil.rmtree(folder, ignore_errors=True)

"""Models that ``gguf-split`` cut into several files, as one.

Parts are called ``NAME-00001-of-00003.gguf``. The first holds the metadata of the model; each says
which one it is, of how many, and how many tensors all have together.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.formats.gguf import GgufFile, GgufTensor, Metadata
from lutra_golden.errors import LutraError

__all__ = ["GgufModel", "model_files", "model_name"]

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.DOTALL)
_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"


def model_name(path: Path) -> str:
    """The name of a file's model: without its ending, and without the number of a part."""
    parts = _NAME.fullmatch(path.stem)
    return parts[1] if parts else path.stem


def model_files(path: Path) -> Sequence[Path]:
    """The files of a model, of which ``path`` is any; by their names, they need not exist."""
    parts = _NAME.fullmatch(path.stem)
    if parts is None:
        return [path]
    n = int(parts[3])
    names = (f"{parts[1]}-{i:05d}-of-{n:05d}{path.suffix}" for i in range(1, n + 1))
    return [path.with_name(name) for name in names]


class GgufModel:
    """A model in one file or in parts, of which ``path`` is any.

    ``metadata`` is that of the first part, ``tensors`` are those of all by their names.
    """

    def __init__(self, path: Path) -> None:
        opened = GgufFile(path)
        self.path = path
        n = opened.metadata.whole(_COUNT, default=1, minimum=0)
        if n <= 1:
            self.files: Sequence[Path] = [path]
            parts = [opened]
        else:
            self.files = _files(opened, n)
            missing = [each for each in self.files if not each.is_file()]
            if missing:
                raise LutraError(
                    f"{path} is one of {n} parts, and {missing[0]} is missing: put all parts into "
                    "one folder"
                )
            parts = [opened if each == path else GgufFile(each) for each in self.files]
            _check(parts, n)
        self.metadata: Metadata = parts[0].metadata
        self.tensors: dict[str, GgufTensor] = {}
        self._owner: dict[str, GgufFile] = {}
        for part in parts:
            for name, tensor in part.tensors.items():
                if name in self.tensors:
                    raise LutraError(
                        f"{part.path}: tensor {name} is in {self._owner[name].path} already: copy "
                        "or download the parts again"
                    )
                self.tensors[name], self._owner[name] = tensor, part

    def bytes(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """A tensor's bytes, a view of its file."""
        return self._owner[tensor.name].bytes(tensor)


def _files(opened: GgufFile, n: int) -> Sequence[Path]:
    """The parts, by the name of one of them and what it says of itself."""
    number = opened.metadata.whole(_NUMBER, minimum=0) + 1
    ending = f"-{number:05d}-of-{n:05d}"
    if not opened.path.stem.endswith(ending) or opened.path.stem == ending:
        raise LutraError(
            f"{opened.path} is part {number} of {n}, and its name must end in {ending}: give the "
            "parts the names that they had"
        )
    return model_files(opened.path)


def _check(parts: Sequence[GgufFile], n: int) -> None:
    """LutraError unless these are the parts of one model, in their order."""
    for number, part in enumerate(parts):
        found = part.metadata.whole(_NUMBER, minimum=0), part.metadata.whole(_COUNT)
        if found != (number, n):
            raise LutraError(
                f"{part.path} is part {found[0] + 1} of {found[1]}, not {number + 1} of {n}: the "
                "parts are of different models, copy or download them again"
            )
    total = parts[0].metadata.whole(_TENSORS, default=sum(len(each.tensors) for each in parts))
    for part in parts:
        if part.metadata.whole(_TENSORS, default=total) != total:
            raise LutraError(
                f"{part.path} is of a model of {part.metadata.whole(_TENSORS)} tensors, not "
                f"{total}: the parts are of different models, copy or download them again"
            )
    if sum(len(each.tensors) for each in parts) != total:
        raise LutraError(
            f"{parts[0].path} and its parts have {sum(len(each.tensors) for each in parts)} "
            f"tensors, not {total}: copy or download the parts again"
        )

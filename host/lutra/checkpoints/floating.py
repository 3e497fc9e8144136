"""Tensors in floating point, checked: what every kind of checkpoint has some of."""

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense
from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra_golden.errors import LutraError

__all__ = ["finite", "read_dense", "take_finite"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def finite(tensors: SafetensorsFolder, name: str, values: NDArray[np.generic]) -> None:
    """Refuse a tensor that is not in floating point, or holds what float32 does not."""
    if values.dtype.kind not in "fV" or values.dtype.itemsize not in (2, 4, 8):
        raise LutraError(
            f"{tensors.path}: {name} must be in floating point, not {values.dtype}: "
            "use a checkpoint in BF16, F16 or F32"
        )
    if not np.isfinite(values).all():  # pyright: ignore[reportCallIssue, reportArgumentType]
        raise LutraError(f"{tensors.path}: {name} holds infinities or NaNs: export the model again")
    if values.dtype == np.float64 and values.size and np.abs(values).max() > _FLOAT32_MAX:
        raise LutraError(
            f"{tensors.path}: {name} holds numbers beyond float32: rescale the checkpoint"
        )


def take_finite(tensors: SafetensorsFolder, name: str, *shape: int) -> NDArray[np.generic]:
    """A tensor of this shape in floating point."""
    values = tensors.read(name, *shape)
    finite(tensors, name, values)
    return values


def read_dense(tensors: SafetensorsFolder, config: ConfigFile, name: str, n: int, k: int) -> Dense:
    """A matrix in floating point; one that is quantised is refused by its parts' names."""
    full = f"{name}.weight"
    if full not in tensors.names():
        parts = sorted(each for each in tensors.names() if each.startswith(f"{name}."))
        if parts and parts != [f"{name}.bias"]:
            raise LutraError(
                f"{tensors.path}: {name} must be in floating point, in {full}, not in "
                f"{', '.join(parts)}: use a checkpoint that leaves it as it is"
            )
    return Dense(take_finite(tensors, full, n, k))

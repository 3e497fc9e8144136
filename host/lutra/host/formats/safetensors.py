"""Reading safetensors files into NumPy, bfloat16 included."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import safetensors
from numpy.typing import NDArray

from lutra.host.errors import LutraError

__all__ = ["read_safetensors"]

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return every tensor of the file by name; bfloat16 becomes float32, exactly."""
    try:
        raw = path.read_bytes()
        entries = cast(
            "list[tuple[str, Mapping[str, object]]]",
            safetensors.deserialize(raw),  # pyright: ignore[reportUnknownMemberType]
        )
    except FileNotFoundError:
        raise LutraError(
            f"{path} does not exist: the model folder must hold model.safetensors"
        ) from None
    except safetensors.SafetensorError as error:
        raise LutraError(
            f"{path} is not a whole safetensors file ({error}): copy or download it again"
        ) from None
    tensors: dict[str, NDArray[np.generic]] = {}
    for name, entry in entries:
        dtype, shape = str(entry["dtype"]), cast("list[int]", entry["shape"])
        data = cast("bytes", entry["data"])
        if dtype == "BF16":
            bits = np.frombuffer(data, "<u2").astype(np.uint32) << 16
            tensors[name] = bits.view(np.float32).reshape(shape)
        elif dtype in _DTYPES:
            tensors[name] = np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
        else:
            raise LutraError(
                f"{path}: tensor {name} has type {dtype}; supported are BF16, {', '.join(_DTYPES)}"
            )
    return tensors

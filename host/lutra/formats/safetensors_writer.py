"""Writing safetensors one tensor at a time: the library wants all of them in memory."""

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrays", "Sizes", "write_arrays", "write_safetensors"]

Arrays = Mapping[str, NDArray[np.generic]]
Sizes = Mapping[str, tuple[str, tuple[int, ...]]]
"""NumPy's name of a tensor's type, and its shape."""
_TYPES = {"uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16"}


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays that are in memory, in their order."""
    write_safetensors(path, {k: (a.dtype.name, a.shape) for k, a in arrays.items()}, arrays.items())


def write_safetensors(
    path: Path, sizes: Sizes, arrays: Iterable[tuple[str, NDArray[np.generic]]]
) -> str:
    """Write ``arrays`` as they come, which is in the order of ``sizes``.

    Returns the file's SHA-256: another thread hashes an array while it is written.
    """
    header: dict[str, object] = {}
    end = 0
    for name, (dtype, shape) in sizes.items():
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _TYPES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(text)
    with path.open("wb") as file:
        file.write(text)
        for (expected, (dtype, shape)), (name, values) in zip(sizes.items(), arrays, strict=True):
            assert (name, values.dtype.name, values.shape) == (expected, dtype, shape)
            little = values.astype(values.dtype.newbyteorder("<"), copy=False)
            data = np.ascontiguousarray(little).data
            # no pool: they take no more work once the main thread has ended, while this one goes on
            hashing = threading.Thread(target=digest.update, args=(data,))
            hashing.start()
            try:
                file.write(data)
            finally:
                hashing.join()
    return digest.hexdigest()

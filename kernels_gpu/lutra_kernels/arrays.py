"""Memory that kernels work on: torch tensors on a CUDA device, NumPy arrays under the interpreter.

Wrappers allocate, upload and download through these functions only, so that the interpreter
(``TRITON_INTERPRET=1``) needs no torch. An :class:`HostArray` is what Triton asks of an argument:
an address and a dtype, and storage that can be "copied" to the host.
"""

import math
import os
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lutra_kernels import interpreted

__all__ = [
    "DEVICE",
    "INTERPRETED",
    "Array",
    "HostArray",
    "assign",
    "check",
    "copy",
    "download",
    "empty",
    "free_bytes",
    "rows_of",
    "take_rows",
    "upload",
    "zeros",
]

INTERPRETED = interpreted()
"""True if kernels run in Triton's interpreter; read once, as ``triton.jit`` does."""
DEVICE = "cuda"
"""The device of torch tensors."""
POISON = 0xA5
"""Every byte of new memory under the interpreter: an output that is not written shows."""
_ALIGNMENT = 128


class Array(Protocol):
    """Common interface of torch tensors and :class:`HostArray`."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> object: ...

    def data_ptr(self) -> int: ...

    def zero_(self) -> object: ...

    def view(self, dtype: object) -> "Array": ...

    def is_contiguous(self) -> bool: ...

    def numpy(self) -> NDArray[np.generic]: ...

    def cpu(self) -> "Array": ...


class _Copying(Protocol):
    def copy_(self, source: object) -> object: ...


class _Slicing(Protocol):
    def __getitem__(self, index: slice) -> Array: ...


class HostArray:
    """A C-contiguous NumPy array with the part of a torch tensor's interface that Triton uses."""

    def __init__(self, data: NDArray[np.generic]) -> None:
        if not data.flags.c_contiguous:
            raise ValueError("data must be C-contiguous")
        self.data = data

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.data.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def data_ptr(self) -> int:
        return self.data.ctypes.data

    # the interpreter copies every argument's storage to the host before a launch and back after
    # it; this one is there already

    def untyped_storage(self) -> "HostArray":
        return self

    def cpu(self) -> "HostArray":
        return self

    def new_empty(self, size: int, device: str) -> "HostArray":
        return HostArray(np.empty(size, self.dtype))

    def set_(
        self, storage: "HostArray", offset: int, size: Sequence[int], stride: Sequence[int]
    ) -> None:
        self.data = storage.data

    def copy_(self, other: "HostArray") -> None:
        assert other.data is self.data

    def view(self, dtype: object) -> "HostArray":
        return HostArray(self.data.view(dtype))

    def zero_(self) -> object:
        self.data.fill(0)
        return self

    def is_contiguous(self) -> bool:
        return True

    def numpy(self) -> NDArray[np.generic]:
        return self.data

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.data.itemsize for step in self.data.strides)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Poisoned memory that begins where a CUDA allocation would: vectors may be loaded."""
    n_bytes = math.prod(shape) * dtype.itemsize
    raw = np.full(n_bytes + _ALIGNMENT, POISON, np.uint8)
    first = -raw.ctypes.data % _ALIGNMENT
    return raw[first : first + n_bytes].view(dtype).reshape(shape)


def empty(shape: Sequence[int], dtype: DTypeLike) -> Array:
    """New memory with anything in it."""
    dtype = np.dtype(dtype)
    if INTERPRETED:
        return HostArray(_aligned(tuple(shape), dtype))
    torch = import_module("torch")
    found = torch.empty(tuple(shape), dtype=getattr(torch, dtype.name), device=DEVICE)
    return cast(Array, found)


def zeros(shape: Sequence[int], dtype: DTypeLike) -> Array:
    """New memory full of zeros."""
    array = empty(shape, dtype)
    array.zero_()
    return array


def upload(data: ArrayLike) -> Array:
    """A copy of ``data`` where kernels can read it."""
    source = np.ascontiguousarray(data)
    if INTERPRETED:
        copy = _aligned(source.shape, source.dtype)
        copy[...] = source
        return HostArray(copy)
    torch = import_module("torch")
    return cast(Array, torch.from_numpy(source).to(DEVICE))


def download(array: Array) -> NDArray[np.generic]:
    """A copy of ``array`` in NumPy."""
    return array.cpu().numpy().copy()


def assign(array: Array, values: ArrayLike) -> None:
    """Overwrite ``array`` with ``values`` of its shape and dtype."""
    if isinstance(array, HostArray):
        array.data[...] = values
    else:
        source = import_module("torch").from_numpy(np.ascontiguousarray(values))
        cast(_Copying, array).copy_(source)


def copy(array: Array, source: Array) -> None:
    """Overwrite ``array`` with another one of its shape and dtype, on the device."""
    if isinstance(array, HostArray):
        array.data[...] = source.numpy()
    else:
        cast(_Copying, array).copy_(source)


def rows_of(array: Array, first: int, last: int) -> Array:
    """The same memory from row ``first`` to ``last``."""
    if isinstance(array, HostArray):
        return HostArray(array.data[first:last])
    return cast(_Slicing, array)[first:last]


def take_rows(array: Array, rows: Array, out: Array) -> None:
    """Copy some ``rows`` (int32) of ``array`` to ``out``."""
    if isinstance(array, HostArray):
        assign(out, array.data[rows.numpy()])
    else:
        import_module("torch").index_select(array, 0, rows, out=out)


def free_bytes() -> int:
    """Memory that can still be allocated, of the device or, under the interpreter, of the host."""
    if INTERPRETED:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cuda = import_module("torch").cuda
    # what torch has taken from the driver and does not use counts too
    return cuda.mem_get_info()[0] + cuda.memory_reserved() - cuda.memory_allocated()


def check(name: str, array: Array, shape: Sequence[int], dtype: DTypeLike) -> None:
    """Raise unless ``array`` has this shape and dtype and is contiguous."""
    expected = np.dtype(dtype).name
    found = str(array.dtype).rpartition(".")[2]
    if found != expected:
        raise TypeError(f"{name} must be {expected}, not {found}")
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"{name} must be {list(shape)}, not {list(array.shape)}")
    if not array.is_contiguous():
        raise ValueError(f"{name} must be contiguous")

"""Common preparation of all matmul wrappers: checks, views, choice of tiles."""

from functools import lru_cache
from importlib import import_module

import numpy as np
from numpy.typing import DTypeLike

from lutra_kernels.arrays import INTERPRETED, Array, HostArray
from lutra_kernels.launch import Tile, choose
from lutra_kernels.layout import Activations
from lutra_kernels.matmul.fields import PLANES
from lutra_kernels.matmul.matrix import Matrix

__all__ = ["architecture", "as_dtype", "check_operands", "tile_of"]


def check_operands(a: Activations, w: Matrix) -> None:
    """Raise unless these activations were made for this matrix."""
    if a.k != w.k:
        raise ValueError(f"activations must have the matrix's depth {w.k}, not {a.k}")
    if a.group != w.group:
        raise ValueError(f"activation sums must be of groups of {w.group}, not {a.group}")
    if a.a_bits == 16 and w.offset is None:
        raise ValueError("16-bit activations need a matrix that was uploaded with code_sums")


def as_dtype(array: Array, dtype: DTypeLike) -> Array:
    """The same memory as elements of another type."""
    name = np.dtype(dtype).name
    if isinstance(array, HostArray):
        return array.view(np.dtype(name))
    return array.view(getattr(import_module("torch"), name))


@lru_cache
def architecture() -> int:
    """Compute capability of the device, times ten; sm_90's under the interpreter."""
    if INTERPRETED:
        return 90
    major, minor = import_module("torch").cuda.get_device_capability()
    return 10 * major + minor


def tile_of(kernel: str, a: Activations, w: Matrix) -> Tile:
    """The tile of these operands."""
    return choose(
        kernel,
        arch=architecture(),
        bits=w.bits,
        group=w.group,
        n=w.n,
        k=w.k,
        m=a.m,
        a_bytes=a.a_bytes,
        planes=PLANES[w.bits],
    )

"""The C library: its structures, its functions, and which of its targets this machine has."""

import ctypes
from ctypes import (
    CDLL,
    Structure,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_void_p,
)
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.devices.cpu.build import BuildError, library_path
from lutra_golden.arith.exp2 import exp2_table
from lutra_golden.arith.scale import Scale, recip_table, rsqrt_table
from lutra_golden.arith.silu import silu_table
from lutra_golden.errors import LutraError

__all__ = [
    "CLayer",
    "CMatrix",
    "CModel",
    "CNorm",
    "CScale",
    "library",
    "open_library",
    "pointer",
    "scale_of",
    "target_names",
    "target_number",
]

_ABI = 2


class CScale(Structure):
    """``lutra_scale``."""

    _fields_ = (("m", c_int32), ("e", c_int32))


class CTables(Structure):
    """``lutra_tables``."""

    _fields_ = (
        ("recip", c_int32 * 256),
        ("rsqrt", c_int32 * 256),
        ("exp2_base", c_int32 * 32),
        ("exp2_drop", c_int32 * 32),
        ("silu_base", c_int32 * 512),
        ("silu_rise", c_int32 * 512),
    )


class CMatrix(Structure):
    """``lutra_matrix``."""

    _fields_ = (
        ("codes", c_void_p),
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("row_bytes", c_int64),
        ("n", c_int32),
        ("k", c_int32),
        ("bits", c_int32),
        ("group", c_int32),
        ("scale_bytes", c_int32),
        ("shift", c_int32),
        ("unit", CScale),
    )


class CNorm(Structure):
    """``lutra_norm``."""

    _fields_ = (
        ("gamma", c_void_p),
        ("frac", c_int32),
        ("plain", c_int32),
        ("inv_n", CScale),
    )


class CLayer(Structure):
    """``lutra_layer``."""

    _fields_ = (
        *((name, CMatrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, CNorm) for name in ("input", "attention", "ffn_input", "ffn")),
        ("bias", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("bias_frac", c_int32),
        ("head_norm_frac", c_int32),
        ("window", c_int32),
        ("reserved", c_int32),
    )


class CModel(Structure):
    """``lutra_model``."""

    _fields_ = (
        ("layers", c_void_p),
        ("embedding", c_void_p),
        ("rope", c_void_p),
        ("head_rows", c_void_p),
        ("head", CMatrix),
        ("norm", CNorm),
        ("eps", CScale),
        *(
            (name, c_int32)
            for name in (
                "n_layers",
                "hidden",
                "intermediate",
                "heads",
                "kv_heads",
                "head_dim",
                "vocab",
                "context",
                "a_bits",
                "kv_bits",
                "swiglu",
                "residual_frac",
                "embedding_shift",
                "head_eps",
            )
        ),
    )


# addresses of arrays: the binding checks their types
_I8 = _I16 = _I32 = _I64 = _SCALES = c_void_p
_FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "tables": (None, [c_void_p]),
    "target_name": (c_char_p, [c_int]),
    "target_available": (c_int, [c_int]),
    "pool_new": (c_void_p, [c_int]),
    "pool_free": (None, [c_void_p]),
    "cache_new": (c_void_p, [c_int] * 5),
    "cache_free": (None, [c_void_p]),
    "engine_new": (c_void_p, [c_void_p, c_int, c_int, c_int, c_int]),
    "engine_free": (None, [c_void_p]),
    "run": (
        c_int,
        [c_void_p, c_void_p, c_void_p, _I32, c_int, c_int, c_int, _I32, _SCALES, _I32],
    ),
    "matmul": (
        c_int,
        [c_int, c_void_p, c_void_p, c_int, _I16, c_int, c_int, _I32, c_void_p],
    ),
    "read": (c_int, [c_void_p, c_void_p, c_int64, c_int, c_void_p]),
    "norm_quantize": (
        c_int,
        [c_int, _I64, CScale, c_void_p, CScale, c_int, c_int, _I16, _SCALES],
    ),
    "gate": (None, [c_int, _I32, _I32, c_int, c_int, CScale, CScale, _I64]),
    "head": (
        None,
        [c_int, _I32, c_int, CScale, CScale, _I16, _I16, c_int, _I16, *[c_int] * 4, _I8, _SCALES],
    ),
    "residual": (c_int, [c_int, _I32, _I32, c_int, CScale, CScale, c_int]),
    "attend": (
        c_int,
        [c_int, _I8, _SCALES, _I8, _SCALES, _I8, _SCALES, *[c_int] * 8, _I32],
    ),
}


def pointer(values: NDArray[np.generic] | None) -> int | None:
    """The address of an array, which must outlive it; None for none."""
    return None if values is None else values.ctypes.data


def scale_of(scale: Scale) -> CScale:
    """One scale."""
    return CScale(int(scale.m), int(scale.e))


def open_library(path: Path) -> CDLL:
    """Load a library file; LutraError if it is none, or another version's."""
    try:
        found = CDLL(str(path))
    except OSError as error:
        raise LutraError(
            f"device cpu cannot load {path}: {error}; remove it, then it is compiled again"
        ) from None
    abi = getattr(found, "lutra_cpu_abi", None)
    if abi is None or abi() != _ABI:
        raise LutraError(
            f"{path} belongs to another version of Lutra: remove it, then it is compiled again"
        )
    return found


@cache
def library() -> CDLL:
    """The library, compiled if need be, with its tables set."""
    try:
        path = library_path()
    except BuildError as error:
        raise LutraError(str(error)) from None
    found = open_library(path)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(found, f"lutra_cpu_{name}")
        function.restype, function.argtypes = result, arguments
    (base, drop), (gap, rise) = exp2_table(), silu_table()
    tables = CTables(
        *(
            (c_int32 * len(table))(*map(int, table))
            for table in (recip_table(), rsqrt_table(), base, drop, gap, rise)
        )
    )
    found.lutra_cpu_tables(ctypes.byref(tables))
    return found


def target_names() -> dict[str, bool]:
    """Every target of this kind of machine, best rank first, and whether this machine has it."""
    found, names = library(), dict[str, bool]()
    while (name := found.lutra_cpu_target_name(len(names))) is not None:
        names[name.decode()] = bool(found.lutra_cpu_target_available(len(names)))
    return names


def target_number(name: str) -> int:
    """The number of a target that this machine has."""
    names = target_names()
    if not names.get(name):
        have = ", ".join(target for target, available in names.items() if available)
        raise LutraError(f"target must be one of {have} on this machine, not {name!r}")
    return list(names).index(name)

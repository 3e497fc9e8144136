"""The C library: loading it, its functions, and which of its targets this machine has."""

import ctypes
from collections.abc import Callable
from ctypes import CDLL, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.devices.cpu.build import BuildError, is_compiled, library_path
from lutra.devices.cpu.interface import CScale, golden_header, layout, version
from lutra_golden.arith.scale import Scale
from lutra_golden.errors import LutraError

__all__ = [
    "library",
    "library_if",
    "open_library",
    "pointer",
    "prepare",
    "scale_of",
    "strip_rows",
    "target_names",
    "target_number",
]

# addresses of arrays: the binding checks their types
_I8 = _I16 = _I32 = _I64 = _SCALES = c_void_p
_FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "target_name": (c_char_p, [c_int]),
    "target_available": (c_int, [c_int]),
    "pool_new": (c_void_p, [c_int]),
    "pool_free": (None, [c_void_p]),
    "meeting_new": (c_void_p, [c_int]),
    "meeting_free": (None, [c_void_p]),
    "meet": (c_int32, [c_void_p]),
    "meeting_leave": (None, [c_void_p]),
    "copy": (None, [c_void_p, c_void_p, c_int]),
    "strip": (c_int, [c_int]),
    "free_ranges": (c_double, [c_int, c_void_p, c_void_p]),
    "ranges_on": (c_int, [c_int, c_void_p, c_double, *[c_void_p] * 4]),
    "memory_new": (c_void_p, [c_int64]),
    "memory_drop": (None, [c_void_p, c_int64]),
    "memory_free": (None, [c_void_p, c_int64]),
    "page_bytes": (c_int64, [c_int] * 6),
    "page_copy": (None, [c_void_p, c_int, c_void_p, c_void_p, c_int]),
    "cache_new": (c_void_p, [c_int] * 6),
    "cache_free": (None, [c_void_p]),
    "cache_set": (None, [c_void_p, c_int, c_void_p]),
    "cache_read": (None, [c_void_p, c_int, c_int, _I8, _SCALES, _I8, _SCALES]),
    "cache_write": (None, [c_void_p, c_int, c_int, _I8, _SCALES, _I8, _SCALES]),
    "engine_new": (c_void_p, [c_void_p, c_int, c_int, c_int, c_int]),
    "engine_free": (None, [c_void_p]),
    "run": (c_int, [c_void_p, c_void_p, c_void_p]),
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
        [
            c_int,
            _I32,
            c_int,
            CScale,
            CScale,
            _I16,
            _I16,
            c_int,
            _I16,
            c_int,
            c_int,
            _I16,
            c_int,
            c_int,
            _I8,
            _SCALES,
        ],
    ),
    "residual": (c_int, [c_int, _I32, _I32, c_int, CScale, CScale, c_int]),
    "attend": (
        c_int,
        [c_int, _I8, _SCALES, _I8, _SCALES, _I8, _SCALES, *[c_int] * 10, _I32],
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
    if not _fits(found):
        raise LutraError(
            f"{path} belongs to another version of Lutra: remove it, then it is compiled again"
        )
    return found


def _fits(found: CDLL) -> bool:
    """Compare a library's constants, declarations and structures with those here."""
    names = ("lutra_cpu_version", "lutra_cpu_layout")
    if not all(hasattr(found, name) for name in names):
        return False
    built, places, n = found.lutra_cpu_version, found.lutra_cpu_layout, c_int32()
    built.restype, places.restype = c_char_p, ctypes.POINTER(c_int32)
    if built() != version().encode():
        return False
    there = places(ctypes.byref(n))
    return there[: n.value] == layout()


def prepare(progress: Callable[[float], None]) -> None:
    """Compile the library unless it is there; ``progress`` is called with the share that is."""
    if not library.cache_info().currsize:
        _path(progress)


def _path(*progress: Callable[[float], None]) -> Path:
    try:
        return library_path(golden_header(), *progress)
    except BuildError as error:
        raise LutraError(str(error)) from None


@cache
def library() -> CDLL:
    """The library, compiled if need be."""
    found = open_library(_path())
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(found, f"lutra_cpu_{name}")
        function.restype, function.argtypes = result, arguments
    return found


@cache
def _compiled() -> CDLL | None:
    try:
        return library()
    except LutraError:
        return None


@cache
def _is_there() -> bool:
    """True if the library was there when it was first asked for: a look reads its sources."""
    return is_compiled(golden_header())


def library_if(*, worth: bool) -> CDLL | None:
    """The library if it is there, or can be compiled and is ``worth`` it."""
    if worth or library.cache_info().currsize or _is_there():
        return _compiled()
    return None


def target_names() -> dict[str, bool]:
    """Every target of this kind of machine, best rank first, and whether this machine has it."""
    found, names = library(), dict[str, bool]()
    while (name := found.lutra_cpu_target_name(len(names))) is not None:
        names[name.decode()] = bool(found.lutra_cpu_target_available(len(names)))
    return names


def strip_rows(target: str) -> int:
    """Rows of the strips that matrices for a target have, 0 if it takes rows one by one."""
    rows: int = library().lutra_cpu_strip(target_number(target))
    return rows


def target_number(name: str, setting: str = "target") -> int:
    """The number of a target that this machine has; an error names the ``setting``."""
    names = target_names()
    if not names.get(name):
        have = ", ".join(target for target, available in names.items() if available)
        raise LutraError(f"{setting} must be one of {have} on this machine, not {name!r}")
    return list(names).index(name)

"""Work that the cores of this machine share: NumPy's loops let other threads run meanwhile.

OpenBLAS would share each product among threads of its own, which wait for each other busily: beside
other work on the same cores a product then takes 20 times as long. So it gets one thread for as
long as cores are shared here.
"""

import ctypes
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import numpy as np

from lutra_golden.machine import available_cores

__all__ = ["ahead", "each_of", "one_blas_thread"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def each_of(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """``function`` of each item, in their order, on all cores."""
    listed = list(items)
    workers = min(available_cores(), len(listed))
    if workers <= 1:
        return [function(each) for each in listed]
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, listed))


def ahead(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """``function`` of each item, the next one at work while the caller has the one before."""
    with ThreadPoolExecutor(1) as pool:
        left = iter(items)
        coming = [pool.submit(function, each) for each in [*_next(left)]]
        while coming:
            found = coming.pop().result()
            coming += [pool.submit(function, each) for each in _next(left)]
            yield found


def _next(items: Iterator[_Item]) -> list[_Item]:
    for each in items:
        return [each]
    return []


_lock = threading.Lock()
_users = 0
_threads_before = 0


@contextmanager
def one_blas_thread() -> Generator[None]:
    """Give OpenBLAS one thread of its own; another BLAS keeps what it has."""
    global _users, _threads_before
    blas = _open_blas()
    if blas is None:
        yield
        return
    get_threads, set_threads = blas
    with _lock:
        if not _users:
            _threads_before = get_threads()
            set_threads(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                set_threads(_threads_before)


@cache
def _open_blas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """What reads and sets the number of OpenBLAS's threads, None if NumPy has another BLAS."""
    umath: Any = np.linalg._umath_linalg  # pyright: ignore
    try:
        library = ctypes.CDLL(umath.__file__)  # finds names in the libraries that it needs, too
    except (OSError, AttributeError):
        return None
    for prefix in ("scipy_openblas", "openblas"):
        for suffix in ("64_", "", "_64"):
            get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
            put = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
            if get is not None and put is not None:
                get.restype, get.argtypes = ctypes.c_int, []
                put.restype, put.argtypes = None, [ctypes.c_int]
                return get, put
    return None

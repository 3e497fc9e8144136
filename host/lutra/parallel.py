"""Work that the cores of this machine share: NumPy's loops let other threads run meanwhile."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lutra_golden.machine import available_cores

__all__ = ["each_of"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def each_of(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """``function`` of each item, in their order, on all cores."""
    listed = list(items)
    workers = min(available_cores(), len(listed))
    if workers <= 1:
        return [function(each) for each in listed]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, listed))

"""Flat byte memory of the golden device; reading unwritten bytes is a fault, as in the RTL."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lutra_golden.core.ports import BOUNDARY_BYTES

__all__ = ["Memory", "MemoryFault"]


class MemoryFault(RuntimeError):
    """A read of bytes that were never written, or an access outside the memory."""


class Memory:
    """``n_bytes`` of memory that remembers which bytes were written.

    ``on_store``, if set, is called with the address and the bytes of every write from inside.
    """

    def __init__(self, n_bytes: int) -> None:
        self.on_store: Callable[[int, NDArray[np.uint8]], None] | None = None
        self._bytes = np.zeros(n_bytes, np.uint8)
        self._written = np.zeros(n_bytes, np.bool_)
        # count of writes when a page was last written
        self._versions = np.zeros(-(-n_bytes // BOUNDARY_BYTES), np.int64)
        self._n_writes = 0

    def __len__(self) -> int:
        return len(self._bytes)

    def _check(self, address: int, n_bytes: int) -> None:
        if address < 0 or address + n_bytes > len(self._bytes):
            raise MemoryFault(
                f"access of {n_bytes} bytes at {address:#x} is outside the memory of "
                f"{len(self._bytes):#x} bytes"
            )

    def write(self, address: int, data: bytes | NDArray[np.uint8]) -> None:
        """Write ``data`` from outside (the host)."""
        self._put(address, np.frombuffer(data, np.uint8))
        self._n_writes += 1
        self._versions[self._pages(address, len(data))] = self._n_writes

    def version(self, address: int, n_bytes: int) -> int:
        """Number that rises when the host writes to the pages of a range.

        Values derived from the range at a lower one are stale.
        """
        self._check(address, n_bytes)
        return int(self._versions[self._pages(address, n_bytes)].max(initial=0))

    def _pages(self, address: int, n_bytes: int) -> slice:
        return slice(address // BOUNDARY_BYTES, -(-(address + n_bytes) // BOUNDARY_BYTES))

    def store(self, address: int, data: NDArray[np.uint8]) -> None:
        """Write ``data`` from inside (the accelerator), which never touches weights."""
        self._put(address, data)
        if self.on_store is not None:
            self.on_store(address, data)

    def _put(self, address: int, data: NDArray[np.uint8]) -> None:
        self._check(address, len(data))
        self._bytes[address : address + len(data)] = data
        self._written[address : address + len(data)] = True

    def known(self, address: int, n_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Views of ``n_bytes`` bytes, and of which of them were written."""
        self._check(address, n_bytes)
        where = slice(address, address + n_bytes)
        return self._bytes[where], self._written[where]

    def read(self, address: int, n_bytes: int) -> NDArray[np.uint8]:
        """Return a view of ``n_bytes`` bytes, all of which must have been written."""
        self._check(address, n_bytes)
        written = self._written[address : address + n_bytes]
        if not written.all():
            first = address + int(np.argmin(written))
            raise MemoryFault(f"read of byte {first:#x}, which was never written")
        return self._bytes[address : address + n_bytes]

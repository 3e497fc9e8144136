"""Buffers of a board by their addresses."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from lutra.devices.base import DeviceError

__all__ = ["Buffer", "BufferTable"]


class Buffer(Protocol):
    """Memory that is the driver's, from ``address`` on."""

    address: int
    n_bytes: int


B = TypeVar("B", bound=Buffer)


class BufferTable(Generic[B]):
    """The buffers of ``device``, each of which is found by any address in it."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._buffers: list[B] = []
        self._bases: list[int] = []

    def __iter__(self) -> Iterator[B]:
        return iter(self._buffers)

    def add(self, buffer: B) -> None:
        """Keep a buffer."""
        at = bisect_right(self._bases, buffer.address)
        self._buffers.insert(at, buffer)
        self._bases.insert(at, buffer.address)

    def remove(self, address: int) -> B | None:
        """Give up the buffer that begins at ``address``; None if there is none."""
        if address not in self._bases:
            return None
        at = self._bases.index(address)
        del self._bases[at]
        return self._buffers.pop(at)

    def find(self, address: int, n_bytes: int) -> tuple[B, int]:
        """The buffer with these bytes, and where they begin in it."""
        at = bisect_right(self._bases, address) - 1
        if at >= 0:
            buffer = self._buffers[at]
            offset = address - buffer.address
            if offset + n_bytes <= buffer.n_bytes:
                return buffer, offset
        raise DeviceError(
            f"{n_bytes:,} bytes at {address:#x} lie in no buffer of device {self._device}: load "
            "the model again"
        )

    def clear(self) -> None:
        """Give up all."""
        self._buffers, self._bases = [], []

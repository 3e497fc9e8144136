"""Devices whose sessions take memory for keys and values page by page."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

from lutra.arguments import check_whole
from lutra.devices.base import BaseDevice, Chunk
from lutra.devices.pages import PagePool, PageTable
from lutra.devices.sessions import BaseSession, SessionDevice
from lutra_golden.model.packed import PackedModel

__all__ = ["PagedDevice", "PagedSession"]


class PagedSession(BaseSession):
    """A session whose keys and values lie in the pages of ``table``."""

    def __init__(self, device: SessionDevice, n_layers: int, table: PageTable) -> None:
        super().__init__(device, n_layers)
        self.table = table

    def reserve(self, n: int, spare: int = 0) -> None:
        """Have memory for ``n`` positions in all; see :class:`~lutra.devices.base.Session`."""
        with self._device.held():
            self.check()
            check_whole("n", n)
            context = self._device.model.context
            self.make_room(min(n, context), spare)

    def make_room(self, stop: int, spare: int = 0, first: int | None = None) -> None:
        """Have pages of its own for positions ``first`` (the length if left out) to ``stop``."""
        first = self.length if first is None else first
        self.table.reserve(first, stop, self.length, spare)

    def _copy(self, source: BaseSession, lengths: Sequence[int]) -> None:
        assert isinstance(source, PagedSession)
        self.table.share(source.table, max(lengths))

    def _release(self) -> None:
        self.table.close()


S_co = TypeVar("S_co", bound=PagedSession, covariant=True)


class PagedDevice(BaseDevice[S_co]):
    """A device whose sessions share a pool of pages, which it has while a model is loaded."""

    @property
    @abstractmethod
    def _pool(self) -> PagePool:
        """The pages."""

    def _set_memory(self, n_bytes: int) -> None:
        super()._set_memory(n_bytes)
        self._pool.n_pages = n_bytes // self._pool.page_bytes

    def _room(self, model: PackedModel) -> tuple[int, int]:
        # what follows is taken as positions come
        return self._pool.page_bytes, self._pool.n_free * self._pool.page_bytes

    def _make_room(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            assert isinstance(chunk.session, PagedSession)
            stop = chunk.position + len(chunk.tokens)
            chunk.session.make_room(stop, first=chunk.position)

"""Keys and values of a sequence in the C library, and their canonical form."""

import mmap
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.devices.cpu.library import library, pointer
from lutra.devices.pages import NoRoom, PageCopy, PagePool, PageTable
from lutra_golden.arith.scale import Scale
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import LayerKv
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.padding import built_head_dim, head_places

__all__ = ["PAGE", "CacheShape", "CpuCache", "CpuPages"]

PAGE = 64
"""Positions of a page, unless the context is shorter."""
_BLOCK = 16  # positions that keys lie in blocks of
_SLAB_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """Shape of the keys and values of a model's sequences."""

    n_layers: int
    n_kv_heads: int
    head_dim: int
    context: int
    key_bits: int
    value_bits: int

    @classmethod
    def of(cls, model: PackedModel) -> "CacheShape":
        """The shape for a model."""
        return cls(
            n_layers=len(model.layers),
            n_kv_heads=model.n_kv_heads,
            head_dim=model.head_dim,
            context=model.context,
            key_bits=model.key_bits,
            value_bits=model.value_bits,
        )

    @property
    def built(self) -> int:
        """Elements of a head in the library."""
        return built_head_dim(self.head_dim)

    @property
    def page(self) -> int:
        """Positions of a page."""
        return min(PAGE, -(-self.context // _BLOCK) * _BLOCK)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page, in whole pages of the system."""
        heads = self.n_layers, self.n_kv_heads, self.built
        n_bytes = library().lutra_cpu_page_bytes(*heads, self.page, self.key_bits, self.value_bits)
        return -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def n_bytes(self) -> int:
        """Bytes of a sequence that fills the context."""
        return -(-self.context // self.page) * self.page_bytes

    def places(self, halves: bool) -> NDArray[np.int64]:
        """Places of a head's elements among those that the library has."""
        return head_places(1, self.head_dim, self.built, halves)


class CpuPages(PagePool):
    """Pages of keys and values of a shape, ``n_pages`` at most.

    Memory is mapped for many pages at a time, and the system gives it as it is written.
    """

    def __init__(self, shape: CacheShape, n_pages: int = 0) -> None:
        super().__init__("cpu", shape.page, shape.page_bytes, n_pages)
        self._per_slab = max(_SLAB_BYTES // self.page_bytes, 1)
        self._slabs: list[int] = []
        self._free = weakref.finalize(self, _free_slabs, self._slabs, self._slab_bytes)
        # a daemon thread may still be in a pass when the process ends
        self._free.atexit = False

    def address(self, page: int) -> int:
        """Where a page is."""
        slab, place = divmod(page, self._per_slab)
        return self._slabs[slab] + place * self.page_bytes

    def close(self) -> None:
        """Release the memory; no page can be used any more."""
        self._free()

    @property
    def _slab_bytes(self) -> int:
        return self._per_slab * self.page_bytes

    def _grow(self, n_used: int) -> None:
        while len(self._slabs) * self._per_slab < n_used:
            slab: int | None = library().lutra_cpu_memory_new(self._slab_bytes)
            if not slab:
                raise NoRoom(
                    f"device cpu cannot reserve {self._slab_bytes:,} bytes for keys and values: "
                    "close a session, or pack the model with a smaller --context"
                )
            self._slabs.append(slab)

    def _freed(self, pages: Sequence[int]) -> None:
        if self._free.alive:
            for page in pages:
                library().lutra_cpu_memory_drop(self.address(page), self.page_bytes)


def _free_slabs(slabs: Sequence[int], n_bytes: int) -> None:
    for slab in slabs:
        library().lutra_cpu_memory_free(slab, n_bytes)


class CpuCache(PageTable):
    """Keys and values of one sequence, in pages that are to be reserved before they are used."""

    def __init__(self, shape: CacheShape, pages: CpuPages) -> None:
        super().__init__(pages)
        self.shape, self._pages = shape, pages
        sizes = shape.n_kv_heads, shape.built, shape.context, shape.page
        self.address: int | None = library().lutra_cpu_cache_new(
            *sizes, shape.key_bits, shape.value_bits
        )
        if not self.address:
            raise LutraError("device cpu has no memory for another session: close one")
        self._free = weakref.finalize(self, library().lutra_cpu_cache_free, self.address)
        self._free.atexit = False

    def _copy_pages(self, copies: Sequence[PageCopy]) -> None:
        at = self._pages.address
        for source, target, n in copies:
            library().lutra_cpu_page_copy(
                self.address, self.shape.n_layers, at(target), at(source), n
            )

    def _place(self, index: int, page: int) -> None:
        super()._place(index, page)
        library().lutra_cpu_cache_set(self.address, index, self._pages.address(page))

    def read(self, layer: int, n: int) -> LayerKv:
        """The first ``n`` positions of a layer."""
        s = self.shape
        elements = np.empty((2, s.n_kv_heads, n, s.built), np.int8)
        scales = np.empty((2, n, s.n_kv_heads, 2), np.int32)
        library().lutra_cpu_cache_read(self.address, layer, n, *_parts(elements, scales))
        (k, v), (ks, vs) = elements, scales.astype(np.int64)
        return LayerKv(
            np.ascontiguousarray(k[..., s.places(True)]),
            Scale(ks[..., 0], ks[..., 1]),
            np.ascontiguousarray(v[..., s.places(False)]),
            Scale(vs[..., 0], vs[..., 1]),
        )

    def write(self, layer: int, kv: LayerKv) -> None:
        """Replace the first positions of a layer."""
        s, n = self.shape, kv.length
        elements = np.zeros((2, s.n_kv_heads, n, s.built), np.int8)
        elements[0][..., s.places(True)] = kv.keys
        elements[1][..., s.places(False)] = kv.values
        scales = np.array([np.stack(each, -1) for each in (kv.key_scale, kv.value_scale)], np.int32)
        library().lutra_cpu_cache_write(self.address, layer, n, *_parts(elements, scales))

    def close(self) -> None:
        """Give the pages back."""
        super().close()
        self._free()
        self.address = None


def _parts(elements: NDArray[np.int8], scales: NDArray[np.int32]) -> list[int | None]:
    return [pointer(x) for pair in zip(elements, scales, strict=True) for x in pair]

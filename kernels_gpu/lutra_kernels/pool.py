"""Keys and values of many sequences on a device, and their canonical form.

Every layer has one cache of pages. A sequence owns as many of them as the model's context needs,
one after another, from when it is opened until it is closed: a pass never runs out of memory in
the middle. Caches grow as sequences are opened.
"""

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.scale import Scale, pack_scale, unpack_scale
from lutra_golden.model.cache import LayerKv
from lutra_golden.model.lowered import common_kv_bits
from lutra_golden.model.padding import head_places
from lutra_kernels.arrays import Array, assign, copy, download, free_bytes, rows_of
from lutra_kernels.cache import KvCache
from lutra_kernels.errors import naming_memory
from lutra_kernels.layout import cdiv
from lutra_kernels.model import Model

__all__ = ["KvPool"]

Elements = NDArray[np.int8]


class KvPool:
    """Caches of ``model``'s layers, in pages of ``page`` positions."""

    def __init__(self, model: Model, *, page: int = 128) -> None:
        packed = model.packed
        self._packed, self._head_dim = packed, model.head_dim
        self._bits = common_kv_bits(packed, "cuda")
        self._n_slots = 0
        self.generation = 0
        """Grows whenever the caches move to other addresses."""
        self._free: list[int] = []
        self.n_pages = cdiv(packed.context, page)
        """Pages of a sequence."""
        self.positions = self.n_pages * page
        """Positions that they hold."""
        self.caches = [self._cache(0, page) for _ in model.layers]
        """A cache for each layer."""
        self.sequence_bytes = len(self.caches) * self.n_pages * self.caches[0].page_bytes
        """Memory of a sequence."""

    def _cache(self, n_pages: int, page: int) -> KvCache:
        return KvCache.new(
            n_pages,
            self._packed.n_kv_heads,
            self._head_dim,
            page=page,
            bits=self._bits,
        )

    # -- sequences

    def open(self) -> int:
        """The slot of a new sequence."""
        if not self._free:
            self._grow()
        return self._free.pop()

    def close(self, slot: int) -> None:
        """Give a slot back; the memory stays for later sequences."""
        self._free.append(slot)

    def release(self) -> None:
        """Release all memory; no sequence can be used any more."""
        self.caches.clear()

    def _grow(self) -> None:
        # growing copies what is there: by half of it, where that leaves most of the memory free
        spare = free_bytes() // (4 * self.sequence_bytes)
        more = max(1, min(self._n_slots // 2, spare))
        n_pages = (self._n_slots + more) * self.n_pages
        self.generation += 1
        with naming_memory("the keys and values of another session", "close one"):
            for i, cache in enumerate(self.caches):
                if cache.n_pages < n_pages:
                    self.caches[i] = self._grown(cache, n_pages)
        self._free.extend(reversed(range(self._n_slots, self._n_slots + more)))
        self._n_slots += more

    def _grown(self, cache: KvCache, n_pages: int) -> KvCache:
        grown = self._cache(n_pages, cache.page)
        for new, old in zip(grown.arrays, cache.arrays, strict=True):
            copy(rows_of(new, 0, cache.n_pages), old)
        return grown

    def pages(self, slot: int) -> NDArray[np.int32]:
        """Pages of a sequence, in their order."""
        return np.arange(slot * self.n_pages, (slot + 1) * self.n_pages, dtype=np.int32)

    # -- what they hold

    def copy(self, layer: int, source: int, target: int, n: int) -> None:
        """Give one sequence the first ``n`` positions of another."""
        for array in self.caches[layer].arrays:
            copy(self._rows(array, layer, target, n), self._rows(array, layer, source, n))

    def read(self, layer: int, slot: int, n: int) -> LayerKv:
        """The first ``n`` positions of a sequence."""
        keys, values, key_words, value_words = (
            download(self._rows(array, layer, slot, n)) for array in self.caches[layer].arrays
        )
        return LayerKv(
            self._elements(keys, n, halves=True),
            _scales(key_words, n),
            self._elements(values, n, halves=False),
            _scales(value_words, n),
        )

    def write(self, layer: int, slot: int, kv: LayerKv) -> None:
        """Overwrite a sequence's first positions."""
        n, arrays = kv.length, self.caches[layer].arrays
        parts = (
            self._rows_of_elements(kv.keys, halves=True),
            self._rows_of_elements(kv.values, halves=False),
            self._words(kv.key_scale),
            self._words(kv.value_scale),
        )
        for array, part in zip(arrays, parts, strict=True):
            assign(self._rows(array, layer, slot, n), part)

    def _rows(self, array: Array, layer: int, slot: int, n: int) -> Array:
        """The pages of a sequence's first ``n`` positions."""
        first = slot * self.n_pages
        return rows_of(array, first, first + cdiv(n, self.caches[layer].page))

    def _elements(self, pages: NDArray[np.generic], n: int, *, halves: bool) -> Elements:
        """``[pages, heads, page, row]`` as ``[heads, n, head_dim]``, without padding."""
        rows = pages.astype(np.int8)
        if self._bits == 4:
            rows = np.concatenate([rows << 4 >> 4, rows >> 4], axis=3)
        heads = rows.transpose(1, 0, 2, 3).reshape(rows.shape[1], -1, self._head_dim)
        places = head_places(1, self._packed.head_dim, self._head_dim, halves)
        return np.ascontiguousarray(heads[:, :n, places])

    def _rows_of_elements(self, elements: Elements, *, halves: bool) -> Elements:
        """Inverse of :meth:`_elements`, the last page filled with zeros."""
        heads, n, _ = elements.shape
        page = self.caches[0].page
        padded = np.zeros((heads, cdiv(n, page) * page, self._head_dim), np.int8)
        places = head_places(1, self._packed.head_dim, self._head_dim, halves)
        padded[:, :n, places] = elements
        rows = padded.reshape(heads, -1, page, self._head_dim).transpose(1, 0, 2, 3)
        if self._bits == 4:
            low, high = np.split(rows, 2, axis=3)
            rows = low & 15 | high << 4
        return np.ascontiguousarray(rows)

    def _words(self, scale: Scale) -> NDArray[np.int32]:
        """Scales ``[n, heads]`` as packed words ``[pages, heads, page]``."""
        words = pack_scale(scale).astype(np.uint32).view(np.int32)
        n, heads = words.shape
        page = self.caches[0].page
        padded = np.zeros((cdiv(n, page) * page, heads), np.int32)
        padded[:n] = words
        return np.ascontiguousarray(padded.reshape(-1, page, heads).transpose(0, 2, 1))


def _scales(words: NDArray[np.generic], n: int) -> Scale:
    """Packed words ``[pages, heads, page]`` as scales ``[n, heads]``."""
    heads = words.shape[1]
    return unpack_scale(words.transpose(0, 2, 1).reshape(-1, heads)[:n])

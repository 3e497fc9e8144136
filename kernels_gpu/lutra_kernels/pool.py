"""Keys and values of many sequences on a device, and their canonical form.

Every layer has one cache of pages, of equally many. Who holds which page is the caller's to know:
a sequence is a list of pages, in the order of its positions. Caches grow as pages are asked for.
"""

from collections.abc import Iterator, Sequence

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
        self.page = page
        """Positions of a page."""
        self.generation = 0
        """Grows whenever the caches move to other addresses."""
        self.n_pages = cdiv(packed.context, page)
        """Pages of a sequence that fills the context."""
        self.positions = self.n_pages * page
        """Positions that they hold."""
        self.caches = [self._cache(0, page) for _ in model.layers]
        """A cache for each layer."""
        self.page_bytes = len(self.caches) * self.caches[0].page_bytes
        """Memory of a page, in all layers."""

    def _cache(self, n_pages: int, page: int) -> KvCache:
        return KvCache.new(
            n_pages,
            self._packed.n_kv_heads,
            self._head_dim,
            page=page,
            bits=self._bits,
        )

    # -- memory

    def grow(self, n_pages: int, most: int) -> None:
        """Have memory for ``n_pages`` pages in all, of ``most`` that there may ever be."""
        # what grew last may have ended in the middle
        there = min(cache.n_pages for cache in self.caches)
        if n_pages <= there:
            return
        # growing copies what is there: by half of it, and by a context at least, where that leaves
        # most of the memory free
        spare = free_bytes() // (4 * self.page_bytes)
        more = min(max(there // 2, self.n_pages), spare, most - there)
        n_pages = max(n_pages, there + more)
        self.generation += 1
        with naming_memory("more keys and values", "close a session"):
            for i, cache in enumerate(self.caches):
                if cache.n_pages < n_pages:
                    self.caches[i] = self._grown(cache, n_pages)

    def release(self) -> None:
        """Release all memory; no page can be used any more."""
        self.caches.clear()

    def _grown(self, cache: KvCache, n_pages: int) -> KvCache:
        grown = self._cache(n_pages, cache.page)
        for new, old in zip(grown.arrays, cache.arrays, strict=True):
            copy(rows_of(new, 0, cache.n_pages), old)
        return grown

    # -- what they hold

    def copy_page(self, source: int, target: int) -> None:
        """Give one page what is in another, in all layers."""
        for cache in self.caches:
            for array in cache.arrays:
                copy(rows_of(array, target, target + 1), rows_of(array, source, source + 1))

    def read(self, layer: int, pages: Sequence[int], n: int) -> LayerKv:
        """The first ``n`` positions of a sequence with these pages."""
        keys, values, key_words, value_words = (
            self._download(array, pages[: cdiv(n, self.page)])
            for array in self.caches[layer].arrays
        )
        return LayerKv(
            self._elements(keys, n, halves=True),
            _scales(key_words, n),
            self._elements(values, n, halves=False),
            _scales(value_words, n),
        )

    def write(self, layer: int, pages: Sequence[int], kv: LayerKv) -> None:
        """Overwrite a sequence's first positions."""
        parts = (
            self._rows_of_elements(kv.keys, halves=True),
            self._rows_of_elements(kv.values, halves=False),
            self._words(kv.key_scale),
            self._words(kv.value_scale),
        )
        for array, part in zip(self.caches[layer].arrays, parts, strict=True):
            for at, first, last in _runs(pages[: len(part)]):
                assign(rows_of(array, first, last), part[at : at + last - first])

    def _download(self, array: Array, pages: Sequence[int]) -> NDArray[np.generic]:
        parts = [download(rows_of(array, first, last)) for _, first, last in _runs(pages)]
        return np.concatenate(parts) if parts else download(rows_of(array, 0, 0))

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


def _runs(pages: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Pages that follow one another: where they begin in the list, the first, and past the last."""
    at = 0
    while at < len(pages):
        n = 1
        while at + n < len(pages) and pages[at + n] == pages[at] + n:
            n += 1
        yield at, pages[at], pages[at] + n
        at += n


def _scales(words: NDArray[np.generic], n: int) -> Scale:
    """Packed words ``[pages, heads, page]`` as scales ``[n, heads]``."""
    heads = words.shape[1]
    return unpack_scale(words.transpose(0, 2, 1).reshape(-1, heads)[:n])

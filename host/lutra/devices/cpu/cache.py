"""Keys and values of a sequence in the C library, and their canonical form."""

import weakref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.devices.cpu.library import library, pointer
from lutra_golden.arith.scale import Scale
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import LayerKv
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.padding import built_head_dim, head_places

__all__ = ["CacheShape", "CpuCache"]


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
    def n_bytes(self) -> int:
        """Bytes of a sequence that fills the context."""
        return int(library().lutra_cpu_cache_bytes(*self.arguments))

    @property
    def arguments(self) -> tuple[int, ...]:
        """The shape as the library takes it."""
        sizes = self.n_layers, self.n_kv_heads, self.built, self.context
        return *sizes, self.key_bits, self.value_bits

    def places(self, halves: bool) -> NDArray[np.int64]:
        """Places of a head's elements among those that the library has."""
        return head_places(1, self.head_dim, self.built, halves)


class CpuCache:
    """Keys and values of one sequence; memory is taken as positions are written."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self.address: int | None = library().lutra_cpu_cache_new(*shape.arguments)
        if not self.address:
            raise LutraError(
                f"device cpu cannot reserve {shape.n_bytes} bytes for keys and values: close a "
                "session, or pack the model with a smaller --context"
            )
        self._free = weakref.finalize(self, library().lutra_cpu_cache_free, self.address)
        # a daemon thread may still be in a pass when the process ends
        self._free.atexit = False

    def copy(self, source: "CpuCache", n: int) -> None:
        """Take over the first ``n`` positions of another cache of the same shape."""
        library().lutra_cpu_cache_copy(self.address, source.address, n)

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
        """Release the memory."""
        self._free()
        self.address = None


def _parts(elements: NDArray[np.int8], scales: NDArray[np.int32]) -> list[int | None]:
    return [pointer(x) for pair in zip(elements, scales, strict=True) for x in pair]

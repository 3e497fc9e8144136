"""Keys and values of a sequence: what a session holds, and the form in which it moves.

The form is canonical: whatever order or padding a device keeps its own in, what it exports of the
same tokens is the same, bit for bit, and any other device goes on from it.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int
from lutra_golden.arith.quantize import q_max_of
from lutra_golden.arith.scale import SCALE, Scale, pack_scale, unpack_scale
from lutra_golden.attention.cache import kv_bytes, kv_elements
from lutra_golden.errors import LutraError

__all__ = [
    "KV_NAMES",
    "KV_PAIRS",
    "KV_VERSION",
    "Kv",
    "LayerCache",
    "LayerKv",
    "SequenceKv",
    "kv_name",
    "kv_pair",
]

KV_PAIRS = ((8, 8), (8, 4), (4, 4))
"""Bits of keys and of values that a model can be packed for."""
Kv = int | str | tuple[int, int]
"""Bits of keys and of values: ``8``, ``4``, ``"8/4"`` or ``"8,4"``, or ``(8, 4)``."""
KV_VERSION = 1
"""Version of :meth:`SequenceKv.to_bytes`."""
_MAGIC = b"LUTRAKV\0"
_HEADER_MAX = 1 << 20
_SIZE_MAX = 1 << 24  # heads, positions, elements of a head; three of them fit an array's size
_STEP = 64  # positions by which a cache grows at least


def kv_name(pair: tuple[int, int]) -> str:
    """``8``, ``8/4`` or ``4``."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}/{pair[1]}"


def kv_pair(kv: Kv) -> tuple[int, int]:
    """Bits of keys and of values; LutraError if they are not one of :data:`KV_PAIRS`."""
    text = "/".join(map(str, kv)) if isinstance(kv, tuple) else str(kv)
    parts = text.replace(",", "/").split("/")
    for pair in KV_PAIRS:
        if parts in ([str(pair[0]), str(pair[1])], [str(pair[0])] if pair[0] == pair[1] else []):
            return pair
    raise LutraError(f"kv must be 8, 8/4 or 4 bits, not {text}")


KV_NAMES = tuple(map(kv_name, KV_PAIRS))
"""The same pairs by name."""


@dataclass(frozen=True)
class LayerKv:
    """Keys and values of one layer at positions ``0..n - 1``.

    ``keys`` and ``values`` are int8 numbers ``[n_kv_heads, n, head_dim]`` with the model's own
    ``head_dim``; scales are ``[n, n_kv_heads]``.
    """

    keys: NDArray[np.int8]
    key_scale: Scale
    values: NDArray[np.int8]
    value_scale: Scale

    @property
    def length(self) -> int:
        """Positions."""
        return self.keys.shape[1]

    def first(self, n: int) -> "LayerKv":
        """The first ``n`` positions."""
        return LayerKv(
            self.keys[:, :n],
            Scale(self.key_scale.m[:n], self.key_scale.e[:n]),
            self.values[:, :n],
            Scale(self.value_scale.m[:n], self.value_scale.e[:n]),
        )


@dataclass(frozen=True, kw_only=True)
class SequenceKv:
    """Keys and values of a sequence, by layer, in ``key_bits`` and ``value_bits`` bits."""

    key_bits: int
    value_bits: int
    layers: Mapping[int, LayerKv]

    @property
    def length(self) -> int:
        """Positions, of the layer that has most."""
        return max((layer.length for layer in self.layers.values()), default=0)

    def check(self, n_kv_heads: int, head_dim: int, n_layers: int, context: int) -> None:
        """Raise LutraError unless this is a sequence of a model of these sizes."""
        for i, layer in self.layers.items():
            if not 0 <= i < n_layers:
                raise LutraError(f"keys and values are of layer {i}, the model has {n_layers}")
            if layer.length > context:
                raise LutraError(
                    f"keys and values have {layer.length} positions, the context is {context}"
                )
            shape, scales = (n_kv_heads, layer.length, head_dim), (layer.length, n_kv_heads)
            for name, values, scale, bits in (
                ("keys", layer.keys, layer.key_scale, self.key_bits),
                ("values", layer.values, layer.value_scale, self.value_bits),
            ):
                if values.shape != shape or scale.m.shape != scales or scale.e.shape != scales:
                    raise LutraError(
                        f"{name} of layer {i} must be {list(shape)}, not {list(values.shape)}: "
                        "they are of another model"
                    )
                q_max = q_max_of(bits)
                if values.size and not (-q_max <= values.min() and values.max() <= q_max):
                    raise LutraError(
                        f"{name} of layer {i} must be in {-q_max}..{q_max}, not "
                        f"{values.min()}..{values.max()}"
                    )
                _check_scale(scale, f"{name} of layer {i}")

    def to_bytes(self) -> bytes:
        """The versioned form: a header in JSON, then the arrays of each layer.

        Elements are two to a byte where they have four bits (the lower half first), scales are
        32-bit words as :func:`~lutra_golden.arith.scale.pack_scale` makes them, little-endian.
        """
        sizes = {str(i): list(layer.keys.shape) for i, layer in sorted(self.layers.items())}
        header = json.dumps(
            {
                "version": KV_VERSION,
                "key_bits": self.key_bits,
                "value_bits": self.value_bits,
                "layers": sizes,
            },
            sort_keys=True,
        ).encode()
        parts = [_MAGIC, struct.pack("<I", len(header)), header]
        for _, layer in sorted(self.layers.items()):
            for values, scale, bits in (
                (layer.keys, layer.key_scale, self.key_bits),
                (layer.values, layer.value_scale, self.value_bits),
            ):
                parts.append(kv_bytes(values.astype(np.int64), bits).tobytes())
                parts.append(pack_scale(scale).astype("<u4").tobytes())
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> "SequenceKv":
        """Inverse of :meth:`to_bytes`; LutraError if ``data`` is anything else."""
        _check_bytes(data)
        start = len(_MAGIC) + 4
        if len(data) < start or not data.startswith(_MAGIC):
            raise LutraError("these are no keys and values of a session: export them again")
        (size,) = struct.unpack_from("<I", data, len(_MAGIC))
        try:
            if size > _HEADER_MAX:
                raise ValueError
            header = json.loads(data[start : start + size])
            version = header["version"]
            key_bits, value_bits = kv_pair((header["key_bits"], header["value_bits"]))
            shapes = {int(i): tuple(map(int, shape)) for i, shape in header["layers"].items()}
            if any(len(shape) != 3 or not _is_shape(shape) for shape in shapes.values()):
                raise ValueError
        # too deep, or a size of infinity
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            raise LutraError("keys and values have a broken header: export them again") from None
        if version != KV_VERSION:
            raise LutraError(
                f"keys and values are of version {version}, this Lutra reads {KV_VERSION}: "
                "export them again"
            )
        reader = _Reader(data, start + size)
        layers: dict[int, LayerKv] = {}
        for i, shape in shapes.items():
            keys, key_scale = reader.elements(shape, key_bits)
            values, value_scale = reader.elements(shape, value_bits)
            layers[i] = LayerKv(keys, key_scale, values, value_scale)
        reader.finish()
        return cls(key_bits=key_bits, value_bits=value_bits, layers=layers)


def _check_bytes(data: object) -> None:
    if not isinstance(data, bytes | bytearray):
        raise LutraError(
            f"keys and values must be bytes that to_bytes gave, not {type(data).__name__}: export "
            "them again"
        )


def _is_shape(shape: tuple[int, ...]) -> bool:
    return all(0 <= n <= _SIZE_MAX for n in shape)


def _check_scale(scale: Scale, what: str) -> None:
    live = scale.m != 0
    low, high = 1 << (SCALE.m_width - 1), 1 << SCALE.m_width
    fine = np.where(live, (scale.m >= low) & (scale.m < high), scale.e == 0)
    span = np.where(live, (scale.e >= SCALE.e_min) & (scale.e < -SCALE.e_min), True)
    if not (fine & span).all():
        raise LutraError(f"scales of {what} are not normalised: export them again")


class _Reader:
    """Arrays one after another."""

    def __init__(self, data: bytes | bytearray, at: int) -> None:
        self._data, self._at = data, at

    def _bytes(self, n: int) -> NDArray[np.uint8]:
        if self._at + n > len(self._data):
            raise LutraError("keys and values end too soon: export them again")
        out = np.frombuffer(self._data, np.uint8, n, self._at)
        self._at += n
        return out

    def elements(self, shape: tuple[int, ...], bits: int) -> tuple[NDArray[np.int8], Scale]:
        heads, n, head_dim = shape
        row = head_dim * bits // 8
        raw = self._bytes(heads * n * row).reshape(heads, n, row)
        words = self._bytes(4 * n * heads).view("<u4").reshape(n, heads)
        return kv_elements(raw, bits).astype(np.int8), unpack_scale(words)

    def finish(self) -> None:
        if self._at != len(self._data):
            raise LutraError("keys and values have bytes too many: export them again")


class LayerCache:
    """Keys and values of one layer of one sequence, which grows up to ``context`` positions."""

    def __init__(self, n_kv_heads: int, head_dim: int, context: int) -> None:
        self._elements = np.zeros((2, n_kv_heads, 0, head_dim), np.int8)
        self._scales = np.zeros((2, 2, 0, n_kv_heads), np.int32)
        self._context = context

    @staticmethod
    def full_bytes(n_kv_heads: int, head_dim: int, context: int) -> int:
        """Bytes of a cache that is full; elements of four bits take a byte, too."""
        return 2 * n_kv_heads * context * (head_dim + 2 * np.dtype(np.int32).itemsize)

    @property
    def n_bytes(self) -> int:
        """Bytes that the cache takes."""
        return self._elements.nbytes + self._scales.nbytes

    def _reserve(self, n: int) -> None:
        has = self._elements.shape[2]
        if n <= has:
            return
        more = min(max(n, 2 * has, _STEP), self._context) - has
        self._elements = np.pad(self._elements, ((0, 0), (0, 0), (0, more), (0, 0)))
        self._scales = np.pad(self._scales, ((0, 0), (0, 0), (0, more), (0, 0)))

    def write(self, position: int, k: Int, k_scale: Scale, v: Int, v_scale: Scale) -> None:
        """Put ``k`` and ``v`` ``[M, n_kv_heads, head_dim]`` at ``position`` and after it."""
        rows = slice(position, position + len(k))
        self._reserve(rows.stop)
        for i, (x, scale) in enumerate(((k, k_scale), (v, v_scale))):
            self._elements[i, :, rows] = x.transpose(1, 0, 2)
            self._scales[i, 0, rows], self._scales[i, 1, rows] = scale

    def first(self, n: int) -> LayerKv:
        """The first ``n`` positions, as views that the next write may change after ``n``."""
        (k, v), (ks, vs) = self._elements[:, :, :n], self._scales[:, :, :n].astype(np.int64)
        return LayerKv(k, Scale(ks[0], ks[1]), v, Scale(vs[0], vs[1]))

    def restore(self, kv: LayerKv) -> None:
        """Take over what another cache held."""
        k, v = (x.transpose(1, 0, 2).astype(np.int64) for x in (kv.keys, kv.values))
        self.write(0, k, kv.key_scale, v, kv.value_scale)

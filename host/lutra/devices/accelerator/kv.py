"""Keys and values of a session in an accelerator's memory, from and to their canonical form."""

from collections.abc import Callable

import numpy as np

from lutra_golden.arith.fixed import Int
from lutra_golden.arith.scale import Scale, pack_scale, unpack_scale
from lutra_golden.attention.cache import kv_bytes, kv_elements
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.model.cache import LayerKv
from lutra_golden.model.padding import head_places

__all__ = ["read_layer", "write_layer"]

Read = Callable[[int, int], bytes]
Write = Callable[[int, bytes], None]


def read_layer(
    config: AcceleratorConfig, read: Read, base: int, n: int, n_heads: int, head_dim: int
) -> LayerKv:
    """The first ``n`` positions of the layer whose cache begins at ``base``.

    Padding of heads beyond ``head_dim`` is left out.
    """
    records = np.zeros((n, config.kv_scale_bytes // 4), np.uint32)
    if n:
        data = read(base + config.kv_s_offset, n * config.kv_scale_bytes)
        records = np.frombuffer(data, "<u4").reshape(n, -1)
    parts: list[Int] = []
    for offset, halves in ((0, True), (config.kv_v_offset, False)):
        places = head_places(1, head_dim, config.head_dim, halves)
        heads = np.zeros((n_heads, n, head_dim), np.int64)
        for g in range(n_heads if n else 0):
            raw = read(base + offset + g * config.kv_head_bytes, n * config.kv_row_bytes)
            rows = np.frombuffer(raw, np.uint8).reshape(n, config.kv_row_bytes)
            heads[g] = kv_elements(rows, config.attention.key_width)[:, places]
        parts.append(heads)
    keys, values = parts
    return LayerKv(
        keys.astype(np.int8),
        unpack_scale(records[:, :n_heads]),
        values.astype(np.int8),
        unpack_scale(records[:, n_heads : 2 * n_heads]),
    )


def write_layer(config: AcceleratorConfig, write: Write, base: int, kv: LayerKv) -> None:
    """Inverse of :func:`read_layer`."""
    n_heads, n, head_dim = kv.keys.shape
    if not n:
        return
    for offset, halves, elements in (
        (0, True, kv.keys),
        (config.kv_v_offset, False, kv.values),
    ):
        places = head_places(1, head_dim, config.head_dim, halves)
        for g in range(n_heads):
            rows = np.zeros((n, config.head_dim), np.int64)
            rows[:, places] = elements[g]
            address = base + offset + g * config.kv_head_bytes
            write(address, kv_bytes(rows, config.attention.key_width).tobytes())
    records = np.zeros((n, config.kv_scale_bytes // 4), np.uint32)
    records[:, :n_heads] = _words(kv.key_scale)
    records[:, n_heads : 2 * n_heads] = _words(kv.value_scale)
    write(base + config.kv_s_offset, records.astype("<u4").tobytes())


def _words(scale: Scale) -> Int:
    return pack_scale(scale)

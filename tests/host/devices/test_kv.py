"""Keys and values in an accelerator's memory: byte by byte, and there and back."""

import numpy as np
import pytest

from lutra.devices.accelerator.kv import read_layer, write_layer
from lutra_golden.arith.scale import Scale, pack_scale
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_golden.model.cache import LayerKv

BASE, HEADS = 4096, 2
CONFIG = NANO.with_(name="two-heads", n_heads=2 * HEADS, n_kv_heads=HEADS, head_dim=64)
FOUR = CONFIG.with_(name="four-bits", key_width=4, value_width=4)


class Memory:
    """A layer's cache at ``BASE``, and as much beside it, full of one byte."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.bytes = np.full(BASE + config.kv_layer_bytes + BASE, 0xEE, np.uint8)

    def read(self, address: int, n: int) -> bytes:
        return self.bytes[address : address + n].tobytes()

    def write(self, address: int, data: bytes) -> None:
        self.bytes[address : address + len(data)] = np.frombuffer(data, np.uint8)


def random_kv(n: int, head_dim: int, bits: int) -> LayerKv:
    rng = np.random.default_rng(n)
    top = (1 << (bits - 1)) - 1
    keys, values = (
        rng.integers(-top, top + 1, (HEADS, n, head_dim)).astype(np.int8) for _ in range(2)
    )
    scales = [
        Scale(rng.integers(1 << 15, 1 << 16, (n, HEADS)), rng.integers(-40, 5, (n, HEADS)))
        for _ in range(2)
    ]
    return LayerKv(keys, scales[0], values, scales[1])


@pytest.mark.parametrize("head_dim", [64, 48, 34])
@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("config", [CONFIG, FOUR], ids=lambda config: config.name)
def test_there_and_back(config: AcceleratorConfig, n: int, head_dim: int) -> None:
    kv, memory = random_kv(n, head_dim, config.attention.key_width), Memory(config)
    write_layer(config, memory.write, BASE, kv)
    found = read_layer(config, memory.read, BASE, n, HEADS, head_dim)
    for name in ("keys", "values"):
        np.testing.assert_array_equal(getattr(found, name), getattr(kv, name))
    for name in ("key_scale", "value_scale"):
        for one, other in zip(getattr(found, name), getattr(kv, name), strict=True):
            np.testing.assert_array_equal(one, other)
    changed = np.flatnonzero(memory.bytes != 0xEE)
    size = n * (2 * HEADS * config.kv_row_bytes + config.kv_scale_bytes)
    assert len(changed) <= size
    if n:
        assert changed[0] >= BASE and changed[-1] < BASE + config.kv_layer_bytes


def test_every_byte_has_its_place() -> None:
    """Halves of a key that rotate stay halves; a value's padding is behind it."""
    n, head_dim = 3, 48
    kv, memory = random_kv(n, head_dim, 8), Memory(CONFIG)
    write_layer(CONFIG, memory.write, BASE, kv)
    word = CONFIG.kv_scale_bytes // 4
    for g in range(HEADS):
        for p in range(n):
            at = BASE + g * CONFIG.kv_head_bytes + p * 64
            half = [0] * 8
            key = kv.keys[g, p].tolist()
            row = memory.bytes[at : at + 64].view(np.int8).tolist()
            assert row == [*key[:24], *half, *key[24:], *half]
            at += CONFIG.kv_v_offset
            row = memory.bytes[at : at + 64].view(np.int8).tolist()
            assert row == [*kv.values[g, p].tolist(), *half, *half]
    start = BASE + CONFIG.kv_s_offset
    records = memory.bytes[start : start + 4 * n * word].view(np.uint32).reshape(n, word)
    np.testing.assert_array_equal(records[:, :HEADS], pack_scale(kv.key_scale))
    np.testing.assert_array_equal(records[:, HEADS : 2 * HEADS], pack_scale(kv.value_scale))
    assert not records[:, 2 * HEADS :].any()

"""The canonical form of keys and values, and what is refused as one."""

import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lutra_golden.arith.quantize import q_max_of
from lutra_golden.arith.scale import Scale, scale_from_int
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import (
    KV_NAMES,
    KV_PAIRS,
    LayerCache,
    LayerKv,
    SequenceKv,
    kv_name,
    kv_pair,
)

HEADS, HEAD_DIM = 3, 6


def layer(n: int, key_bits: int, value_bits: int, seed: int = 0) -> LayerKv:
    rng = np.random.default_rng(seed)

    def part(bits: int) -> tuple[np.ndarray, Scale]:
        top = q_max_of(bits)
        elements = rng.integers(-top, top + 1, (HEADS, n, HEAD_DIM)).astype(np.int8)
        scale = scale_from_int(rng.integers(0, 1 << 30, (n, HEADS)), rng.integers(-40, 9))
        return elements, scale

    return LayerKv(*part(key_bits), *part(value_bits))


def sequence(n: int = 5, key_bits: int = 8, value_bits: int = 8) -> SequenceKv:
    layers = {i: layer(n + i, key_bits, value_bits, i) for i in (0, 2)}
    return SequenceKv(key_bits=key_bits, value_bits=value_bits, layers=layers)


def assert_equal(a: LayerKv, b: LayerKv) -> None:
    for one, other in (
        (a.keys, b.keys),
        (a.values, b.values),
        *zip(a.key_scale, b.key_scale, strict=True),
        *zip(a.value_scale, b.value_scale, strict=True),
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("key_bits", "value_bits"), KV_PAIRS)
@pytest.mark.parametrize("n", [0, 1, 7])
def test_bytes_and_back(n: int, key_bits: int, value_bits: int) -> None:
    kv = sequence(n, key_bits, value_bits)
    data = kv.to_bytes()
    back = SequenceKv.from_bytes(data)
    back.check(HEADS, HEAD_DIM, 3, 20)
    assert (back.key_bits, back.value_bits, back.length) == (key_bits, value_bits, n + 2)
    assert back.layers.keys() == kv.layers.keys()
    for i, each in kv.layers.items():
        assert_equal(back.layers[i], each)
    assert back.to_bytes() == data
    positions = sum(each.length for each in kv.layers.values())
    body = positions * HEADS * (HEAD_DIM * (key_bits + value_bits) // 8 + 8)
    assert len(data) == 12 + struct.unpack_from("<I", data, 8)[0] + body


def _with_header(change: dict[str, object] | bytes) -> bytes:
    data = sequence().to_bytes()
    (size,) = struct.unpack_from("<I", data, 8)
    if not isinstance(change, bytes):
        change = json.dumps(json.loads(data[12 : 12 + size]) | change).encode()
    return data[:8] + struct.pack("<I", len(change)) + change + data[12 + size :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "these are no keys and values of a session: export them again"),
        (b"PK" * 40, "these are no keys and values of a session: export them again"),
        (sequence().to_bytes()[:-1], "keys and values end too soon: export them again"),
        (sequence().to_bytes() + b"\0", "keys and values have bytes too many: export them again"),
        (
            _with_header({"version": 2}),
            "keys and values are of version 2, this Lutra reads 1: export them again",
        ),
        (_with_header({"layers": 3}), "keys and values have a broken header: export them again"),
        (_with_header({"key_bits": 5}), "kv must be 8, 8/4 or 4 bits, not 5/8"),
        (
            _with_header({"layers": {"0": [3, -1, 6]}}),
            "keys and values have a broken header: export them again",
        ),
    ],
)
def test_other_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(LutraError) as error:
        SequenceKv.from_bytes(data)
    assert str(error.value) == message


@pytest.mark.parametrize("data", [None, "LUTRAKV\0", np.zeros(20, np.uint8)])
def test_what_is_no_bytes_is_refused(data: Any) -> None:
    name = type(data).__name__
    with pytest.raises(LutraError) as error:
        SequenceKv.from_bytes(data)
    assert str(error.value) == (
        f"keys and values must be bytes that to_bytes gave, not {name}: export them again"
    )
    assert SequenceKv.from_bytes(bytearray(sequence().to_bytes())).length == sequence().length


@pytest.mark.parametrize(
    "change",
    [
        b"[" * 100_000,
        {"layers": {"0": [float("inf"), 1, 6]}},
        {"layers": {"0": [0, 1 << 100, 6]}},
        {"layers": {"0": [0, 1 << 62, 6]}},
        {"layers": {"0": [3, 0, 1 << 70]}},
        {"version": True, "layers": [[3, 1, 6]]},
        b"\xff",
    ],
)
def test_headers_that_no_array_has(change: dict[str, object] | bytes) -> None:
    with pytest.raises(LutraError, match=r"^keys and values have a broken header: export them aga"):
        SequenceKv.from_bytes(_with_header(change))


def _broken(**change: object) -> SequenceKv:
    return SequenceKv(
        key_bits=8,
        value_bits=4,
        layers={1: replace(layer(4, 8, 4), **change)},  # pyright: ignore[reportArgumentType]
    )


@pytest.mark.parametrize(
    ("kv", "message"),
    [
        (sequence(19), "keys and values have 21 positions, the context is 20"),
        (
            SequenceKv(key_bits=8, value_bits=8, layers={3: layer(1, 8, 8)}),
            "keys and values are of layer 3, the model has 3",
        ),
        (
            _broken(values=np.full((HEADS, 4, HEAD_DIM), 8, np.int8)),
            "values of layer 1 must be in -7..7, not 8..8",
        ),
        (
            _broken(values=np.zeros((HEADS, 3, HEAD_DIM), np.int8)),
            "values of layer 1 must be [3, 4, 6], not [3, 3, 6]: they are of another model",
        ),
        (
            _broken(key_scale=Scale(*np.ones((2, 4, HEADS), np.int64))),
            "scales of keys of layer 1 are not normalised: export them again",
        ),
    ],
)
def test_what_does_not_fit_a_model_is_refused(kv: SequenceKv, message: str) -> None:
    with pytest.raises(LutraError) as error:
        kv.check(HEADS, HEAD_DIM, 3, 20)
    assert str(error.value) == message


def test_names_of_pairs() -> None:
    assert KV_NAMES == ("8", "8/4", "4")
    assert [kv_pair(name) for name in KV_NAMES] == list(KV_PAIRS)
    assert [kv_name(kv_pair(kv)) for kv in (8, 4, (8, 4), "4/4")] == ["8", "4", "8/4", "4"]
    for wrong in (6, "4/8", (4, 8), "", "8/8/8"):
        with pytest.raises(LutraError, match=r"^kv must be 8, 8/4 or 4 bits, not "):
            kv_pair(wrong)


def test_a_cache_grows_and_is_rewritten() -> None:
    """Positions past the length may hold anything and are overwritten."""
    kv, cache = layer(150, 8, 8), LayerCache(HEADS, HEAD_DIM, 150)
    part = layer(150, 8, 8, 1)
    cache.restore(part)
    for first in range(0, 150, 7):
        rows = slice(first, min(first + 7, 150))
        cache.write(
            first,
            kv.keys[:, rows].transpose(1, 0, 2).astype(np.int64),
            Scale(kv.key_scale.m[rows], kv.key_scale.e[rows]),
            kv.values[:, rows].transpose(1, 0, 2).astype(np.int64),
            Scale(kv.value_scale.m[rows], kv.value_scale.e[rows]),
        )
    assert_equal(cache.first(150), kv)
    assert_equal(cache.first(3), kv.first(3))
    assert cache.first(3).length == 3

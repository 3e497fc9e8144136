"""Blocks of GGUF's types: what the package that defines them makes of the same bytes."""

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

gguf = pytest.importorskip("gguf")

from gguf import GGMLQuantizationType as Kind
from tests.host.gguf_model import ENCODERS, i2_s_bytes

from lutra.checkpoints.gguf_blocks import read_dense, read_weight, ternary_or_dense
from lutra.checkpoints.weights import Dense, Grouped, Ternary
from lutra.formats.gguf import TYPES
from lutra_golden.errors import LutraError

N, K = 5, 512
BY_NAME = {kind.name: kind for kind in TYPES.values()}
HALVES = {"Q4_0": [0], "Q8_0": [0], "Q4_K": [0, 2], "Q6_K": [208], "TQ1_0": [52], "TQ2_0": [64]}
"""Offsets of the float16 scales in a block, by type."""
GROUPS = {"Q4_0": (4, 32), "Q8_0": (8, 32), "Q4_K": (8, 32), "Q6_K": (6, 16), "TQ2_0": (2, 256)}


def random_blocks(name: str, seed: int, n: int = N) -> NDArray[np.uint8]:
    """Random bytes with finite scales of both signs."""
    rng, kind = np.random.default_rng(seed), BY_NAME[name]
    raw = rng.integers(0, 256, (n, K // kind.block, kind.block_bytes)).astype(np.uint8)
    for at in HALVES[name]:
        scales = (rng.normal(0, 0.1, raw.shape[:2])).astype("<f2")
        raw[..., at : at + 2] = scales[..., None].view(np.uint8)
    if name == "TQ1_0":
        # bytes that a quantiser can give
        trits = rng.integers(0, 3, (*raw.shape[:2], 5, 52))
        trits[..., 4, 48:] = 0
        value = sum(trits[..., i, :] * 3 ** (4 - i) for i in range(5))
        raw[..., :52] = -(-value * 256 // 243)
    if name == "TQ2_0":
        raw[..., :64] &= 0b10101010  # codes 0 and 2 of four
    return raw


def expected(name: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return gguf.dequantize(raw.reshape(len(raw), -1), Kind[name]).reshape(len(raw), K)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", HALVES)
def test_a_dense_matrix_is_exact(name: str, seed: int) -> None:
    raw = random_blocks(name, seed)
    found = read_dense(BY_NAME[name], raw.ravel(), N, K, "here").values
    np.testing.assert_array_equal(found, expected(name, raw))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", GROUPS)
def test_groups(name: str, seed: int) -> None:
    """Exact for all types but Q4_K."""
    raw = random_blocks(name, seed)
    weight = read_weight(BY_NAME[name], raw.ravel(), N, K, "here")
    assert isinstance(weight, Grouped)
    assert (weight.bits, weight.group) == GROUPS[name]
    assert weight.codes.max() < 1 << weight.bits
    assert ((weight.zero * 2) % 1 == 0).all()
    assert weight.zero.min() >= 0
    assert weight.zero.max() < 1 << weight.bits
    if name != "Q4_K":
        np.testing.assert_array_equal(weight.dequantized(), expected(name, raw))
        return
    # random blocks have offsets of any size and sign
    w = expected(name, raw).reshape(N, -1, 32)
    step = (w.max(axis=2) - w.min(axis=2)) / 15
    off = np.abs(weight.dequantized().reshape(w.shape) - w).max(axis=2)
    limit = np.maximum(step / 60, np.abs(w).max(axis=2) / 509)
    assert (off <= limit + 1e-6 * np.abs(w).max(axis=2)).all()


def test_groups_of_realistic_q4_k() -> None:
    """The offset is off by a 68th of a step at most, and adds nothing to the error it has."""
    rng = np.random.default_rng(4)
    w = (rng.standard_t(5, (64, K)) * 0.05).astype(np.float32)
    raw, held = ENCODERS["Q4_K"][1](w)
    weight = read_weight(BY_NAME["Q4_K"], raw.ravel(), 64, K, "here")
    found = weight.dequantized()
    blocks = raw.reshape(64, K // 256, 144)
    d = blocks[..., :2].copy().view("<f2").astype(np.float32)
    scale = np.concatenate(
        [blocks[..., 4:8] & 63, (blocks[..., 12:16] & 15) | (blocks[..., 4:8] >> 6) << 4], axis=-1
    )
    step = (d * scale).reshape(64, -1).repeat(32, axis=1)
    assert (np.abs(found - held) <= step / 68 * 1.001).all()
    assert ((found - held) ** 2).sum() < 3e-4 * ((held - w) ** 2).sum()


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_ternary_if_all_scales_are_equal(name: str) -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(-1, 2, (N, K)).astype(np.float32)
    codes[2, 256:] = 0  # whose block has the scale 0
    raw = gguf.quantize(codes * 0.125, Kind[name])
    weight = read_weight(BY_NAME[name], raw.ravel(), N, K, "here")
    assert isinstance(weight, Ternary)
    assert weight.scale == 0.125
    np.testing.assert_array_equal(weight.codes, codes)
    # the same weights with the sign in the scale
    blocks = raw.reshape(-1, BY_NAME[name].block_bytes).copy()
    blocks[:, -1] ^= 0x80
    weight = read_weight(BY_NAME[name], blocks.ravel(), N, K, "here")
    assert isinstance(weight, Ternary)
    assert weight.scale == 0.125
    np.testing.assert_array_equal(weight.codes, -codes)
    codes[1, :256] *= 2
    raw = gguf.quantize(codes * 0.125, Kind[name])
    weight = read_weight(BY_NAME[name], raw.ravel(), N, K, "here")
    assert isinstance(weight, Grouped)
    np.testing.assert_array_equal(weight.dequantized(), codes * 0.125)


def test_all_zeros() -> None:
    for name in ("TQ1_0", "TQ2_0", "Q4_0", "Q8_0"):
        raw = gguf.quantize(np.zeros((N, K), np.float32), Kind[name])
        weight = read_weight(BY_NAME[name], raw.ravel(), N, K, "here")
        assert not weight.dequantized().any()
        assert not isinstance(weight, Ternary) or weight.scale == 1
    for name in ("Q4_K", "Q6_K"):
        raw = np.zeros(N * K // 256 * BY_NAME[name].block_bytes, np.uint8)
        weight = read_weight(BY_NAME[name], raw, N, K, "here")
        assert not weight.dequantized().any()


def test_i2_s() -> None:
    rng = np.random.default_rng(6)
    codes = rng.integers(-1, 2, (6, 64)).astype(np.int8)  # blocks run over the ends of rows
    raw = np.frombuffer(i2_s_bytes(codes, 0.75), np.uint8)
    weight = read_weight(BY_NAME["I2_S"], raw, 6, 64, "here")
    assert isinstance(weight, Ternary)
    assert weight.scale == 0.75
    np.testing.assert_array_equal(weight.codes, codes)
    # the order within a block, by hand: values 0, 32, 64 and 96 are in byte 0, high bits first
    by_hand = np.zeros(64, np.uint8)
    by_hand[:32] = 0b01010101
    by_hand[0], by_hand[31] = 0b10_01_00_01, 0b01_01_01_10
    by_hand[32:36] = list(struct.pack("<f", 2.0))
    weight = read_weight(BY_NAME["I2_S"], by_hand, 1, 128, "here")
    assert isinstance(weight, Ternary)
    assert {int(i): int(weight.codes[0, i]) for i in np.flatnonzero(weight.codes)} == {
        0: 1, 64: -1, 127: 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((0, b"\xff"), "here holds codes other than 0, 1 and 2: copy or convert the model again"),
        (
            (32, struct.pack("<f", np.nan)),
            "here holds infinities or NaNs: convert the model again",
        ),
        (
            (32, struct.pack("<f", -1.0)),
            "here holds a scale that is not positive, -1.0: copy or convert the model again",
        ),
    ],
)
def test_i2_s_that_is_damaged(change: tuple[int, bytes], message: str) -> None:
    raw = np.frombuffer(i2_s_bytes(np.ones((1, 128), np.int8), 1.0), np.uint8).copy()
    at, new = change
    raw[at : at + len(new)] = list(new)
    with pytest.raises(LutraError) as error:
        read_weight(BY_NAME["I2_S"], raw, 1, 128, "here")
    assert str(error.value) == message


@pytest.mark.parametrize("name", HALVES)
def test_scales_that_are_not_finite(name: str) -> None:
    for at in HALVES[name]:
        raw = random_blocks(name, 1)
        raw[3, 1, at : at + 2] = 0, 0x7C
        for read in (read_weight, read_dense):
            with pytest.raises(LutraError, match=r"^here holds infinities or NaNs: convert the"):
                read(BY_NAME[name], raw.ravel(), N, K, "here")


def test_a_matrix_of_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large matrices are decoded some rows at a time."""
    for name in (*HALVES, "I2_S"):
        raw = (
            np.frombuffer(i2_s_bytes(np.eye(7, K, dtype=np.int8), 1.0), np.uint8)
            if name == "I2_S"
            else random_blocks(name, 7, n=7).ravel()
        )
        whole = read_weight(BY_NAME[name], raw, 7, K, "here").dequantized()
        dense = read_dense(BY_NAME[name], raw, 7, K, "here").values
        with monkeypatch.context() as patch:
            patch.setattr("lutra.checkpoints.gguf_blocks._VALUES", 2 * K)
            found = read_weight(BY_NAME[name], raw, 7, K, "here").dequantized()
            np.testing.assert_array_equal(found, whole)
            np.testing.assert_array_equal(
                read_dense(BY_NAME[name], raw, 7, K, "here").values, dense
            )


def test_ternary_or_dense() -> None:
    w = np.array([[0.5, -0.5, 0.0], [0.5, 0.0, -0.0]], np.float16)
    weight = ternary_or_dense(Dense(w))
    assert isinstance(weight, Ternary)
    assert weight.scale == 0.5
    np.testing.assert_array_equal(weight.codes, [[1, -1, 0], [1, 0, 0]])
    w[0, 0] = 0.25
    assert isinstance(ternary_or_dense(Dense(w)), Dense)
    weight = ternary_or_dense(Dense(np.zeros_like(w)))
    assert isinstance(weight, Ternary)
    assert not weight.codes.any()

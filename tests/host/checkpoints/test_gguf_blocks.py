"""Blocks of GGUF's types: what the package that defines them makes of the same bytes."""

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

gguf = pytest.importorskip("gguf")

from gguf import GGMLQuantizationType as Kind
from tests.host.gguf_model import ENCODERS, i2_s_bytes

from lutra.checkpoints.gguf_blocks import (
    GRIDS,
    read_dense,
    read_matrix,
    read_weight,
    ternary_or_dense,
)
from lutra.checkpoints.weights import Dense, Encoded, Grouped, Ternary
from lutra.formats.gguf_types import TYPES
from lutra.quantize.imported import from_grouped, packed_bits
from lutra_golden.errors import LutraError
from lutra_golden.model.two_levels import SUPER

N, K = 5, 512
BY_NAME = {kind.name: kind for kind in TYPES}
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
    "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": [], "Q1_0": [0], "Q2_0": [0],
    "Q2_0_G128": [0], "PQ2_0": [0], "PTQ1_0": [26], "IQ1_S": [0], "IQ1_M": [48], "IQ2_XXS": [0],
    "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0],
}  # fmt: skip
"""Offsets of the float16 scales in a block, by type."""
MAGNITUDES = {
    "IQ1_S": [-9, -7, -1, 1, 7, 9],
    "IQ1_M": [-9, -7, -1, 1, 7, 9],
    "IQ2_XXS": [-43, -25, -8, 8, 25, 43],
    "IQ2_XS": [-43, -25, -8, 8, 25, 43],
    "IQ2_S": [-43, -25, -8, 8, 25, 43],
    "IQ3_XXS": sorted(sign * each for sign in (-1, 1) for each in (2, 6, 10, 14, 18, 22, 26, 31)),
    "IQ3_S": list(range(-15, 16, 2)),
}
"""The integers of codebooks, or twice those where they are half steps of the grid."""


def put_half(name: str, blocks: NDArray[np.uint8], at: int, half: NDArray[np.uint8]) -> None:
    """Write a float16 ``[..., 2]`` at this offset, where IQ1_M has the top of four words."""
    if name != "IQ1_M":
        blocks[..., at : at + 2] = half
        return
    quarters = np.stack([half & 15, half >> 4], axis=-1).reshape(*half.shape[:-1], 4)
    blocks[..., at + 1 : at + 8 : 2] &= 15
    blocks[..., at + 1 : at + 8 : 2] |= quarters << 4


def random_blocks(name: str, seed: int, n: int = N) -> NDArray[np.uint8]:
    """Random bytes with finite scales of both signs."""
    rng, kind = np.random.default_rng(seed), BY_NAME[name]
    raw = rng.integers(0, 256, (n, K // kind.block, kind.block_bytes)).astype(np.uint8)
    for at in HALVES[name]:
        scales = (rng.normal(0, 0.1, raw.shape[:2])).astype("<f2")
        put_half(name, raw, at, scales[..., None].view(np.uint8))
    if name == "TQ1_0":
        # bytes that a quantiser can give
        trits = rng.integers(0, 3, (*raw.shape[:2], 5, 52))
        trits[..., 4, 48:] = 0
        value = sum(trits[..., i, :] * 3 ** (4 - i) for i in range(5))
        raw[..., :52] = -(-value * 256 // 243)
    if name == "TQ2_0":
        raw[..., :64] &= 0b10101010  # codes 0 and 2 of four
    if name == "MXFP4":
        # powers of two up to the largest of float32's, the least ones beyond its normal numbers
        raw[..., 0] = rng.integers(0, 250, raw.shape[:2])
        raw[0, :4, 0] = 0, 1, 2, 249
    if name == "NVFP4":
        raw[0, 0, :4] = 0, 1, 0x7E, 0x7F  # subnormal, largest, and one that means zero
    return raw


def by_hand(name: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Types that the package does not decode, weight after weight as their authors describe."""
    kind = BY_NAME[name]
    out = np.empty((len(raw) * (K // kind.block), kind.block), np.float32)
    for found, block in zip(out, raw.reshape(-1, kind.block_bytes).tolist(), strict=True):
        at = HALVES[name][0]
        d = np.float32(struct.unpack("<e", bytes(block[at : at + 2]))[0])
        for i in range(kind.block):
            if name == "Q1_0":
                bit = block[2 + i // 8] >> (i % 8) & 1
                found[i] = d if bit else -d
            elif name == "PTQ1_0":
                byte, digit = (
                    (i % 16, i // 16) if i < 80
                    else (16 + (i - 80) % 8, (i - 80) // 8) if i < 120
                    else (24 + i % 2, (i - 120) // 2)
                )  # fmt: skip
                found[i] = d * (((block[byte] * 3**digit & 255) * 3 >> 8) - 1)
            else:
                found[i] = d * ((block[2 + i // 4] >> (2 * (i % 4)) & 3) - 1)
    return out.reshape(len(raw), K)


def expected(name: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    if name in ("Q1_0", "Q2_0", "Q2_0_G128", "PQ2_0", "PTQ1_0"):
        return by_hand(name, raw)
    return gguf.dequantize(raw.reshape(len(raw), -1), Kind[name]).reshape(len(raw), K)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", HALVES)
def test_every_grid_is_exact(name: str, seed: int) -> None:
    raw = random_blocks(name, seed)
    values = expected(name, raw)
    weight = read_weight(BY_NAME[name], raw.ravel(), N, K, "here")
    np.testing.assert_array_equal(weight.dequantized(), values)
    np.testing.assert_array_equal(weight.dequantized(slice(1, 3)), values[1:3])
    np.testing.assert_array_equal(
        read_dense(BY_NAME[name], raw.ravel(), N, K, "here").values, values
    )
    matrix = read_matrix(BY_NAME[name], raw.ravel(), N, K, "here")
    assert isinstance(matrix, Encoded)
    assert matrix.shape == (N, K)
    np.testing.assert_array_equal(matrix.values, values)
    np.testing.assert_array_equal(matrix.dequantized(slice(1, 3)), values[1:3])
    np.testing.assert_array_equal(matrix.take(np.array([4, 0, 4])), values[[4, 0, 4]])
    assert (matrix.bits, matrix.affine) == (GRIDS[name].bits, GRIDS[name].affine)
    codes = matrix.codes(slice(1, 3))
    assert isinstance(weight, Grouped)
    np.testing.assert_array_equal(codes.codes, weight.codes[1:3])
    np.testing.assert_array_equal(codes.dequantized(), values[1:3])
    np.testing.assert_array_equal(codes.row_peaks(), np.abs(values[1:3]).max(axis=1))
    grid = GRIDS[name]
    assert (weight.bits, weight.group) == (grid.bits, grid.group)
    assert weight.codes.max() < 1 << weight.bits
    assert (weight.offset is not None) == grid.affine
    assert (weight.scales is not None) == (name[-2:] == "_K")
    if weight.scales is not None:
        np.testing.assert_array_equal(weight.scales.values(), weight.scale)
        assert weight.scales.factor.shape == (N, K // SUPER)
    if weight.offsets is not None:
        assert weight.offset is not None
        np.testing.assert_array_equal(weight.offsets.values(), weight.offset)
    assert ((weight.zero * 2) % 1 == 0).all()
    assert weight.zero.min() >= 0
    assert weight.zero.max() < 1 << weight.bits


@pytest.mark.parametrize("name", HALVES)
def test_grids_once_they_are_integers(name: str) -> None:
    """Codes are what the file has; scales are off by 2**-16 of the largest at most."""
    raw = random_blocks(name, 1)
    if name == "MXFP4":
        raw[..., 0] = 120 + raw[..., 0] % 8  # scales within what sixteen bits tell apart
    weight, grid = read_weight(BY_NAME[name], raw.ravel(), N, K, "here"), GRIDS[name]
    assert isinstance(weight, Grouped)
    found = from_grouped(weight)
    assert found.weights.bits == packed_bits(grid.bits, affine=grid.affine)
    assert found.weights.group == grid.group
    off = np.abs(found.dequantized() - weight.dequantized()).reshape(N, -1, grid.group)
    top = np.abs(weight.scale).max()
    limit = np.full(weight.scale.shape, top * 2.0**-16 * (1 << grid.bits))
    if grid.affine:
        # random blocks have offsets of any size and sign
        w = weight.dequantized().reshape(N, -1, grid.group)
        step = (w.max(axis=2) - w.min(axis=2)) / ((1 << grid.bits) - 1)
        fine = 4 * (255 // ((1 << grid.bits) - 1))
        limit += (
            np.maximum(step / fine * 1.1, np.abs(w).max(axis=2) / 509) + np.abs(w).max() / 255e2
        )
    assert (off.max(axis=2) <= limit).all()


@pytest.mark.parametrize("name", MAGNITUDES)
def test_codes_of_codebooks(name: str) -> None:
    """The codes are the integers of the tables, and steps are odd multiples of a block's scale."""
    raw = random_blocks(name, 3, n=64)
    put_half(name, raw, HALVES[name][0], np.array([0.25], "<f2").view(np.uint8))
    weight = read_weight(BY_NAME[name], raw.ravel(), 64, K, "here")
    assert isinstance(weight, Grouped)
    doubled = 1 + int(weight.zero[0, 0] % 1 != 0)
    found = np.unique(doubled * (weight.codes - weight.zero[0, 0]))
    assert found.tolist() == MAGNITUDES[name]
    steps = np.unique(weight.scale)
    n_steps = 8 if name.startswith("IQ1") else 16
    assert (steps / steps[0]).tolist() == list(range(1, 2 * n_steps, 2))


def test_groups_of_realistic_q4_k() -> None:
    """The offset is off by a 68th of a step at most, and adds nothing to the error it has."""
    rng = np.random.default_rng(4)
    w = (rng.standard_t(5, (64, K)) * 0.05).astype(np.float32)
    raw, held = ENCODERS["Q4_K"][1](w)
    weight = read_weight(BY_NAME["Q4_K"], raw.ravel(), 64, K, "here")
    np.testing.assert_array_equal(weight.dequantized(), held)
    assert isinstance(weight, Grouped)
    found = from_grouped(weight).dequantized()
    step = weight.scale.repeat(32, axis=1)
    assert (np.abs(found - held) <= step / 68 * 1.001 + weight.scale.max() * 2.0**-12).all()
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


def test_a_fourth_code_is_kept() -> None:
    """Two bits of one scale are no ternary weights where they have a code for 2."""
    raw = random_blocks("Q2_0", 5)
    put_half("Q2_0", raw, 0, np.array([0.5], "<f2").view(np.uint8))
    weight = read_weight(BY_NAME["Q2_0"], raw.ravel(), N, K, "here")
    assert isinstance(weight, Grouped)
    assert weight.dequantized().max() == 1
    raw[..., 2:] &= 0b10101010  # codes 0 and 2
    assert isinstance(read_weight(BY_NAME["Q2_0"], raw.ravel(), N, K, "here"), Ternary)


def test_all_zeros() -> None:
    for name in ("TQ1_0", "TQ2_0", "Q4_0", "Q8_0"):
        raw = gguf.quantize(np.zeros((N, K), np.float32), Kind[name])
        weight = read_weight(BY_NAME[name], raw.ravel(), N, K, "here")
        assert not weight.dequantized().any()
        assert not isinstance(weight, Ternary) or weight.scale == 1
    for name in ("Q4_K", "Q6_K", "Q2_K", "Q5_1"):
        raw = np.zeros(N * K // BY_NAME[name].block * BY_NAME[name].block_bytes, np.uint8)
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
        put_half(name, raw[3, 1], at, np.array([0, 0x7C], np.uint8))
        for read in (read_weight, read_dense):
            with pytest.raises(LutraError, match=r"^here holds infinities or NaNs: convert the"):
                read(BY_NAME[name], raw.ravel(), N, K, "here")
        matrix = read_matrix(BY_NAME[name], raw.ravel(), N, K, "here")
        assert np.isfinite(matrix.take(slice(0, 3))).all()
        with pytest.raises(LutraError, match=r"^here holds infinities or NaNs: convert the"):
            matrix.take(slice(2, 4))
        assert isinstance(matrix, Encoded)
        with pytest.raises(LutraError, match=r"^here holds infinities or NaNs: convert the"):
            matrix.codes(slice(2, 4))
    if name == "MXFP4":
        raw = random_blocks(name, 1)
        for power in (0xFE, 0xFF):
            raw[3, 1, 0] = power  # beyond float32, and not a number
            with pytest.raises(LutraError, match=r"^here holds infinities or NaNs: convert the"):
                read_weight(BY_NAME[name], raw.ravel(), N, K, "here")


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
            found = read_weight(BY_NAME[name], raw, 7, K, "here")
            np.testing.assert_array_equal(found.dequantized(), whole)
            if isinstance(found, Grouped) and found.scales is not None:
                np.testing.assert_array_equal(found.scales.values(), found.scale)
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

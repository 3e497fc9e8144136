"""B128: where every weight lies, byte by byte, and that it comes back."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lutra_golden.model.b128 import BLOCK, from_b128, row_bytes, to_b128

PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (4, 4)}
DEPTHS = (1, 7, 64, 127, 128, 129, 256, 331)


def place(weight: int, width: int) -> tuple[int, int]:
    """Byte and lowest bit of a weight in a block of a plane, as the docstring says it."""
    if width == 4:
        b, within = divmod(weight, 64)
        high, t = divmod(within, 32)
        return 32 * b + t, 4 * high
    field, t = divmod(weight, 32 if width == 2 else 16)
    return t, 8 - width * (field + 1)


def packed_by_hand(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    n, k = codes.shape
    blocks = -(-k // 128)
    out = np.zeros((n, blocks * 16 * bits), np.uint8)
    for row in range(n):
        for i, code in enumerate(codes[row].tolist()):
            block, weight = divmod(i, 128)
            start, rest = block * 16 * bits, code
            for width in PLANES[bits]:
                byte, bit = place(weight, width)
                out[row, start + byte] |= (rest & ((1 << width) - 1)) << bit
                start, rest = start + 16 * width, rest >> width
    return out


@pytest.mark.parametrize("k", DEPTHS)
@pytest.mark.parametrize("bits", PLANES)
def test_every_byte_and_back(bits: int, k: int) -> None:
    codes = np.random.default_rng(k).integers(0, 1 << bits, (3, k)).astype(np.uint8)
    packed = to_b128(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (3, row_bytes(k, bits))
    np.testing.assert_array_equal(packed, packed_by_hand(codes, bits))
    np.testing.assert_array_equal(from_b128(packed, bits, k), codes)


@pytest.mark.parametrize(
    ("bits", "weight", "code", "byte", "value"),
    [
        (1, 0, 1, 0, 0x80),
        (1, 127, 1, 15, 0x01),
        (2, 0, 3, 0, 0xC0),
        (2, 33, 2, 1, 0x20),
        (2, 127, 1, 31, 0x01),
        (3, 0, 4, 32, 0x80),
        (3, 16, 3, 16, 0xC0),
        (4, 31, 9, 31, 0x09),
        (4, 32, 9, 0, 0x90),
        (4, 64, 9, 32, 0x09),
        (5, 0, 0x10, 64, 0x80),
        (5, 127, 0x10, 79, 0x01),
        (6, 0, 0x30, 64, 0xC0),
        (8, 96, 0xA0, 64 + 32, 0xA0),
    ],
)
def test_single_weights(bits: int, weight: int, code: int, byte: int, value: int) -> None:
    codes = np.zeros((1, BLOCK), np.uint8)
    codes[0, weight] = code
    packed = to_b128(codes, bits)[0]
    assert packed[byte] == value
    assert np.flatnonzero(packed).tolist() == [byte]


@pytest.mark.parametrize("bits", PLANES)
def test_what_a_depth_is_filled_with(bits: int) -> None:
    codes = np.full((2, 130), (1 << bits) - 1, np.uint8)
    padded = from_b128(to_b128(codes, bits), bits, 256)
    assert (padded[:, :130] == (1 << bits) - 1).all()
    assert not padded[:, 130:].any()


def test_two_bits_are_those_of_i2_s() -> None:
    gguf_model = pytest.importorskip("tests.host.gguf_model", exc_type=ImportError)
    codes = np.random.default_rng(0).integers(-1, 2, (4, 256)).astype(np.int8)
    raw = np.frombuffer(gguf_model.i2_s_bytes(codes, 1.0), np.uint8)[: 4 * 64]
    packed = to_b128((codes + 1).astype(np.uint8), 2)
    np.testing.assert_array_equal(packed.ravel(), raw)


def test_no_rows() -> None:
    packed = to_b128(np.zeros((0, 128), np.uint8), 4)
    assert packed.shape == (0, 64)
    assert from_b128(packed, 4, 128).shape == (0, 128)

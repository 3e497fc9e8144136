"""Words of grouped weights, bit by bit and against the integer product."""

from typing import Any

import numpy as np
import pytest

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.matmul.engine import OFFSET_MAX, GroupedWeights
from lutra_golden.matmul.grouped import GroupedParams, bits_of, bits_signed, words_of
from lutra_golden.matmul.lut import LutParams
from lutra_golden.matmul.mac import MacParams
from lutra_golden.matmul.mixpe import MixpeParams

GROUPS = ActivationGroups(size=32)
PARAMS = {
    "lut": LutParams(step_depth=8, depth_tile=16),
    "lut-2x64x4": LutParams(step_tokens=2, step_rows=64, step_depth=4, depth_tile=8),
    "mixpe": MixpeParams(step_depth=4, depth_tile=16),
    "mixpe-w8": MixpeParams(step_depth=8, depth_tile=16, w_width=8, max_planes=1),
    "mac": MacParams(step_rows=16, step_depth=16, depth_tile=16),
    "mac-w2": MacParams(step_depth=8, depth_tile=16, w_width=2, max_planes=4),
    "mac-w8": MacParams(step_depth=4, depth_tile=8, w_width=8, max_planes=1),
    "lut-s16": LutParams(step_depth=8, depth_tile=16, scale_width=16),
    "mac-w8-s13": MacParams(step_depth=4, depth_tile=8, w_width=8, max_planes=1, scale_width=13),
    # offsets, groups of activations, both
    "lut-o20": LutParams(step_depth=8, depth_tile=16, offset_width=20),
    "mixpe-g32": MixpeParams(step_depth=4, depth_tile=16, sum_width=43, a_groups=GROUPS),
    "mac-g32-o33-s16": MacParams(
        step_depth=8, depth_tile=32, scale_width=16, sum_width=51, a_groups=GROUPS, offset_width=33
    ),
}


def _weights(
    params: GroupedParams, bits: int, rows: int, depth_tiles: int, rng: np.random.Generator
) -> GroupedWeights:
    top, depth, largest = (
        (1 << bits) - 1,
        depth_tiles * params.depth_tile,
        (1 << params.scale_width) - 1,
    )
    scale = rng.integers(0, largest + 1, (rows, depth_tiles))
    zero = rng.integers(0, 2 * top + 1, (rows, depth_tiles))
    codes = rng.integers(0, top + 1, (rows, depth))
    scale[0], scale[-1], zero[0], zero[-1] = largest, largest, 0, 2 * top
    scale[1], codes[0], codes[-1] = 0, top, 0
    offset = None
    if params.offset_width:
        room = min(OFFSET_MAX, (1 << (params.offset_width - 1)) - 1 - 2 * largest * top)
        offset = rng.integers(-room, room + 1, scale.shape)
        offset[0], offset[1] = room, -room
    return GroupedWeights(
        codes=codes, scale=scale, zero=zero, bits=bits, group=params.depth_tile, offset=offset
    )


@pytest.mark.parametrize("width", [1, 4, 10])
def test_bits_and_back(width: int) -> None:
    values = np.random.default_rng(width).integers(0, 1 << width, (3, 5))
    bits = bits_of(values, width)
    assert bits.shape == (3, 5 * width)
    assert (words_of(bits, width) == values).all()
    # least significant bit first
    assert bits_of(np.array([1]), width).tolist() == [1] + [0] * (width - 1)


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("a_width", [8, 16])
def test_product(name: str, bits: int, a_width: int) -> None:
    """The engine's way is the product of twice the weights, of activations that are shifted by
    groups too; words decode to them."""
    params, rng = PARAMS[name], np.random.default_rng(bits)
    rows, depth_tiles, limit = params.step_rows + 3, 3, 1 << (a_width - 1)
    weights = _weights(params, bits, rows, depth_tiles, rng)
    a = rng.integers(-limit, limit, (3, depth_tiles * params.depth_tile))
    a[0], a[1] = -limit, limit - 1
    planes = params.planes(weights)
    assert planes == -(-bits // params.w_width)
    row_blocks = 2 * params.block_rows
    words = params.pack(weights, planes)
    assert words.shape == (
        params.n_words(depth_tiles, row_blocks, planes),
        -(-params.word_bits // 8),
    )
    decoded = params.decode(words, depth_tiles, row_blocks, planes)
    expected = np.zeros_like(decoded)
    expected[:rows] = weights.doubled()  # rows that fill up the block weigh nothing
    assert (decoded == expected).all()
    assert (params.matmul(a, words, row_blocks, planes) == a @ expected.T).all()
    if params.a_groups is not None:
        shifts = rng.integers(0, params.a_shift_max + 1, (3, depth_tiles))
        shifted = a << shifts.repeat(params.depth_tile, axis=1)
        product = params.matmul(a, words, row_blocks, planes, shifts)
        assert (product == shifted @ expected.T).all()


def test_a_group_of_several_depth_tiles() -> None:
    """Its scale is in the words of each."""
    params, rng = PARAMS["mac-w2"], np.random.default_rng(1)
    codes = rng.integers(0, 4, (8, 64))
    scale, zero = rng.integers(1, 256, (8, 2)), rng.integers(0, 7, (8, 2))
    weights = GroupedWeights(codes=codes, scale=scale, zero=zero, bits=2, group=32)
    words = params.pack(weights, 1)
    assert (params.decode(words, 4, 1, 1) == weights.doubled()).all()


def test_more_planes_than_needed() -> None:
    params, rng = PARAMS["lut"], np.random.default_rng(1)
    weights = _weights(params, 3, 8, 1, rng)
    assert (params.decode(params.pack(weights, 5), 1, 1, 5) == weights.doubled()).all()


def test_layout_of_a_word() -> None:
    """Depth tile, block, digit from the most significant down, step; side fields behind."""
    params = MacParams(step_depth=4, depth_tile=8, w_width=2, max_planes=4)
    codes = np.zeros((16, 16), np.int64)
    scale, zero = np.ones((16, 2), np.int64), np.zeros((16, 2), np.int64)
    # row 9 is row 1 of block 1; depth 13 is digit 1 of step 1 of depth tile 1
    codes[9, 13], scale[9, 1], zero[9, 1] = 0b1101, 0xA5, 0b101
    weights = GroupedWeights(codes=codes, scale=scale, zero=zero, bits=4, group=8)
    words = [int.from_bytes(word.tobytes(), "little") for word in params.pack(weights, 2)]
    digits = [word & ((1 << params.digit_bits) - 1) for word in words]
    assert params.digit_bits == 8 * 4 * 2
    at = 2 * (1 * 4 + 1)
    # words of tile 1, block 1: plane 1 step 0, plane 1 step 1, plane 0 step 0, plane 0 step 1
    expected = [0] * 16
    expected[13], expected[15] = 0b11 << at, 0b01 << at
    assert digits == expected
    side = params.digit_bits + 18
    for index, word in enumerate(words):
        value = (word >> side) & ((1 << 18) - 1)
        assert value == (0xA5 | 0b101 << 8 if index >= 12 else 1)
        assert word >> params.word_bits == 0


def test_layout_of_a_word_with_wider_scales() -> None:
    params = LutParams(step_depth=4, depth_tile=4, max_planes=2, scale_width=11)
    scale, zero = np.zeros((8, 1), np.int64), np.full((8, 1), 3)
    scale[5], zero[5] = 0x5A5, 4
    weights = GroupedWeights(
        codes=np.zeros((8, 4), np.int64), scale=scale, zero=zero, bits=2, group=4
    )
    words = [int.from_bytes(word.tobytes(), "little") for word in params.pack(weights, 2)]
    assert params.word_bits == 8 * 4 + 8 * (11 + 10)
    for word in words:
        sides = [(word >> (32 + 21 * row)) & ((1 << 21) - 1) for row in range(8)]
        # the lut engine's zero points are less 2**2 - 1
        assert sides == [0x5A5 | 1 << 11 if row == 5 else 0 for row in range(8)]


def test_layout_of_a_word_with_offsets() -> None:
    params = LutParams(step_depth=4, depth_tile=4, max_planes=2, offset_width=17)
    scale, zero, offset = np.zeros((8, 1), np.int64), np.full((8, 1), 3), np.zeros((8, 1), np.int64)
    scale[5], zero[5], offset[5] = 0xA5, 4, -1000
    weights = GroupedWeights(
        codes=np.zeros((8, 4), np.int64), scale=scale, zero=zero, bits=2, group=4, offset=offset
    )
    words = [int.from_bytes(word.tobytes(), "little") for word in params.pack(weights, 2)]
    assert params.word_bits == 8 * 4 + 8 * (8 + 17)
    for word in words:
        sides = [(word >> (32 + 25 * row)) & ((1 << 25) - 1) for row in range(8)]
        # less the scale times the zero point, which is less 2**2 - 1
        field = (-1000 - 0xA5) % (1 << 17)
        assert sides == [0xA5 | field << 8 if row == 5 else 0 for row in range(8)]


@pytest.mark.parametrize(
    ("values", "bits"), [([0], 1), ([1], 2), ([-1], 1), ([-2, 1], 2), ([7, -8], 4), ([8, -9], 5)]
)
def test_bits_with_a_sign(values: list[int], bits: int) -> None:
    assert bits_signed(np.array(values)) == bits


def test_rejects_offsets_that_its_words_do_not_hold() -> None:
    params = PARAMS["lut-o20"]
    ones = np.ones((8, 1), np.int64)
    offset = ones << 19
    weights = GroupedWeights(
        codes=np.zeros((8, 16), np.uint8), scale=ones, zero=ones, bits=1, group=16, offset=offset
    )
    offset[:] = (1 << 19) - 1
    params.pack(weights, 1)
    offset[3] = 1 << 19
    with pytest.raises(ValueError) as error:
        params.pack(weights, 1)
    assert str(error.value) == (
        "offsets of groups, less scale times zero point, must fit 20 bits, not 524287..524288: "
        "they take an offset_width of 21"
    )


@pytest.mark.parametrize("name", ["lut", "mixpe", "mac"])
def test_rejects_scales_that_its_words_do_not_hold(name: str) -> None:
    params = PARAMS[name]
    scale = np.full((8, 1), 255)
    weights = GroupedWeights(
        codes=np.zeros((8, params.depth_tile), np.int64),
        scale=scale,
        zero=0 * scale,
        bits=1,
        group=params.depth_tile,
    )
    params.pack(weights, 1)
    scale[3] = 700
    with pytest.raises(ValueError) as error:
        params.pack(weights, 1)
    assert str(error.value) == (
        "scale must be in 0..255 for an engine with a scale_width of 8, not up to 700: "
        "it takes a scale_width of 10"
    )


@pytest.mark.parametrize(
    ("shape", "group", "planes", "message"),
    [
        ((8, 24), 24, 1, "depth must be a multiple of depth_tile (16), not 24"),
        ((8, 48), 24, 1, "group must be a multiple of depth_tile (16), not 24"),
        ((8, 16), 16, 0, "planes must hold 3 bits, not 0 of 4 bits"),
    ],
)
def test_rejects_what_it_cannot_pack(
    shape: tuple[int, int], group: int, planes: int, message: str
) -> None:
    ones = np.ones((shape[0], shape[1] // group), np.int64)
    weights = GroupedWeights(
        codes=np.zeros(shape, np.int64), scale=ones, zero=ones, bits=3, group=group
    )
    with pytest.raises(ValueError) as error:
        PARAMS["mixpe"].pack(weights, planes)
    assert str(error.value) == message


def test_rejects_more_bits_than_planes() -> None:
    ones = np.ones((8, 1), np.int64)
    weights = GroupedWeights(
        codes=np.zeros((8, 16), np.int64), scale=ones, zero=ones, bits=5, group=16
    )
    with pytest.raises(ValueError) as error:
        LutParams(step_depth=8, depth_tile=16, max_planes=4).planes(weights)
    assert str(error.value) == "weights of 5 bits need 5 planes of 1 bits, the engine has 4"


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (LutParams, {"max_planes": 9}, "max_planes must give codes of at most 8 bits, not 9"),
        (MacParams, {"max_planes": 3}, "max_planes must give codes of at most 8 bits, not 3"),
        (MixpeParams, {"w_width": 8}, "max_planes must give codes of at most 8 bits, not 2"),
    ],
)
def test_rejects_codes_of_more_than_eight_bits(
    cls: type[GroupedParams], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        cls(**values)
    assert str(error.value) == message


@pytest.mark.parametrize("name", [name for name in PARAMS if not PARAMS[name].offset_width])
def test_rejects_offsets(name: str) -> None:
    params = PARAMS[name]
    ones = np.ones((8, 1), np.int64)
    k = params.depth_tile
    weights = GroupedWeights(
        codes=np.zeros((8, k), np.uint8), scale=ones, zero=ones, bits=1, group=k, offset=ones
    )
    with pytest.raises(ValueError) as error:
        params.planes(weights)
    assert str(error.value) == "the engine takes zero points, not offsets of groups"

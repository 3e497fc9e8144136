"""The LUT tensor core's model against the integer product, and its packing bit by bit.

A product is linear in its activations. Where codes, scales and zero points give the right sum for
every vector of a basis, they give it for all activations: a basis of four unit vectors proves a
group of four weights, whatever the activations.
"""

from itertools import product

import numpy as np
import pytest

from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.lut import (
    ENTRIES,
    LutParams,
    Tables,
    decode_bits,
    encode_bits,
    lut_table,
)

SMALL = LutParams(step_rows=8, step_depth=8, depth_tile=16)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("step_depth", 6, "step_depth must be a multiple of 4 (activations of a table), not 6"),
        ("w_width", 2, "w_width of the lut engine must be 1, not 2"),
        ("step_tokens", 0, "step_tokens must be positive, not 0"),
        ("step_rows", 12, "step_rows must be a power of two from 8 on, not 12"),
        ("step_rows", 4, "step_rows must be a power of two from 8 on, not 4"),
        ("a_width", 12, "a_width must be 8 or 16, not 12"),
        ("max_planes", 9, "max_planes must give codes of at most 8 bits, not 9"),
        ("tables", 3, "tables must be 1 (memory) or 2 (logic), not 3"),
    ],
)
def test_rejects_values(name: str, value: int, message: str) -> None:
    sizes = {"step_depth": 6, "depth_tile": 12} if name == "step_depth" else {name: value}
    with pytest.raises(ValueError) as error:
        LutParams(**sizes)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_rejects_a_depth_tile_of_uneven_steps() -> None:
    with pytest.raises(ValueError) as error:
        LutParams(step_depth=12, depth_tile=64)
    assert (
        str(error.value) == "depth_tile (the group) must be a multiple of step_depth, not 64 of 12"
    )


@pytest.mark.parametrize(("bits", "planes"), [(2, 1), (8, 7)])
def test_rejects_too_few_planes(bits: int, planes: int) -> None:
    with pytest.raises(ValueError) as error:
        SMALL.pack(_weights(np.random.default_rng(0), 8, 16, bits, 16), planes)
    assert str(error.value) == f"planes must hold {bits} bits, not {planes} of 1 bits"


def test_rejects_weights_wider_than_its_planes() -> None:
    with pytest.raises(ValueError) as error:
        LutParams(max_planes=4).planes(_weights(np.random.default_rng(0), 8, 64, 6, 64))
    assert str(error.value) == "weights of 6 bits need 6 planes of 1 bits, the engine has 4"


@pytest.mark.parametrize(("k", "group", "message"), [
    (24, 24, "depth must be a multiple of depth_tile (16), not 24"),
    (32, 8, "group must be a multiple of depth_tile (16), not 8"),
])  # fmt: skip
def test_rejects_groups(k: int, group: int, message: str) -> None:
    with pytest.raises(ValueError) as error:
        SMALL.pack(_weights(np.random.default_rng(0), 8, k, 2, group), 2)
    assert str(error.value) == message


def _weights(rng: np.random.Generator, n: int, k: int, bits: int, group: int) -> GroupedWeights:
    shape = (n, k // group)
    return GroupedWeights(
        codes=rng.integers(0, 1 << bits, (n, k)),
        scale=rng.choice([1, 2, 113, 255], shape),
        zero=rng.integers(0, 2 * ((1 << bits) - 1) + 1, shape),
        bits=bits,
        group=group,
    )


def test_every_code_of_four_bits() -> None:
    """Encoding is one to one, and a code's entry is the sum that the bits mean."""
    bits = np.array(list(product((0, 1), repeat=4)))
    codes = encode_bits(bits)
    assert sorted(codes.tolist()) == list(range(16))
    assert (decode_bits(codes) == bits).all()
    assert (encode_bits(decode_bits(np.arange(16))) == np.arange(16)).all()
    basis = np.eye(4, dtype=np.int64)
    for bit, code in zip(bits, codes, strict=True):
        entry = lut_table(basis)[:, code & 7]
        assert (np.where(code >> 3, -entry, entry) == 2 * bit - 1).all()


def test_codes_are_as_documented() -> None:
    """The last bit's complement is the sign; the others are complemented where it is set."""
    assert encode_bits(np.array([1, 0, 0, 1])) == 0b0001
    assert encode_bits(np.array([0, 1, 1, 1])) == 0b0110
    assert encode_bits(np.array([1, 0, 0, 0])) == 0b1110
    assert encode_bits(np.array([0, 0, 0, 0])) == 0b1111


def test_table_is_half_of_all_signed_sums() -> None:
    signs = {tuple(row) for row in ENTRIES.tolist()}
    assert len(signs | {tuple(-s for s in row) for row in signs}) == 16
    a = np.array([-128, 127, 5, -6])
    assert lut_table(a)[0] == -6 + 128 - 127 - 5
    assert lut_table(a)[7] == -128 + 127 + 5 - 6
    # the last activation is always added, so the most negative table still fits
    extremes = lut_table(np.array(list(product((-128, 127), repeat=4))))
    assert (extremes.min(), extremes.max()) == (-512, 511)
    assert LutParams().entry_width == 10


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_offline_remap_is_exact(bits: int) -> None:
    """Exhaustive: every four codes with every zero point, on a basis and on extremes.

    Weights go through the packer, so the index and sign bits, the mean of bits as -1 and +1 and
    the remapped zero point are those of the hardware's words.
    """
    n = 16**bits
    params = LutParams(step_rows=n, step_depth=4, depth_tile=4, max_planes=bits, acc_blocks=n)
    a = np.concatenate([
        np.eye(4, dtype=np.int64),
        [[-128] * 4, [127] * 4, [-128, 127, -128, 127], [1, -2, 4, -8]],
    ])  # fmt: skip
    codes = np.array(list(product(range(1 << bits), repeat=4)))
    for zero in range(2 * ((1 << bits) - 1) + 1):
        column = np.ones((n, 1), np.int64)
        weights = GroupedWeights(
            codes=codes, scale=3 * column, zero=zero * column, bits=bits, group=4
        )
        words = params.pack(weights, bits)
        expected = a @ (3 * (2 * codes - zero)).T
        assert (params.matmul(a, words, n // 8, bits) == expected).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("a_width", [8, 16])
@pytest.mark.parametrize("extra_planes", [0, 1])
def test_matmul_is_the_integer_product(bits: int, a_width: int, extra_planes: int) -> None:
    """More planes than the weights have bits change the words, and not the product."""
    planes = min(bits + extra_planes, 8)
    rng = np.random.default_rng(10 * bits + a_width)
    params = LutParams(step_rows=8, step_depth=8, depth_tile=16, a_width=a_width)
    weights = _weights(rng, 13, 64, bits, 32)
    limit = 1 << (a_width - 1)
    a = rng.integers(-limit, limit, (3, 64))
    a[0], a[1, ::2] = -limit, limit - 1
    words = params.pack(weights, planes)
    assert words.shape == (params.n_words(4, 2, planes), -(-params.word_bits // 8))
    doubled = params.decode(words, 4, 2, planes)
    assert (doubled[:13] == weights.doubled()).all()
    assert (doubled[13:] == 0).all()
    result = params.matmul(a, words, 2, planes)
    assert (result[:, :13] == a @ weights.doubled().T).all()
    assert (result[:, 13:] == 0).all()


def test_integers_are_twice_themselves() -> None:
    rng = np.random.default_rng(5)
    w, a = rng.integers(-1, 2, (8, 32)), rng.integers(-128, 128, (2, 32))
    weights = GroupedWeights.from_integers(w)
    words = SMALL.pack(weights, SMALL.planes(weights))
    assert (SMALL.matmul(a, words, 1, SMALL.planes(weights)) == 2 * a @ w.T).all()


@pytest.mark.parametrize("tables", list(Tables))
def test_words_do_not_depend_on_what_tables_are_made_of(tables: Tables) -> None:
    weights = _weights(np.random.default_rng(6), 16, 32, 3, 16)
    other = LutParams(step_rows=8, step_depth=8, depth_tile=16, tables=tables)
    assert (other.pack(weights, 3) == SMALL.pack(weights, 3)).all()


def _layout(params: LutParams) -> tuple[int, int]:
    return params.step_rows * params.n_tables * 4, params.step_rows * 18


def test_sizes_of_a_word() -> None:
    assert (SMALL.digit_bits, SMALL.side_bits) == _layout(SMALL) == (64, 144)
    assert SMALL.word_bits == 208
    paper = LutParams(step_tokens=2, step_rows=64, step_depth=4)
    assert (paper.digit_bits, paper.macs_per_step, paper.steps) == (256, 512, 16)


def test_order_of_words_and_bits() -> None:
    """One code bit set at a time: depth tile, block, plane, step; then row, table, bit."""
    planes, n, k = 2, 16, 32
    ones = np.ones((n, k // 16), np.int64)

    def words(codes: np.ndarray) -> list[int]:
        weights = GroupedWeights(codes=codes, scale=ones, zero=0 * ones, bits=planes, group=16)
        return [int.from_bytes(word.tobytes(), "little") for word in SMALL.pack(weights, planes)]

    # all bits clear: the sign is set, and the others are complemented
    empty = words(np.zeros((n, k), np.int64))
    side = sum((1 | (-3 & 1023) << 8) << 64 + 18 * row for row in range(8))
    assert empty == [(1 << 64) - 1 | side] * 16
    for row, column, plane in np.ndindex(n, k, planes):
        codes = np.zeros((n, k), np.int64)
        codes[row, column] = 1 << plane
        block, lane = divmod(row, 8)
        tile, place = divmod(column, 16)
        step, within = divmod(place, 8)
        table, digit = divmod(within, 4)
        number = ((tile * 2 + block) * planes + planes - 1 - plane) * 2 + step
        flipped = 1 << digit if digit < 3 else 0b1111
        expected = list(empty)
        expected[number] ^= flipped << 4 * (lane * 2 + table)
        assert words(codes) == expected


def test_scale_and_zero_point_of_a_row() -> None:
    ones = np.ones((8, 2), np.int64)
    scale, zero = ones.copy(), 0 * ones
    scale[5, 1], zero[5, 1] = 0xA5, 6
    weights = GroupedWeights(
        codes=np.zeros((8, 32), np.int64), scale=scale, zero=zero, bits=2, group=16
    )
    fields = [
        int.from_bytes(word.tobytes(), "little") >> 64 + 18 * 5 & (1 << 18) - 1
        for word in SMALL.pack(weights, 2)
    ]
    # the zero point in half steps, less 2**2 - 1
    assert fields == [1 | (-3 & 1023) << 8] * 4 + [0xA5 | 3 << 8] * 4


def test_a_flipped_bit_changes_the_sum() -> None:
    a = np.full((1, 16), 3)
    weights = GroupedWeights.from_integers(np.ones((8, 16), np.int64))
    words = SMALL.pack(weights, 2)
    before = SMALL.matmul(a, words, 1, 2)
    words[0, 0] ^= 1 << 3  # sign of row 0, table 0, most significant bit
    change = SMALL.matmul(a, words, 1, 2) - before
    # code 3 becomes 1 in four weights of row 0
    assert change.tolist() == [[2 * -2 * 4 * 3, *[0] * 7]]

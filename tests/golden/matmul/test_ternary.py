"""The ternary matmul model against the integer product, and its packing bit by bit."""

from typing import Any

import numpy as np
import pytest

from lutra_golden.core.configs import NANO
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.table import encode_trits, relative_signs
from lutra_golden.matmul.ternary import (
    TernaryParams,
    decode_words,
    from_trit_planes,
    lookup_matmul,
    pack_words,
    to_trit_planes,
)

SMALL = TernaryParams(step_depth=15, depth_tile=15)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step_rows": 0}, "step_rows must be positive, not 0"),
        ({"step_rows": 4}, "step_rows must be a power of two from 8 on, not 4"),
        ({"step_rows": 24}, "step_rows must be a power of two from 8 on, not 24"),
        ({"pass_tokens": -1}, "pass_tokens must be positive, not -1"),
        (
            {"step_depth": 64, "depth_tile": 64},
            "step_depth must be a multiple of 3 (activations of a table), not 64",
        ),
        (
            {"step_depth": 36},
            "depth_tile of the ternary engine must be step_depth (36), not 72",
        ),
        (
            {"scale_width": 16},
            "scale_width of the ternary engine, which has no scales, must be 8, not 16",
        ),
        (
            {"weight_buffer_words": 48},
            "weight_buffer_words must be a power of two from 2 on, not 48",
        ),
    ],
)
def test_rejects_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        TernaryParams(**values)
    assert str(error.value) == message


def test_rejects_kinds() -> None:
    with pytest.raises(TypeError) as error:
        TernaryParams(step_rows=8.0)  # type: ignore[arg-type]
    assert str(error.value) == "step_rows must be an integer, not 8.0"


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (
            122,
            "weights must be within +-121 for the ternary engine, not 122: it has no group scales",
        ),
        (121, None),
    ],
)
def test_rejects_weights_beyond_its_planes(w: int, message: str | None) -> None:
    weights = GroupedWeights.from_integers(np.array([[w, -1]]))
    if message is None:
        assert SMALL.planes(weights) == 5
        return
    with pytest.raises(ValueError) as error:
        SMALL.planes(weights)
    assert str(error.value) == message


def test_rejects_half_steps() -> None:
    one, binary = np.ones((1, 1), np.int64), np.array([[0, 1]])
    weights = GroupedWeights(codes=binary, scale=one, zero=one, bits=1, group=2)
    with pytest.raises(ValueError) as error:
        SMALL.planes(weights)
    assert str(error.value) == "weights must be integers for the ternary engine, not half steps"


def test_derived_sizes_of_nano() -> None:
    params = NANO.matmul
    assert isinstance(params, TernaryParams)
    assert (params.steps, params.word_bits, params.macs_per_step) == (1, 960, 576)
    assert params.entry_width == 10


@pytest.mark.parametrize("planes", [1, 2, 5])
def test_max_depth_is_what_the_accumulators_hold(planes: int) -> None:
    limit = 1 << (NANO.matmul.acc_width - 1)
    largest = 128 * (3**planes - 1) // 2
    depth = TernaryParams().max_depth(planes)
    assert depth * largest < limit <= (depth + 1) * largest


@pytest.mark.parametrize("planes", [1, 2, 3, 4, 5])
def test_digits_of_every_weight(planes: int) -> None:
    limit = (3**planes - 1) // 2
    w = np.arange(-limit, limit + 1)
    digits = to_trit_planes(w, planes)
    assert digits.shape == (planes, 2 * limit + 1)
    assert set(np.unique(digits)) == {-1, 0, 1}
    assert (from_trit_planes(digits) == w).all()
    assert (np.array([3**i for i in range(planes)]) @ digits == w).all()


def test_rejects_weights_beyond_their_digits() -> None:
    with pytest.raises(ValueError) as error:
        to_trit_planes(np.array([5]), 2)
    assert str(error.value) == "weights must be within +-4 for 2 trits"


@pytest.mark.parametrize("planes", [1, 2, 5])
@pytest.mark.parametrize("depth", [1, 14, 15, 16, 47])
@pytest.mark.parametrize("tokens", [1, 3])
def test_lookups_are_the_integer_product(planes: int, depth: int, tokens: int) -> None:
    rng = np.random.default_rng(planes * 100 + depth)
    limit = (3**planes - 1) // 2
    a = rng.integers(-128, 128, (tokens, depth))
    w = rng.integers(-limit, limit + 1, (12, depth))
    a[0], w[0], w[1] = -128, limit, -limit
    words = pack_words(SMALL, w, planes)
    assert words.shape == (-(-depth // 15) * 2 * planes, -(-SMALL.word_bits // 8))
    # rows that fill up the last block weigh nothing
    assert (lookup_matmul(SMALL, a, words, planes) == np.pad(a @ w.T, ((0, 0), (0, 4)))).all()


@pytest.mark.parametrize("planes", [1, 5])
def test_product_of_sixteen_rows_a_word(planes: int) -> None:
    rng = np.random.default_rng(planes)
    limit = (3**planes - 1) // 2
    a = rng.integers(-128, 128, (2, 100))
    w = rng.integers(-limit, limit + 1, (16, 100))
    params = TernaryParams(step_rows=16)
    words = pack_words(params, w, planes)
    assert (lookup_matmul(params, a, words, planes) == a @ w.T).all()


def test_order_of_words_and_bits() -> None:
    """One digit is set at a time: depth tile, then block, then plane; lane, table in a word."""
    planes, n, k = 2, 16, 30
    for row, column, power in [(0, 0, 0), (9, 29, 1), (7, 14, 1), (8, 15, 0), (15, 16, 1)]:
        w = np.zeros((n, k), np.int64)
        w[row, column] = -(3**power)
        words = pack_words(SMALL, w, planes)
        block, lane = divmod(row, 8)
        tile, place = divmod(column, 15)
        table, digit = divmod(place, 3)
        word = (tile * (n // 8) + block) * planes + (planes - 1 - power)
        codes = np.zeros(5, np.int64)
        codes[table] = encode_trits(-np.eye(3, dtype=np.int64)[digit])
        bits = sum(int(c) << 5 * (5 * lane + t) for t, c in enumerate(relative_signs(codes)))
        values = [int.from_bytes(row_bytes.tobytes(), "little") for row_bytes in words]
        assert values == [bits if i == word else 0 for i in range(8)]


@pytest.mark.parametrize("planes", [1, 3])
def test_unpacking(planes: int) -> None:
    rng = np.random.default_rng(planes)
    limit = (3**planes - 1) // 2
    w = rng.integers(-limit, limit + 1, (16, 45))
    assert (decode_words(SMALL, pack_words(SMALL, w, planes), 3, 2, planes) == w).all()


def test_a_flipped_bit_changes_the_sum() -> None:
    a, w = np.full((1, 15), 3), np.ones((8, 15), np.int64)
    words = pack_words(SMALL, w, 1)
    words[0, 1] ^= 1 << 1  # sign of row 0, table 1, which no other one refers to
    assert lookup_matmul(SMALL, a, words, 1).tolist() == [[27] + [45] * 7]
    words[0, 1] ^= 1 << 1
    words[0, 0] ^= 1 << 4  # sign of row 0, table 0, which all others refer to
    assert lookup_matmul(SMALL, a, words, 1).tolist() == [[-45] + [45] * 7]


@pytest.mark.parametrize(("weight", "planes"), [(1, 1), (-1, 1), (-2, 2), (-13, 3), (13, 3)])
def test_planes_hold_the_largest_magnitude(weight: int, planes: int) -> None:
    params = TernaryParams()
    assert params.planes(GroupedWeights.from_integers(np.array([[weight, 0]]))) == planes

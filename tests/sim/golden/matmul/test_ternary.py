"""The ternary matmul model against the integer product, and its packing bit by bit."""

import numpy as np
import pytest

from lutra.sim.golden.core.config import NANO
from lutra.sim.golden.matmul.table import encode_trits
from lutra.sim.golden.matmul.ternary import (
    TernaryParams,
    decode_words,
    from_trit_planes,
    lookup_matmul,
    pack_words,
    to_trit_planes,
)

SMALL = TernaryParams(lanes=4, n_tables=5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lanes", 0, "lanes must be positive, not 0"),
        ("m_tile", -1, "m_tile must be positive, not -1"),
        ("acc_blocks", 3, "acc_blocks must be even (they are read in pairs), not 3"),
        ("weight_buffer_words", 48, "weight_buffer_words must be a power of two, not 48"),
    ],
)
def test_rejects_values(name: str, value: int, message: str) -> None:
    with pytest.raises(ValueError) as error:
        TernaryParams(**{name: value})
    assert str(error.value) == message


def test_rejects_kinds() -> None:
    with pytest.raises(TypeError) as error:
        TernaryParams(lanes=8.0)  # type: ignore[arg-type]
    assert str(error.value) == "lanes must be an integer, not 8.0"


def test_derived_sizes_of_nano() -> None:
    params = NANO.matmul
    assert (params.k_tile, params.word_bits, params.macs_per_cycle) == (72, 960, 576)
    assert params.entry_width == 10


@pytest.mark.parametrize("planes", [1, 2, 5])
def test_max_depth_is_what_the_accumulators_hold(planes: int) -> None:
    limit = 1 << (NANO.acc_width - 1)
    largest = 128 * (3**planes - 1) // 2
    depth = NANO.matmul.max_depth(planes)
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
    assert words.shape == (-(-depth // 15) * 3 * planes, -(-SMALL.word_bits // 8))
    assert (lookup_matmul(SMALL, a, words, planes) == a @ w.T).all()


@pytest.mark.parametrize("planes", [1, 5])
def test_nano_product(planes: int) -> None:
    rng = np.random.default_rng(planes)
    limit = (3**planes - 1) // 2
    a = rng.integers(-128, 128, (2, 100))
    w = rng.integers(-limit, limit + 1, (16, 100))
    words = pack_words(NANO.matmul, w, planes)
    assert (lookup_matmul(NANO.matmul, a, words, planes) == a @ w.T).all()


def test_order_of_words_and_bits() -> None:
    """One digit is set at a time: depth tile, then block, then plane; lane, table in a word."""
    planes, n, k = 2, 8, 30
    for row, column, power in [(0, 0, 0), (5, 29, 1), (3, 14, 1), (4, 15, 0), (7, 16, 1)]:
        w = np.zeros((n, k), np.int64)
        w[row, column] = -(3**power)
        words = pack_words(SMALL, w, planes)
        block, lane = divmod(row, 4)
        tile, place = divmod(column, 15)
        table, digit = divmod(place, 3)
        word = (tile * (n // 4) + block) * planes + (planes - 1 - power)
        code = int(encode_trits(-np.eye(3, dtype=np.int64)[digit]))
        values = [int.from_bytes(row_bytes.tobytes(), "little") for row_bytes in words]
        assert values == [(code << 5 * (lane * 5 + table)) if i == word else 0 for i in range(8)]


def test_rejects_rows_that_fill_no_block() -> None:
    with pytest.raises(ValueError) as error:
        pack_words(SMALL, np.zeros((6, 15), np.int64), 1)
    assert str(error.value) == "rows must be a multiple of 4, not 6"


@pytest.mark.parametrize("planes", [1, 3])
def test_unpacking(planes: int) -> None:
    rng = np.random.default_rng(planes)
    limit = (3**planes - 1) // 2
    w = rng.integers(-limit, limit + 1, (8, 45))
    assert (decode_words(SMALL, pack_words(SMALL, w, planes), 3, 2, planes) == w).all()


def test_a_flipped_bit_changes_the_sum() -> None:
    a, w = np.full((1, 15), 3), np.ones((4, 15), np.int64)
    words = pack_words(SMALL, w, 1)
    words[0, 0] ^= 1 << 4  # sign of lane 0, table 0
    assert lookup_matmul(SMALL, a, words, 1).tolist() == [[27, 45, 45, 45]]

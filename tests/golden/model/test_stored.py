"""Stored weights: codes in B128, ternary ones without scales."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lutra_golden.arith.scale import scale_from_int
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model import stored as module
from lutra_golden.model.packed import CodedVocabulary, PackedLinear
from lutra_golden.model.stored import StoredWeights, TwoZeros


def grouped(bits: int, n: int = 5, k: int = 192, group: int = 64, top: int = 255) -> GroupedWeights:
    rng = np.random.default_rng(bits)
    return GroupedWeights(
        codes=rng.integers(0, 1 << bits, (n, k), np.uint8),
        scale=rng.integers(0, top + 1, (n, k // group)),
        zero=rng.integers(0, 2 * ((1 << bits) - 1) + 1, (n, k // group)),
        bits=bits,
        group=group,
    )


def assert_same(a: GroupedWeights, b: GroupedWeights) -> None:
    assert (a.bits, a.group) == (b.bits, b.group)
    for name in ("codes", "scale", "zero", "offset"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_grouped_weights_come_back(bits: int) -> None:
    weights = grouped(bits)
    stored = StoredWeights.of(weights)
    assert (stored.n_rows, stored.depth, stored.codes.shape) == (5, 192, (5, 256 * bits // 8))
    assert stored.scale is not None and stored.scale.dtype == np.uint8
    assert_same(stored.unpack(), weights)


def in_five(bits: int = 6) -> GroupedWeights:
    """Codes of ``bits`` bits that are all below 32."""
    return replace(grouped(5), bits=bits)


def test_codes_that_fit_are_stored_in_five_bits() -> None:
    weights = in_five()
    weights.codes[0, 0], weights.zero[0, 0] = 31, 62
    stored = StoredWeights.of(weights)
    assert (stored.bits, stored.codes.shape) == (5, (5, 2 * 80))
    assert_same(stored.unpack(), weights)
    assert_same(StoredWeights.of(in_five(5)).unpack(), in_five())
    assert stored.rows(slice(1, 3)).bits == 5
    # those of other widths stay in what a format has
    assert StoredWeights.of(in_five(8)).bits == 8


@pytest.mark.parametrize(("code", "zero"), [(32, 62), (31, 63)])
def test_codes_of_six_bits_that_do_not_fit(code: int, zero: int) -> None:
    weights = in_five()
    weights.codes[4, 100], weights.zero[4, 1] = code, zero
    assert StoredWeights.of(weights).bits == 6
    assert_same(StoredWeights.of(weights).unpack(), weights)


def test_bits_that_are_kept() -> None:
    assert StoredWeights.of(in_five(), grouped=True).bits == 6


@pytest.mark.parametrize("n_groups", [1, 7, 8, 9, 28])
def test_two_zero_points(n_groups: int) -> None:
    marked = np.random.default_rng(n_groups).integers(0, 2, (3, n_groups)).astype(bool)
    marked[0, 0], marked[1, -1] = True, False
    zero = np.where(marked, 32, 30).astype(np.uint16)
    two = TwoZeros.of(zero)
    assert two is not None and (two.first, two.second) == (30, 32)
    assert two.marks.shape == (3, -(-n_groups // 8))
    for row in range(3):
        for g in range(n_groups):
            assert two.marks[row, g // 8] >> g % 8 & 1 == marked[row, g]
    np.testing.assert_array_equal(two.zeros(n_groups), zero)
    assert two.zeros(n_groups).dtype == np.uint16


def test_one_zero_point_and_three() -> None:
    one = TwoZeros.of(np.full((3, 9), 255, np.uint16))
    assert one is not None and one[:2] == (255, 255) and not one.marks.any()
    assert (one.zeros(9) == 255).all() and one.zeros(9).shape == (3, 9)
    assert TwoZeros.of(np.array([[1, 2], [2, 3]], np.uint16)) is None
    none = TwoZeros.of(np.zeros((0, 9), np.uint16))
    assert none is not None and none.zeros(9).shape == (0, 9)


def test_wide_scales_take_two_bytes() -> None:
    weights = grouped(4, top=4095)
    stored = StoredWeights.of(weights)
    assert stored.scale is not None and stored.scale.dtype == np.uint16
    assert stored.scale_bits == weights.scale_bits == 12
    assert_same(stored.unpack(), weights)


def test_ternary_weights_have_no_scales() -> None:
    w = np.random.default_rng(0).integers(-1, 2, (3, 200))
    stored = StoredWeights.of(GroupedWeights.from_integers(w))
    assert (stored.bits, stored.group, stored.scale, stored.zero) == (2, None, None, None)
    assert stored.scale_bits == 1
    np.testing.assert_array_equal(stored.unpack().doubled(), 2 * w)


def with_offsets(weights: GroupedWeights, offset: list[int]) -> GroupedWeights:
    n, groups = weights.scale.shape
    return replace(weights, offset=np.array(offset, np.int64).repeat(n).reshape(groups, n).T)


@pytest.mark.parametrize(
    ("offset", "shift"),
    [([5, -32767, 32767], 0), ([1 << 15, -2, 0], 1), ([0, (1 << 31) - (1 << 16), -(1 << 16)], 16)],
)
def test_offsets_come_back(offset: list[int], shift: int) -> None:
    weights = with_offsets(grouped(4), offset)
    stored = StoredWeights.of(weights)
    assert stored.offset is not None and stored.offset.dtype == np.int16
    assert stored.offset_shift == shift
    assert_same(stored.unpack(), weights)
    assert weights.peak <= stored.peak_bound <= 4 * weights.peak


def test_offsets_that_16_bits_do_not_hold() -> None:
    with pytest.raises(ValueError, match=r"^offsets must be multiples of 2 to fit 16 bits$"):
        StoredWeights.of(with_offsets(grouped(4), [1 << 15, 3, 0]))


def test_a_packed_matrix_is_either() -> None:
    weights, scale = grouped(3), scale_from_int(1)
    codes = PackedLinear(weights, scale, 2)
    stored = PackedLinear(codes.stored, scale, 2)
    assert codes.weights is weights and stored.stored is codes.stored
    assert_same(stored.weights, weights)
    assert stored.peak == codes.peak == int(np.abs(weights.doubled()).sum(axis=1).max())
    for linear in (codes, stored):
        assert (linear.n_rows, linear.depth) == weights.codes.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": np.zeros((2, 31), np.uint8)}, "codes must be [2, 32], not [2, 31]"),
        ({"codes": np.full((2, 32), 0xC0, np.uint8)}, "codes without groups must be 0, 1 and 2"),
        (
            {"bits": 4, "codes": np.zeros((2, 64), np.uint8)},
            "codes without groups must be 0, 1 and 2 in two bits",
        ),
        ({"group": 64}, "zero and either scale or levels must be there with groups"),
        (
            {
                "group": 64,
                "scale": np.ones((2, 2), np.uint8),
                "zero": np.full((2, 2), 7, np.uint16),
            },
            "zero must be in 0..6, not up to 7",
        ),
        (
            {"group": 64, "scale": np.ones((2, 1), np.uint8), "zero": np.ones((2, 2), np.uint16)},
            "scale must be [2, 2], not [2, 1]",
        ),
        (
            {
                "group": 64,
                "scale": np.ones((2, 2), np.uint8),
                "zero": np.ones((2, 2), np.uint16),
                "offset": np.ones((2, 1), np.int16),
            },
            "offset must be [2, 2], not [2, 1]",
        ),
        (
            {
                "group": 64,
                "scale": np.ones((2, 2), np.uint8),
                "zero": np.ones((2, 2), np.uint16),
                "offset_shift": 17,
            },
            "offset_shift must be in 0..16, not 17",
        ),
        (
            {"group": 96, "scale": np.ones((2, 1), np.uint8), "zero": np.ones((2, 1), np.uint16)},
            "depth must be a multiple of group (96), not 128",
        ),
    ],
)
def test_what_can_not_be(options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"codes": np.zeros((2, 32), np.uint8), "depth": 128, "bits": 2}
    with pytest.raises(ValueError, match=re.escape(message)):
        StoredWeights(**(arguments | options))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_no_sum_is_above_its_bound(bits: int) -> None:
    weights = grouped(bits)
    stored = StoredWeights.of(weights)
    assert weights.peak <= stored.peak_bound <= 4 * weights.peak
    ends = np.zeros((2, 128), np.uint8)
    ends[1] = (1 << bits) - 1
    worst = GroupedWeights(
        codes=ends,
        scale=np.full((2, 2), 9),
        zero=np.array([[(2 << bits) - 2] * 2, [0, 0]]),
        bits=bits,
        group=64,
    )
    assert StoredWeights.of(worst).peak_bound == worst.peak


def test_some_rows() -> None:
    weights = with_offsets(grouped(4), [5, -32767, 32767])
    stored = StoredWeights.of(weights)
    for select in (slice(1, 4), np.array([4, 0, 0])):
        assert_same(stored.rows(select).unpack(), weights.rows(select))
    ternary = StoredWeights.of(GroupedWeights.from_integers(np.eye(4, 130, dtype=np.int8)))
    np.testing.assert_array_equal(
        ternary.rows(np.array([2])).unpack().doubled(), 2 * np.eye(4, 130)[2:3]
    )


def test_bytes_of_all_arrays() -> None:
    weights = grouped(4)
    assert StoredWeights.of(weights).n_bytes == 5 * (128 + 3 + 2 * 3)
    common = replace(weights, zero=np.full_like(weights.zero, 15), scale=weights.scale + 300)
    assert StoredWeights.of(common).n_bytes == 5 * (128 + 2 * 3)
    assert StoredWeights.of(with_offsets(common, [1, 2, 3])).n_bytes == 5 * (128 + 4 * 3)
    two = replace(common, zero=np.arange(15).reshape(5, 3) % 2 + 14)
    assert StoredWeights.of(two).n_bytes == 5 * (128 + 2 * 3 + 1)
    ternary = GroupedWeights.from_integers(np.eye(5, 130, dtype=np.int8))
    assert StoredWeights.of(ternary).n_bytes == 5 * 64


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_no_weight_is_beyond_the_bound(bits: int) -> None:
    weights = grouped(bits)
    stored = StoredWeights.of(weights)
    top = int(np.abs(weights.doubled()).max())
    assert top <= stored.weight_bound <= 2 * top
    offset = with_offsets(weights, [0, 0, -30_000])
    assert StoredWeights.of(offset).weight_bound >= np.abs(offset.doubled()).max() > 30_000 - 1
    ternary = GroupedWeights.from_integers(np.eye(4, 130, dtype=np.int8))
    assert StoredWeights.of(ternary).weight_bound == 2


def test_scales_of_nine_bits_come_back() -> None:
    weights = GroupedWeights(
        codes=np.zeros((1, 128), np.uint8),
        scale=np.array([[256]]),
        zero=np.array([[0]]),
        bits=2,
        group=128,
    )
    stored = StoredWeights.of(weights, grouped=True)
    assert stored.scale_bits == 9
    assert stored.unpack().scale.tolist() == [[256]]


def test_the_first_rows_of_a_vocabulary() -> None:
    one, other = (PackedLinear(grouped(bits), scale_from_int(3, -9), 0) for bits in (4, 6))
    for whole in (CodedVocabulary(one, replace(one, shift=5)), CodedVocabulary(one, other)):
        part = whole.first(2)
        assert part.tied == whole.tied == (whole.head.shift == 5)
        for mine, all_rows in ((part.embedding, whole.embedding), (part.head, whole.head)):
            assert (mine.scale, mine.shift) == (all_rows.scale, all_rows.shift)
            np.testing.assert_array_equal(mine.weights.doubled(), all_rows.weights.doubled()[:2])


@pytest.mark.parametrize("row", [0, 2, 4])
def test_bounds_are_of_all_rows(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever row has the largest weights, however many are looked at at a time."""
    monkeypatch.setattr(module, "_GROUPS", 4)
    weights = grouped(4)
    scale = np.ones_like(weights.scale)
    scale[row] = 50
    stored = StoredWeights.of(replace(weights, scale=scale))
    furthest = 50 * np.maximum(weights.zero[row], 30 - weights.zero[row])
    assert stored.weight_bound == furthest.max()
    assert stored.peak_bound == weights.group * furthest.sum()

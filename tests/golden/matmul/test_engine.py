"""Grouped weights, and what every engine's parameters have in common."""

from typing import Any

import numpy as np
import pytest

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.core.config import ENGINES
from lutra_golden.matmul.engine import EngineParams, GroupedWeights
from lutra_golden.matmul.lut import LutParams
from lutra_golden.matmul.mac import MacParams
from lutra_golden.matmul.ternary import TernaryParams


def _weights(**values: Any) -> GroupedWeights:
    base = {
        "codes": np.array([[0, 3, 1, 2]]),
        "scale": np.array([[5, 255]]),
        "zero": np.array([[3, 0]]),
        "bits": 2,
        "group": 2,
    }
    return GroupedWeights(**(base | values))


def test_doubled_weights() -> None:
    weights = _weights()
    assert weights.doubled().tolist() == [[5 * -3, 5 * 3, 255 * 2, 255 * 4]]
    assert weights.scale_bits == 8


def test_a_group_of_scale_zero_weighs_nothing() -> None:
    weights = _weights(scale=np.array([[0, 65535]]))
    assert weights.doubled().tolist() == [[0, 0, 65535 * 2, 65535 * 4]]
    assert weights.scale_bits == 16
    assert _weights(scale=np.zeros((1, 2), np.int64)).scale_bits == 0


def test_offsets_are_added_to_doubled_weights() -> None:
    weights = _weights(offset=np.array([[7, -(1 << 31) + 1]]))
    least = -(1 << 31) + 1
    assert weights.doubled().tolist() == [[7 - 15, 7 + 15, least + 510, least + 1020]]
    assert weights.peak == 8 + 22 - 2 * least - 1530
    constant = _weights(scale=np.zeros((1, 2), np.int64), offset=np.array([[4, 0]]))
    assert constant.doubled().tolist() == [[4, 4, 0, 0]]
    ones = {"scale": np.array([[1]]), "zero": np.array([[2]]), "group": 4}
    codes = np.array([[0, 1, 2, 1]])
    assert _weights(codes=codes, **ones).ternary
    assert not _weights(codes=codes, **ones, offset=np.array([[1]])).ternary


def test_trits_are_weights_of_one_magnitude_in_each_group() -> None:
    codes, twos = np.array([[0, 1, 2, 1]]), np.array([[2, 2]])
    assert _weights(bits=2, codes=codes, zero=twos).trits
    assert not _weights(bits=2, codes=codes + 1, zero=twos).trits
    assert not _weights(bits=2, codes=codes, zero=twos + 1).trits
    assert not _weights(bits=4, codes=codes, zero=twos).trits
    assert not _weights(bits=2, codes=codes, zero=twos, offset=np.array([[0, 1]])).trits
    assert GroupedWeights.from_integers(codes - 1).trits
    assert not GroupedWeights.from_integers(codes + 1).trits


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"offset": np.array([[3]])}, "offset must be [1, 2], not [1, 1]"),
        (
            {"offset": np.array([[3, 1 << 31]])},
            "offset must be in -2147483647..2147483647, not 3..2147483648",
        ),
        ({"bits": 0}, "bits must be in 1..8, not 0"),
        ({"bits": 9}, "bits must be in 1..8, not 9"),
        ({"group": 3}, "depth must be a multiple of group (3), not 4"),
        ({"group": 0}, "depth must be a multiple of group (0), not 4"),
        ({"codes": np.array([[0, 4, 1, 2]])}, "codes must be in 0..3, not 0..4"),
        ({"codes": np.array([[-1, 3, 1, 2]])}, "codes must be in 0..3, not -1..3"),
        ({"scale": np.array([[5]])}, "scale must be [1, 2], not [1, 1]"),
        ({"scale": np.array([[-1, 5]])}, "scale must be in 0..65535, not -1..5"),
        ({"scale": np.array([[5, 65536]])}, "scale must be in 0..65535, not 5..65536"),
        ({"zero": np.array([[3, 7]])}, "zero must be in 0..6, not 3..7"),
        ({"zero": np.array([[3, -1]])}, "zero must be in 0..6, not -1..3"),
        ({"zero": np.array([[3], [0]])}, "zero must be [1, 2], not [2, 1]"),
    ],
)
def test_rejects_weights(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        _weights(**values)
    assert str(error.value) == message


@pytest.mark.parametrize("peak", [0, 1, 2, 121, 127])
def test_integers_as_grouped_weights(peak: int) -> None:
    w = np.array([[-peak, 0, peak], [peak, 0, 0]])
    weights = GroupedWeights.from_integers(w)
    assert (weights.doubled() == 2 * w).all()
    assert weights.bits == max(peak, 1).bit_length() + 1


def test_integers_that_no_code_holds() -> None:
    with pytest.raises(ValueError) as error:
        GroupedWeights.from_integers(np.array([[128]]))
    assert str(error.value) == "bits must be in 1..8, not 9"


def test_some_rows() -> None:
    weights = _weights(
        codes=np.arange(12).reshape(3, 4) % 4,
        scale=np.ones((3, 2), int),
        zero=np.zeros((3, 2), int),
        offset=np.arange(6).reshape(3, 2),
    )
    for select in (slice(1, 3), np.array([2, 0])):
        assert (weights.rows(select).doubled() == weights.doubled()[select]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step_tokens": 0}, "step_tokens must be positive, not 0"),
        ({"step_tokens": 3, "pass_tokens": 6}, "step_tokens must be a power of two, not 3"),
        ({"step_tokens": 16}, "pass_tokens must be a multiple of step_tokens, not 8 of 16"),
        (
            {"step_tokens": 4, "pass_tokens": 6},
            "pass_tokens must be a multiple of step_tokens, not 6 of 4",
        ),
        ({"step_rows": 4}, "step_rows must be a power of two from 8 on, not 4"),
        ({"step_rows": 12}, "step_rows must be a power of two from 8 on, not 12"),
        (
            {"step_depth": 48},
            "depth_tile (the group) must be a multiple of step_depth, not 64 of 48",
        ),
        ({"step_depth": 0}, "step_depth must be positive, not 0"),
        ({"a_width": 4}, "a_width must be 8 or 16, not 4"),
        ({"scale_width": 7}, "scale_width must be in 8..16, not 7"),
        ({"scale_width": 17}, "scale_width must be in 8..16, not 17"),
        ({"acc_width": 40}, "acc_width must be at most sum_width (36), not 40"),
        (
            {"acc_blocks": 3},
            "acc_blocks must be a multiple of 2 (pairs of blocks, step_rows / 8), not 3",
        ),
        (
            {"step_rows": 32, "acc_blocks": 6},
            "acc_blocks must be a multiple of 4 (pairs of blocks, step_rows / 8), not 6",
        ),
        ({"weight_buffer_words": 1}, "weight_buffer_words must be a power of two from 2 on, not 1"),
        ({"max_planes": -1}, "max_planes must be positive, not -1"),
    ],
)
@pytest.mark.parametrize("cls", [LutParams, MacParams])
def test_rejects_values(cls: type[EngineParams], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        cls(**values)
    assert str(error.value) == message


G32 = ActivationGroups(size=32)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"offset_width": 15}, ValueError, "offset_width must be 0 or in 16..33, not 15"),
        ({"offset_width": 34}, ValueError, "offset_width must be 0 or in 16..33, not 34"),
        ({"offset_width": True}, TypeError, "offset_width must be an integer, not True"),
        ({"offset_width": 18.0}, TypeError, "offset_width must be an integer, not 18.0"),
        ({"a_groups": 32}, TypeError, "a_groups must be ActivationGroups or None, not 32"),
        (
            {"a_groups": G32, "a_width": 16},
            ValueError,
            "a_width must be 8 with a_groups, not 16",
        ),
        (
            {"a_groups": G32, "depth_tile": 64},
            ValueError,
            "size of a_groups must be a multiple of depth_tile (64), not 32",
        ),
        (
            {"a_groups": G32, "acc_width": 30},
            ValueError,
            "sum_width must be at least acc_width and 7 bits of a_groups, not 36",
        ),
    ],
)
def test_rejects_groups(values: dict[str, Any], kind: type[Exception], message: str) -> None:
    base: dict[str, Any] = {"depth_tile": 32}
    with pytest.raises(kind) as error:
        MacParams(**(base | values))
    assert str(error.value) == message


@pytest.mark.parametrize("values", [{"a_groups": G32}, {"offset_width": 18}])
def test_the_ternary_engine_has_no_groups(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as error:
        TernaryParams(**values)
    assert str(error.value) == (
        "a_groups and offset_width of the ternary engine, which has no groups, must be None and 0"
    )


def test_groups_of_activations_move_the_shift() -> None:
    for shift_max, scale_width, highest in ((7, 8, 22), (3, 8, 18), (7, 9, 38)):
        groups = ActivationGroups(size=32, shift_max=shift_max)
        params = MacParams(depth_tile=32, a_groups=groups, scale_width=scale_width, sum_width=44)
        assert (params.shift_min, params.shift_max) == (shift_max, highest)
    plain = MacParams()
    assert (plain.shift_min, plain.a_shift_max) == (0, 0)


def test_offsets_take_the_place_of_zero_points() -> None:
    params = LutParams(step_rows=16, offset_width=20)
    assert params.side_bits == 16 * 28


def test_weights_times_a_power_of_two() -> None:
    weights = _weights(offset=np.array([[7, -9]]))
    assert (weights.scaled(5).doubled() == 32 * weights.doubled()).all()
    assert (_weights().scaled(2).doubled() == 4 * _weights().doubled()).all()


@pytest.mark.parametrize("cls", ENGINES.values())
@pytest.mark.parametrize("value", [8.0, True, "8", None])
def test_rejects_kinds(cls: type[EngineParams], value: object) -> None:
    with pytest.raises(TypeError) as error:
        cls(step_rows=value)  # type: ignore[arg-type]
    assert str(error.value) == f"step_rows must be an integer, not {value!r}"


def test_wider_scales_take_more_of_a_word_and_a_wider_shift() -> None:
    for scale_width, side, shift in ((8, 18, 15), (9, 19, 31), (16, 26, 31)):
        params = LutParams(step_rows=16, scale_width=scale_width)
        assert params.side_bits == 16 * side
        assert params.word_bits == params.digit_bits + params.side_bits
        assert params.shift_max == shift
    ternary = ENGINES["ternary"]()
    assert (ternary.side_bits, ternary.shift_max) == (0, 0)


def test_words_of_a_command() -> None:
    params = LutParams(step_rows=16, step_depth=16)
    assert params.n_words(3, 8, 2) == 3 * 4 * 2 * 4
    with pytest.raises(ValueError) as error:
        params.n_words(3, 7, 2)
    assert str(error.value) == "row_blocks must be a multiple of 2, not 7"


@pytest.mark.parametrize("cls", ENGINES.values())
def test_every_engine_takes_ternary_and_head_weights(cls: type[EngineParams]) -> None:
    """The product is that of the integers, or twice it."""
    params, rng = cls(acc_blocks=8), np.random.default_rng(1)
    a = rng.integers(-128, 128, (2, 2 * params.depth_tile))
    for peak in (1, 121):
        w = rng.integers(-peak, peak + 1, (11, 2 * params.depth_tile))
        weights = GroupedWeights.from_integers(w)
        planes = params.planes(weights)
        words = params.pack(weights, planes)
        assert words.shape == (params.n_words(2, 2, planes), -(-params.word_bits // 8))
        expected = np.pad((2 if params.grouped else 1) * a @ w.T, ((0, 0), (0, 5)))
        assert (params.matmul(a, words, 2, planes) == expected).all()


@pytest.mark.parametrize("row", [0, 8190, 8191, 8192, 8197])
def test_peak_sees_every_row(row: int) -> None:
    w = np.zeros((8198, 128), np.int8)  # two parts, the first of 8,192 rows
    w[row, :4] = -1, 1, 1, 1
    assert GroupedWeights.from_integers(w).peak == 8


@pytest.mark.parametrize(("zero", "group", "ternary"), [(2, 4, True), (3, 4, False), (2, 2, False)])
def test_ternary_weights_are_whole_and_without_groups(zero: int, group: int, ternary: bool) -> None:
    side = (2, 4 // group)
    weights = GroupedWeights(
        codes=np.ones((2, 4), np.uint8),
        scale=np.ones(side, np.int64),
        zero=np.full(side, zero),
        bits=2,
        group=group,
    )
    assert weights.ternary is ternary

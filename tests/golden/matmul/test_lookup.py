"""The lookup matmul model against the integer product, its codes, and the walk through a table."""

from typing import Any

import numpy as np
import pytest

from lutra_golden.core.fabric import Fabric
from lutra_golden.matmul.engine import LANES, GroupedWeights
from lutra_golden.matmul.lookup import (
    BITS,
    LookupParams,
    entries,
    is_binary,
    n_planes,
    walk,
)

SMALL = LookupParams()


def _weights(w: np.ndarray) -> GroupedWeights:
    one = np.ones((len(w), 1), np.int64)
    return GroupedWeights(codes=w + 128, scale=one, zero=256 * one, bits=8, group=w.shape[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"step_depth": 36, "depth_tile": 36},
            (
                "step_depth of the lookup engine must be 24, 48 or 96 (three activations of 8, 16 "
                "or 32 tables), not 36"
            ),
        ),
        ({"depth_tile": 48}, "depth_tile of the lookup engine must be 24, not 48"),
        ({"a_width": 16}, "a_width of the lookup engine must be 8, not 16"),
        ({"w_width": 2}, "w_width of the lookup engine must be 1, not 2"),
        ({"scale_width": 9}, "scale_width of the lookup engine must be 8, not 9"),
        ({"sum_width": 28}, "sum_width of the lookup engine must be 24, not 28"),
        ({"max_planes": 9}, "max_planes must be at most 8, not 9"),
        ({"max_planes": 0}, "max_planes must be positive, not 0"),
        (
            {"step_rows": 8},
            "step_rows of the lookup engine must be a multiple of 16 (pairs of blocks), not 8",
        ),
        ({"fabric": "clay"}, "fabric must be generic or xcup, not 'clay'"),
        (
            {"offset_width": 18},
            (
                "a_groups and offset_width of the lookup engine, which has no groups, must be None "
                "and 0"
            ),
        ),
    ],
)
def test_rejects_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        LookupParams(**values)
    assert str(error.value) == message


def test_sizes() -> None:
    assert (SMALL.n_tables, SMALL.entry_width, SMALL.entry_bias) == (8, 11, 1024)
    assert (SMALL.digit_bits, SMALL.word_bits, SMALL.macs_per_step) == (640, 640, 8 * 16 * 24)
    assert (SMALL.tile_depth(1), SMALL.tile_depth(BITS | 4)) == (24, 40)
    # the last depth tile of either digits may end behind the activations
    assert SMALL.depth_max == 800
    assert SMALL.act_tiles * SMALL.depth_tile == 768
    assert SMALL.n_words(5, 6, BITS | 4) == 4 * SMALL.n_words(5, 6, 1) == 4 * 5 * 3
    assert SMALL.pass_words(6, BITS | 4) == SMALL.pass_words(6, 1) == 3
    assert not SMALL.replays
    assert LookupParams(fabric=Fabric.XCUP).word_bits == 640


def test_planes_of_a_command() -> None:
    assert [is_binary(planes) for planes in (1, BITS | 1)] == [False, True]
    assert [n_planes(planes) for planes in (1, BITS | 1, BITS | 8)] == [1, 1, 8]


@pytest.mark.parametrize(
    ("low", "high", "planes"),
    [
        (-1, 1, 1),
        (0, 0, 1),
        (-2, 1, BITS | 2),
        (-2, 0, BITS | 2),
        (0, 2, BITS | 3),
        (-8, 7, BITS | 4),
        (-8, 8, BITS | 5),
        (-128, 127, BITS | 8),
        (0, 127, BITS | 8),
    ],
)
def test_as_few_planes_as_there_can_be(low: int, high: int, planes: int) -> None:
    w = np.array([[low, high, 0, 0]])
    assert SMALL.planes(_weights(w)) == planes


def test_weights_that_it_does_not_take() -> None:
    one = np.ones((1, 1), np.int64)
    halves = GroupedWeights(codes=np.zeros((1, 4), int), scale=one, zero=one, bits=1, group=4)
    with pytest.raises(ValueError) as error:
        SMALL.planes(halves)
    assert str(error.value) == "weights must be integers for the lookup engine, not half steps"
    few = LookupParams(max_planes=4)
    with pytest.raises(ValueError) as error:
        few.planes(_weights(np.array([[-9, 3]])))
    assert str(error.value) == (
        "weights must be integers of 4 bits for the lookup engine, not -9..3: it has no group "
        "scales"
    )
    with pytest.raises(ValueError) as error:
        SMALL.pack(_weights(np.array([[2, 0]])), 1)
    assert str(error.value) == "weights must be in -1..1 for these digits, not 0..2"
    with pytest.raises(ValueError) as error:
        SMALL.pack(_weights(np.array([[-9, 3]])), BITS | 4)
    assert str(error.value) == "weights must be in -8..7 for these digits, not -9..3"


@pytest.mark.parametrize("planes", [1, BITS | 3])
def test_entries_are_all_combinations(planes: int) -> None:
    found = entries(planes)
    digits = (0, 1) if is_binary(planes) else (-1, 0, 1)
    assert (
        len({tuple(row) for row in found.tolist()}) == len(found) == len(digits) ** found.shape[1]
    )
    assert set(found.ravel().tolist()) == set(digits)
    assert not found[0].any()
    # digit d counts base ** d
    assert found[1].tolist() == [1, *[0] * (found.shape[1] - 1)]


@pytest.mark.parametrize(("planes", "length"), [(1, 30), (BITS | 2, 32)])
def test_a_walk_writes_every_entry(planes: int, length: int) -> None:
    signs, a = entries(planes), np.array([3, -50, 127, -128, 90])[: entries(planes).shape[1]]
    steps = walk(planes)
    assert len(steps) == length <= SMALL.prepare_cycles
    assert {entry for entry, _, _ in steps} == set(range(len(signs)))
    value = 0
    for entry, activation, sign in steps:
        value += sign * a[activation]
        assert value == signs[entry] @ a
    assert all(abs(sign) == 1 for _, _, sign in steps[1:])


@pytest.mark.parametrize(
    ("low", "high"), [(-1, 1), (-1, 0), (-2, 1), (-8, 7), (-128, 127)], ids=str
)
@pytest.mark.parametrize(
    "params", [SMALL, LookupParams(step_rows=32, step_depth=48, depth_tile=48)]
)
def test_product(params: LookupParams, low: int, high: int) -> None:
    rng = np.random.default_rng(1)
    w = rng.choice([low, high, 0, int(rng.integers(low, high + 1))], (35, 100))
    w[:, :2] = low, high
    a = rng.integers(-128, 128, (3, 100))
    a[0] = -128
    weights = _weights(w)
    planes = params.planes(weights)
    words = params.pack(weights, planes)
    row_blocks = -(-35 // params.step_rows) * params.block_rows
    tiles = -(-100 // params.tile_depth(planes))
    assert words.shape == (params.n_words(tiles, row_blocks, planes), params.word_bits // 8)
    decoded = params.decode(words, tiles, row_blocks, planes)
    assert decoded.shape == (row_blocks * LANES, tiles * params.tile_depth(planes))
    assert (decoded[:35, :100] == w).all()
    assert not decoded[35:].any() and not decoded[:, 100:].any()
    found = params.matmul(a, words, row_blocks, planes)
    assert (found[:, :35] == a @ w.T).all() and not found[:, 35:].any()


def test_order_of_a_word() -> None:
    """Plane, depth tile, block; in a word row, table; in a code the digits of a table."""
    rng = np.random.default_rng(2)
    w = rng.integers(-4, 4, (48, 80))
    words = SMALL.pack(_weights(w), BITS | 3)
    plane, tile, block, row, table = 1, 1, 2, 5, 3
    bits = np.unpackbits(words[(plane * 2 + tile) * 3 + block], bitorder="little")
    at = 5 * (row * 8 + table)
    # the second plane is bit 1 of a weight; weights of a table lie n_tables apart
    found = [w[block * 16 + row, tile * 40 + j * 8 + table] >> 1 & 1 for j in range(5)]
    assert bits[at : at + 5].tolist() == found
    trits = np.sign(w)
    (word,) = SMALL.pack(_weights(trits[:16, :24]), 1)
    bits = np.unpackbits(word, bitorder="little")[at : at + 5]
    digits = [int(trits[row, j * 8 + table]) % 3 for j in range(3)]
    assert bits @ (1 << np.arange(5)) == digits[0] + 3 * digits[1] + 9 * digits[2]


def test_no_code_of_ternary_digits() -> None:
    words = np.full((1, 80), 255, np.uint8)
    with pytest.raises(ValueError) as error:
        SMALL.decode(words, 1, 2, 1)
    assert str(error.value) == "codes must be at most 26, not 31"


@pytest.mark.parametrize("planes", [1, BITS | 4, BITS | 8])
def test_accumulators_hold_the_deepest_sum(planes: int) -> None:
    params = LookupParams(acc_width=18, sum_width=18)
    depth = params.max_depth(planes)
    low, high = params.integers(planes)
    assert (low, high) == {1: (-1, 1), BITS | 4: (-8, 7), BITS | 8: (-128, 127)}[planes]
    for k, fits in ((depth, True), (depth + 1, False)):
        total = k * low * -128
        assert (total < 1 << 17) == fits

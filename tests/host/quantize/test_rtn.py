"""Quantisation in groups: exact on its own grids, never worse than without clipping."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from lutra.checkpoints.weights import Integers
from lutra.quantize import DEFAULT_GROUP, GROUPS
from lutra.quantize.rtn import choose_grid, round_to_nearest
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.format import W_BITS

Float = NDArray[np.float64]


def random_weights(seed: int, n: int = 24, k: int = 256) -> Float:
    """Heavy tails, and groups of different scales and centres."""
    rng = np.random.default_rng(seed)
    w = rng.standard_t(4, (n, k)) * np.exp(rng.normal(0, 0.5, (n, 1)))
    return w + np.repeat(rng.normal(0, 0.3, (n, k // 64)), 64, axis=1)


def nearest(w: Float, bits: int, group: int) -> Float:
    """Plain round-to-nearest: symmetric over the whole range, group scales in eight bits."""
    levels = 2**bits - 1
    groups = w.reshape(len(w), -1, group)
    step = 2 * np.abs(groups).max(axis=2) / levels
    unit = step.max() / 255
    step = (np.maximum(np.rint(step / unit), 1) * unit)[..., None]
    codes = np.clip(np.rint(groups / step + levels / 2), 0, levels)
    return ((codes - levels / 2) * step).reshape(w.shape)


def exact(found: Integers) -> Float:
    """The matrix in float64."""
    return (found.weights.doubled() * (found.scale / 2)).astype(np.float64)


def squared(x: Float) -> float:
    return float((x * x).sum())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", W_BITS)
def test_the_error_is_not_above_plain_rounding(bits: int, group: int) -> None:
    for seed in range(3):
        w = random_weights(seed)
        found = round_to_nearest(w, bits, group)
        error, plain = squared(exact(found) - w), squared(nearest(w, bits, group) - w)
        assert error <= plain * (1 + 1e-9)
        if bits <= 4:
            assert error < 0.9 * plain


@pytest.mark.parametrize("group", GROUPS)
def test_ternary_weights_in_groups(group: int) -> None:
    """-1, 0 and 1 times a scale: less error than with the mean of magnitudes, as BitNet has it."""
    for seed in range(3):
        w = random_weights(seed)
        found = round_to_nearest(w, 2, group, ternary=True)
        weights = found.weights
        assert weights.trits and not weights.ternary
        assert (weights.bits, weights.group, weights.scale_bits) == (2, group, 8)
        groups = w.reshape(len(w), -1, group)
        mean = np.abs(groups).mean(axis=2, keepdims=True)
        plain = np.clip(np.rint(groups / mean), -1, 1) * mean
        error = squared(exact(found) - w)
        assert error < squared((plain - groups).reshape(w.shape))
        step = (weights.scale * found.scale).repeat(group, axis=1)
        np.testing.assert_array_equal(
            weights.codes.astype(int) - 1, np.clip(np.rint(w / step), -1, 1)
        )


def test_ternary_weights_of_zeros_and_of_large_numbers() -> None:
    zeros = round_to_nearest(np.zeros((3, 64)), 2, 32, ternary=True).weights
    assert zeros.trits and not zeros.doubled().any()
    w = random_weights(2)
    large, plain = (round_to_nearest(each, 2, 64, ternary=True) for each in (w * 2.0**60, w))
    np.testing.assert_array_equal(large.weights.doubled(), plain.weights.doubled())
    assert large.scale == plain.scale * 2.0**60
    with pytest.raises(ValueError, match=r"^bits must be 2, not 4$"):
        round_to_nearest(w, 4, 64, ternary=True)


@pytest.mark.parametrize("bits", W_BITS)
def test_every_code_is_the_nearest_on_its_groups_grid(bits: int) -> None:
    w = random_weights(5)
    found = round_to_nearest(w, bits, 64)
    weights = found.weights
    scale, zero = (x.repeat(64, axis=1) for x in (weights.scale, weights.zero))
    error = np.abs(exact(found) - w)
    for code in range(2**bits):
        other = found.scale / 2 * scale * (2 * code - zero)
        assert (error <= np.abs(other - w) + 1e-12).all()


@pytest.mark.parametrize("bits", W_BITS)
def test_what_comes_out_fits_the_engines(bits: int) -> None:
    weights = round_to_nearest(random_weights(1), bits, 128).weights
    assert (weights.bits, weights.group) == (bits, 128)
    assert weights.codes.shape == (24, 256)
    assert weights.scale.shape == weights.zero.shape == (24, 2)
    # GroupedWeights itself refuses what does not fit; the range of the scales is used
    assert weights.scale.max() > 180


@pytest.mark.parametrize("bits", W_BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_on_a_grid_are_kept(bits: int, symmetric: bool) -> None:
    """Grids that use both of their ends, with a largest scale of 255."""
    rng = np.random.default_rng(3)
    levels = 2**bits - 1
    codes = rng.integers(0, levels + 1, (8, 128))
    codes[:, ::64], codes[:, 1::64] = 0, levels
    scale = rng.integers(1, 256, (8, 2))
    scale[0, 0] = 255
    zero = np.full((8, 2), levels) if symmetric else rng.integers(0, 2 * levels + 1, (8, 2))
    source = GroupedWeights(codes=codes, scale=scale, zero=zero, bits=bits, group=64)
    w = source.doubled() * 0.37
    np.testing.assert_allclose(exact(round_to_nearest(w, bits, 64)), w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 3])
def test_an_odd_number_of_levels_is_tried(bits: int) -> None:
    """{-s, 0, s} and {-3 s, ..., 3 s}: what is left is the rounding of scales to eight bits."""
    rng, most = np.random.default_rng(8), (1 << (bits - 1)) - 1
    codes = rng.integers(-most, most + 1, (16, 256))
    codes[:, ::64] = most  # its sign is that of the largest weight of a group
    w = codes * rng.uniform(0.5, 1, (16, 4)).repeat(64, axis=1)
    found = round_to_nearest(w * rng.choice([-1, 1], (16, 1)), bits, 64)
    assert squared(np.abs(exact(found)) - np.abs(w)) < 1e-5 * squared(w)
    assert squared(nearest(w, bits, 64) - w) > 1e-3 * squared(w)


@pytest.mark.parametrize("bits", W_BITS)
def test_rows_of_zeros_stay_zero(bits: int) -> None:
    w = random_weights(2, 4, 128)
    w[1], w[2, :64] = 0, 0
    found = exact(round_to_nearest(w, bits, 64))
    assert not found[1].any()
    assert not found[2, :64].any()
    empty = round_to_nearest(np.zeros((3, 64)), bits, 64)
    assert not exact(empty).any()


def test_groups_of_one_sign_lose_no_code() -> None:
    w = np.random.default_rng(1).uniform(0.5, 1.0, (8, 64))
    found = round_to_nearest(w, 4, 64)
    assert np.unique(found.weights.codes).size >= 8
    assert np.abs(exact(found) - w).max() < 0.045


def test_binary_weights_are_plus_and_minus_the_mean() -> None:
    """The best symmetric binary grid is known: the mean magnitude (XNOR-Net, section 3.1)."""
    w = np.random.default_rng(4).normal(0, 1, (16, 128))
    found = round_to_nearest(w, 1, 128)
    best = squared(w - np.abs(w).mean(axis=1, keepdims=True) * np.sign(w))
    assert squared(w - exact(found)) < 1.01 * best


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_is_important_is_kept_better(bits: int) -> None:
    """By its own measure a weighted search is not above a plain one, and it finds less."""
    w = random_weights(6)
    importance = np.random.default_rng(6).lognormal(0, 2, w.shape[1]).astype(np.float32)
    plain, weighted = (round_to_nearest(w, bits, 64, x) for x in (None, importance))

    def cost(found: Integers) -> float:
        return float(((exact(found) - w) ** 2 @ importance).sum())

    assert cost(weighted) < 0.97 * cost(plain)
    even = round_to_nearest(w, bits, 64, np.full(w.shape[1], 7.0, np.float32))
    np.testing.assert_array_equal(even.weights.codes, plain.weights.codes)


def test_chunks_of_rows_do_not_show() -> None:
    """A matrix of many chunks: the rows' grids are chosen one by one, under one unit."""
    w = random_weights(8, 600, 256)
    grid = choose_grid(w, 3, 64)
    found = grid.integers(grid.codes(w))
    for first in range(0, 600, 150):
        rows = slice(first, first + 150)
        alone = exact(round_to_nearest(w[rows], 3, 64))
        assert squared(exact(found)[rows] - w[rows]) < 1.02 * squared(alone - w[rows])


@pytest.mark.parametrize("shift", [-110, -40, 40, 110])
def test_weights_whose_squares_leave_float32(shift: int) -> None:
    w = np.random.default_rng(3).standard_normal((6, 64)).astype(np.float32)
    expected = choose_grid(w, 4, 32)
    found = choose_grid(np.ldexp(w, shift), 4, 32)
    np.testing.assert_array_equal(found.scale, expected.scale)
    np.testing.assert_array_equal(found.zero, expected.zero)
    assert found.unit == expected.unit * 2.0**shift


def test_quantisation_is_deterministic() -> None:
    a, b = (round_to_nearest(random_weights(9), 3, 64) for _ in range(2))
    assert a.scale == b.scale
    for name in ("codes", "scale", "zero"):
        np.testing.assert_array_equal(getattr(a.weights, name), getattr(b.weights, name))


def test_the_default_group_is_one_of_those_offered() -> None:
    assert DEFAULT_GROUP in GROUPS


def test_bits_that_can_not_be() -> None:
    message = "^" + re.escape("bits must be one of (1, 2, 3, 4, 6, 8), not 5") + "$"
    with pytest.raises(ValueError, match=message):
        round_to_nearest(np.ones((8, 64)), 5, 64)


@pytest.mark.parametrize("group", [0, 48, 128])
def test_groups_that_do_not_divide_are_refused(group: int) -> None:
    message = f"^groups of {group} do not divide a depth of 64: choose another group$"
    with pytest.raises(LutraError, match=message):
        round_to_nearest(np.ones((8, 64)), 4, group)

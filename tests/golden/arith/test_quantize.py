"""Quantisation to int4, int8 and int16 against float64."""

import numpy as np
import pytest

from lutra_golden.arith.fixed import Int
from lutra_golden.arith.quantize import (
    SCALE_127,
    SCALE_INV_127,
    ActivationGroups,
    group_exponents,
    q_max_of,
    quantize,
    quantize_factor,
    quantize_groups,
    quantize_step,
)
from lutra_golden.arith.scale import Scale, scale_to_float


def test_constants() -> None:
    assert scale_to_float(SCALE_127) == 127
    assert scale_to_float(SCALE_INV_127) == pytest.approx(1 / 127, rel=2**-16)


def test_largest_integers() -> None:
    assert [q_max_of(width) for width in (4, 8, 16)] == [7, 127, 32767]
    with pytest.raises(ValueError) as error:
        q_max_of(12)
    assert str(error.value) == "width must be 4, 8 or 16, not 12"


@pytest.mark.parametrize("q_max", [7, 127, 32767])
@pytest.mark.parametrize("bits", [1, 8, 31, 46])
def test_against_float(bits: int, q_max: int) -> None:
    rng = np.random.default_rng(bits)
    y_max = rng.integers(1, 1 << bits, 500, endpoint=True)
    y = rng.integers(-y_max[:, None], y_max[:, None] + 1, (500, 40))
    y[:, 0], y[:, 1] = y_max, -y_max
    factor = quantize_factor(y_max, q_max)
    q = quantize(y, Scale(factor.m[:, None], factor.e[:, None]), q_max)
    # the factor is within 6e-5: an int8 is off only where it lies that close to a tie
    error = q_max * 6e-5
    assert (q_max - q[:, 0] <= error + 0.5).all()
    assert (q_max + q[:, 1] <= error + 0.5).all()
    exact = y / y_max[:, None] * q_max
    assert np.abs(q - exact).max() <= 0.5 + error
    assert (-factor.e >= 0).all() and (-factor.e <= 60).all()
    step = scale_to_float(quantize_step(y_max, q_max))
    np.testing.assert_allclose(step, y_max / q_max, rtol=7e-5)


@pytest.mark.parametrize("q_max", [7, 127, 32767])
def test_how_far_the_clamp_is_passed(q_max: int) -> None:
    """Justifies the width of the quantiser's register by the extremes of every mantissa."""
    m = np.arange(1 << 15, 1 << 16)
    half = 1 << 29
    for y_max in ((m << 30) - half // 2, (m << 30) + half - 1):
        factor = quantize_factor(y_max, q_max)
        product = y_max * factor.m * 2.0**factor.e
        assert product.max() < {7: 7.1, 127: 127.1, 32767: 32768.1}[q_max]
        assert product.min() > q_max * (1 - 6e-5)


def test_zero() -> None:
    factor = quantize_factor(0)
    assert (factor.m, factor.e) == (0, 0)
    assert quantize([0, 0], factor).tolist() == [0, 0]


def test_the_most_negative_code_is_never_given() -> None:
    """At 16 bits the factor's error alone reaches it, so only the clamp keeps it out."""
    y_max = np.arange(1 << 15, 1 << 16)
    factor = quantize_factor(y_max, 32767)
    unclamped = np.rint(y_max * scale_to_float(factor))
    assert unclamped.max() == 32768
    assert quantize(-y_max, factor, 32767).min() == -32767


# -- groups


def test_groups_do_not_reach_into_the_next_run() -> None:
    groups = ActivationGroups(size=32)
    assert groups.starts(96, 96).tolist() == [0, 32, 64]
    assert groups.starts(80, 80).tolist() == [0, 32, 64]
    assert groups.starts(32, 16).tolist() == [0, 16]
    assert groups.starts(160, 80).tolist() == [0, 32, 64, 80, 112, 144]
    assert ActivationGroups(size=128).starts(64, 64).tolist() == [0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 16}, r"size must be one of (32, 64, 128), not 16"),
        ({"shift_max": 4}, r"shift_max must be one of (1, 3, 7), not 4"),
    ],
)
def test_rejects_groups(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        ActivationGroups(**fields)
    assert str(error.value) == message


@pytest.mark.parametrize("shift_max", [1, 3, 7])
def test_the_largest_activation_of_a_group(shift_max: int) -> None:
    groups = ActivationGroups(shift_max=shift_max)
    assert groups.peak == 127 * 2**shift_max
    y = np.zeros((1, 64), np.int64)
    y[0, :3] = 1000, -1000, 5
    q = quantize_groups(y, np.array([1000]), groups, 64)
    assert q[0, :2].tolist() == [groups.peak, -groups.peak]


def test_exponents_are_the_largest_that_fit() -> None:
    peaks = np.array([[0, 1, 1000, 501, 500, 499, 251, 250, 8, 7]])
    e = group_exponents(peaks, np.array([1000]), 7)
    assert e.tolist() == [[7, 7, 0, 0, 1, 1, 1, 2, 6, 7]]
    assert group_exponents(peaks, np.array([1000]), 3).tolist() == [[3, 3, 0, 0, 1, 1, 1, 2, 3, 3]]
    assert group_exponents(np.zeros((1, 2), np.int64), np.array([0]), 7).tolist() == [[7, 7]]


def by_definition(row: list[int], groups: ActivationGroups, run: int) -> list[int]:
    """The same in Python's integers, one element after another."""
    y_max = max(map(abs, row))
    factor, out = quantize_factor(np.array(y_max)), list[int]()
    m, lower = int(factor.m), -int(factor.e)
    for first in range(0, len(row), run):
        for at in range(first, first + run, groups.size):
            group = row[at : min(at + groups.size, first + run)]
            e = 0
            while e < groups.shift_max and max(map(abs, group)) << (e + 1) <= y_max:
                e += 1
            for y in group:
                q = ((y * m >> (lower - e - 1)) + 1) >> 1 if m else 0
                out.append(max(-127, min(127, q)) << (groups.shift_max - e))
    return out


@pytest.mark.parametrize("bits", [1, 5, 12, 31])
@pytest.mark.parametrize(("n", "run"), [(64, 64), (100, 100), (240, 80), (64, 16)])
def test_groups_against_the_definition(bits: int, n: int, run: int) -> None:
    rng = np.random.default_rng(bits * n)
    for size, shift_max in ((32, 7), (32, 3), (64, 7), (128, 1)):
        groups = ActivationGroups(size=size, shift_max=shift_max)
        spread = rng.integers(0, bits + 1, (6, -(-n // 16))).repeat(16, axis=1)[:, :n]
        y: Int = rng.integers(-(1 << bits) + 1, 1 << bits, (6, n)) >> spread
        y[0] = 0
        q = quantize_groups(y, np.abs(y).max(axis=1), groups, run)
        assert q.tolist() == [by_definition(row, groups, run) for row in y.tolist()]


def test_groups_keep_small_activations() -> None:
    """A group 128 times below the largest has all its bits, one scale per token leaves it none."""
    rng = np.random.default_rng(4)
    y = rng.integers(-1000, 1001, (5, 64))
    y[:, 32:] *= 1000
    y_max = np.abs(y).max(axis=1)
    factor, step = quantize_factor(y_max), quantize_step(y_max)
    one = quantize(y, Scale(factor.m[:, None], factor.e[:, None])) * scale_to_float(step)[:, None]
    q = quantize_groups(y, y_max, ActivationGroups(), 64) * scale_to_float(step)[:, None] / 128
    small = np.s_[:, :32]
    assert np.abs(one - y)[small].max() > 900
    assert np.abs(q - y)[small].max() < 0.51 * y_max.max() / 127 / 128 + 0.1

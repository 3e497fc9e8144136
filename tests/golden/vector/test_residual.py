"""Dequantisation and logits against float64 and exact fractions."""

from fractions import Fraction
from math import floor

import numpy as np

from lutra_golden.arith.fixed import Saturation
from lutra_golden.arith.scale import Scale, scale_from_float, scale_to_float
from lutra_golden.vector.residual import (
    LOGIT_SHIFT,
    embedded,
    logits,
    residual_add,
    residual_sum,
)


def test_residual_add_follows_float() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(-(1 << 24), 1 << 24, (40, 64))
    acc = rng.integers(-(1 << 23), 1 << 23, (40, 64))
    s = Scale(rng.integers(1 << 15, 1 << 16, 40), rng.integers(-40, -25, 40))
    w_scale, frac = scale_from_float(0.37), 8
    exact = x + acc * scale_to_float(s)[:, None] * 0.37 * 2**frac
    error = np.abs(residual_add(x, acc, s, w_scale, frac) - exact)
    # half a unit, and half a last place of each of two 16-bit mantissas
    assert (error <= 0.5 + 2**-15 * np.abs(exact - x)).all()


def test_residual_add_rounds_half_up() -> None:
    # the factor is one half exactly
    acc = np.array([[-3, -2, -1, 0, 1, 2, 3]])
    half, one = Scale(np.array([1 << 15]), np.array([-16])), scale_from_float(1.0)
    total = residual_add(np.full((1, 7), 10), acc, half, one, 0)
    expected = [10 + floor(Fraction(a, 2) + Fraction(1, 2)) for a in acc[0].tolist()]
    assert total[0].tolist() == expected


def test_residual_add_saturates() -> None:
    ends = np.array([[(1 << 31) - 1, (1 << 31) - 1, -(1 << 31), -(1 << 31)]])
    acc = np.array([[1, -1, -1, 1]])
    one = Scale(np.array([1 << 15]), np.array([-15]))
    total = residual_add(ends, acc, one, scale_from_float(1.0), 0)
    assert total[0].tolist() == [(1 << 31) - 1, (1 << 31) - 2, -(1 << 31), 1 - (1 << 31)]


def test_residual_add_limits_the_shift() -> None:
    x, acc = np.array([[5, 5]]), np.array([[(1 << 23) - 1, -(1 << 23)]])
    tiny = Scale(np.array([0xFFFF]), np.array([-200]))
    assert residual_add(x, acc, tiny, scale_from_float(1.0), 8)[0].tolist() == [5, 5]
    nothing = Scale(np.array([0]), np.array([0]))
    assert residual_add(x, acc, nothing, scale_from_float(1.0), 8)[0].tolist() == [5, 5]


def test_coded_rows_are_rounded_half_up() -> None:
    """A step of the stream is half a step of a doubled weight, and three quarters."""
    doubled = np.array([[-3, -2, -1, 0, 1, 2, 3]])
    half = scale_from_float(0.5)
    expected = [floor(Fraction(d, 2) + Fraction(1, 2)) for d in doubled[0].tolist()]
    assert embedded(doubled, half, 0)[0].tolist() == expected
    three = scale_from_float(0.75 / 16)
    expected = [floor(Fraction(3 * d, 4) + Fraction(1, 2)) for d in doubled[0].tolist()]
    assert embedded(doubled, three, 4)[0].tolist() == expected


def test_logits() -> None:
    rng = np.random.default_rng(2)
    acc, row_scale = rng.integers(-(1 << 23), 1 << 23, (9, 50)), rng.integers(0, 1 << 15, 50)
    acc[0, :3], row_scale[:3] = (1, -1, -(1 << 23)), (64, 64, (1 << 15) - 1)
    values = logits(acc, row_scale)
    assert (np.abs(values - acc * row_scale / 2.0**LOGIT_SHIFT) <= 0.5).all()
    assert values[0, :2].tolist() == [1, 0]  # halves go up
    assert np.abs(values).max() < 1 << 31


def test_logits_saturate() -> None:
    """28 bits and 16 make more than int32 holds."""
    limit = 1 << 27
    acc = np.array([[limit - 1, -limit, limit - 1, -limit, 1 << 23, -(1 << 23)]])
    row_scale = np.array([32767, 32767, -32768, -32768, 32767, -32768])
    high = (1 << 31) - 1
    expected = [high, -high - 1, -high - 1, high, 32767 << 16, high]
    assert logits(acc, row_scale)[0].tolist() == expected


def test_the_flag_of_saturation() -> None:
    """Set by what leaves 32 bits, and by a shift to the left, which is limited to none."""
    one = scale_from_float(1.0)
    for x, acc, e, seen in (
        ((1 << 31) - 1, 0, 0, False),
        ((1 << 31) - 2, 1, 0, False),
        ((1 << 31) - 1, 1, 0, True),
        (0, 1, 15, False),
        (0, 1, 16, True),
        (0, 0, 99, False),
    ):
        flag, s = Saturation(), Scale(np.array([1 << 15]), np.array([e - 15]))
        residual_sum(np.array([[x]]), np.array([[acc]]), s, one, 0, flag)
        assert flag.seen == seen, (x, acc, e)

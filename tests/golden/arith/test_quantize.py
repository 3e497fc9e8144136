"""Quantisation to int4, int8 and int16 against float64."""

import numpy as np
import pytest

from lutra_golden.arith.quantize import (
    SCALE_127,
    SCALE_INV_127,
    q_max_of,
    quantize,
    quantize_factor,
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

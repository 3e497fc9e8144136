"""Quantisation to int8 against float64."""

import numpy as np
import pytest

from lutra.sim.golden.arith.quantize import (
    SCALE_127,
    SCALE_INV_127,
    quantize_factor,
    quantize_int8,
)
from lutra.sim.golden.arith.scale import Scale, scale_to_float


def test_constants() -> None:
    assert scale_to_float(SCALE_127) == 127
    assert scale_to_float(SCALE_INV_127) == pytest.approx(1 / 127, rel=2**-16)


@pytest.mark.parametrize("bits", [1, 8, 31, 46])
def test_against_float(bits: int) -> None:
    rng = np.random.default_rng(bits)
    y_max = rng.integers(1, 1 << bits, 500, endpoint=True)
    y = rng.integers(-y_max[:, None], y_max[:, None] + 1, (500, 40))
    y[:, 0], y[:, 1] = y_max, -y_max
    factor = quantize_factor(y_max)
    q = quantize_int8(y, Scale(factor.m[:, None], factor.e[:, None]))
    assert q[:, 0].tolist() == [127] * 500
    assert q[:, 1].tolist() == [-127] * 500
    # the factor is within 6e-5: a value is off only where it lies that close to a tie
    exact = y / y_max[:, None] * 127
    assert np.abs(q - exact).max() <= 0.5 + 127 * 6e-5
    assert (-factor.e >= 9).all() and (-factor.e <= 60).all()


def test_zero() -> None:
    factor = quantize_factor(0)
    assert (factor.m, factor.e) == (0, 0)
    assert quantize_int8([0, 0], factor).tolist() == [0, 0]

"""Heads in fixed point and their norm against float64 and exact integers."""

from fractions import Fraction

import numpy as np
import pytest

from lutra_golden.arith.fixed import Saturation
from lutra_golden.arith.scale import Scale, scale_from_float, scale_mul, scale_to_float
from lutra_golden.vector.heads import (
    EPS_FRAC,
    FIXED_FRAC,
    FIXED_WIDTH,
    NORM_HEAD_DIM_MAX,
    NORM_WIDTH,
    SQUARES_WIDTH,
    HeadBias,
    HeadNorm,
    fixed_heads,
    head_norm,
)

TOP = (1 << (FIXED_WIDTH - 1)) - 1


def one_scale(m: int, e: int) -> Scale:
    return Scale(np.array([m]), np.array([e]))


def test_fixed_heads_against_float() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(-(1 << 17), 1 << 17, (20, 3, 16))
    s = Scale(rng.integers(1 << 15, 1 << 16, 20), rng.integers(-32, -24, 20))
    w_scale = scale_from_float(0.0123)
    values, frac = rng.integers(-(1 << 15), 1 << 15, (3, 16)), 11
    expected = x * scale_to_float(s)[:, None, None] * 0.0123
    # a scale is off by 2**-16, twice
    error = np.abs(expected) * 2**-15 + 2.0 ** -(FIXED_FRAC + 1)
    plain = fixed_heads(x, s, w_scale) / 2**FIXED_FRAC
    assert (np.abs(plain - expected) <= error).all()
    biased = fixed_heads(x, s, w_scale, HeadBias(values, frac)) / 2**FIXED_FRAC
    assert (np.abs(biased - (expected + values / 2**frac)) <= error).all()


def test_limits_of_the_shift_change_nothing() -> None:
    """Every exponent, with accumulators and biases that cancel best: as without any limit."""
    limit = 1 << 29  # accumulators of 30 bits
    numbers = [0, 1, -1, 3, 12345, limit - 1, -limit]
    biases = [0, 1, -1, (1 << 15) - 1, -(1 << 15)]
    x = np.repeat(numbers, len(biases)).reshape(1, 1, -1)
    bias = np.tile(biases, len(numbers)).reshape(1, -1)
    for m in (1 << 15, (1 << 16) - 1):
        for e in range(-120, 60):
            c = scale_mul(one_scale(m, e), scale_from_float(1.0))
            for frac in (0, 7, FIXED_FRAC):
                v = fixed_heads(x, one_scale(m, e), scale_from_float(1.0), HeadBias(bias, frac))
                exact = [
                    (
                        Fraction(a) * int(c.m[0]) * Fraction(2) ** (int(c.e[0]) + FIXED_FRAC)
                        + Fraction(1, 2)
                    )
                    // 1
                    + (b << (FIXED_FRAC - frac))
                    for a, b in zip(x.reshape(-1).tolist(), bias.reshape(-1).tolist(), strict=True)
                ]
                assert v.reshape(-1).tolist() == [min(max(y, -TOP - 1), TOP) for y in exact]


def test_a_zero_scale_leaves_the_bias() -> None:
    x, bias = np.full((1, 2, 16), 1000), np.arange(32).reshape(2, 16)
    v = fixed_heads(x, one_scale(0, 0), scale_from_float(1.0), HeadBias(bias, 10))
    assert (v[0] == bias << 6).all()


@pytest.mark.parametrize("head_dim", [16, 64, NORM_HEAD_DIM_MAX])
@pytest.mark.parametrize("bits", [12, 20, 27])
def test_norm_against_float(head_dim: int, bits: int) -> None:
    rng = np.random.default_rng(bits)
    v = rng.integers(-(1 << bits), 1 << bits, (10, 2, head_dim))
    gamma, frac, eps = rng.integers(1 << 12, 1 << 14, head_dim), 13, 4295  # 1e-6
    y, unit = head_norm(v, HeadNorm(gamma, frac, eps))
    x = v / 2.0**FIXED_FRAC
    root = np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps / 2.0**EPS_FRAC)
    expected = x / root * gamma / 2.0**frac
    found = y * scale_to_float(unit)[..., None]
    rounding = 0.5 * scale_to_float(unit)[..., None]
    assert (np.abs(found - expected) <= np.abs(expected) * 7e-5 + rounding * 1.001).all()


def test_norm_at_the_ends_of_its_range() -> None:
    v = np.full((1, 1, NORM_HEAD_DIM_MAX), -TOP - 1)
    gamma = np.full(NORM_HEAD_DIM_MAX, -(1 << 15))
    y, unit = head_norm(v, HeadNorm(gamma, 15, (1 << 16) - 1))
    assert y.max() == y.min() == 1 << 30 < 1 << (NORM_WIDTH - 1)
    total = NORM_HEAD_DIM_MAX * ((TOP + 1) ** 2 + (1 << 16) - 1)
    assert total < 1 << SQUARES_WIDTH
    # 2048 normalised is one
    np.testing.assert_allclose(y[0, 0, 0] * scale_to_float(unit)[0, 0], 1.0, rtol=1e-4)


@pytest.mark.parametrize("eps", [0, 1])
def test_norm_of_a_zero_head(eps: int) -> None:
    y, unit = head_norm(np.zeros((1, 1, 16), np.int64), HeadNorm(np.full(16, 77), 0, eps))
    assert not y.any()
    assert (unit.m[0, 0] != 0) == bool(eps)
    if not eps:
        assert unit.e[0, 0] == 0


@pytest.mark.parametrize(
    ("x", "seen"), [(2047, False), (2048, True), (-2048, False), (-2049, True)]
)
def test_the_flag_of_saturation(x: int, seen: bool) -> None:
    flag, one = Saturation(), Scale(np.array([1 << 15]), np.array([-15]))
    fixed_heads(np.array([[[x]]]), one, scale_from_float(1.0), saturation=flag)
    assert flag.seen == seen

"""SiLU against float64, over its whole range."""

import numpy as np
import pytest

from lutra_golden.arith.fixed import Int
from lutra_golden.arith.silu import SILU, SiluParams, silu, silu_table

ONE = 1 << SILU.x_frac
LIMIT = ONE << SILU.limit_bits
MINIMUM = -1.2785 * ONE


def _error(x: Int) -> np.ndarray:
    value = x / ONE
    # both halves without overflow
    exact = np.where(value > 0, value, value * np.exp(-np.abs(value))) / (
        1 + np.exp(-np.abs(value))
    )
    return np.abs(silu(x) / ONE - exact)


def test_every_argument_below_the_limit() -> None:
    x = np.arange(-LIMIT, LIMIT)
    assert _error(x).max() <= 2.4e-5


def test_beyond_the_limit() -> None:
    """Every argument up to 17, where the error is largest, then to the ends of the range."""
    end = 1 << (SILU.x_width - 1)
    u = np.concatenate([np.arange(LIMIT, 17 * ONE), np.arange(17 * ONE, end, 1009), [end - 1]])
    assert _error(u).max() <= 2e-6
    assert _error(-u).max() <= 2e-6
    assert np.array_equal(silu(u), u)
    assert not silu(-u).any()
    assert silu(-end) == 0


def test_it_falls_to_the_minimum_and_rises_from_there() -> None:
    x = np.arange(-LIMIT - 10, LIMIT + 10)
    steps = np.diff(silu(x))
    assert (steps[x[1:] <= MINIMUM] <= 0).all()
    assert (steps[x[:-1] >= MINIMUM] >= 0).all()


def test_zero_and_symmetry() -> None:
    x = np.arange(LIMIT + 10)
    assert silu(0) == 0
    assert np.array_equal(silu(x) - silu(-x), x)


def test_segments_join() -> None:
    base, rise = silu_table()
    n = 1 << SILU.half_bits
    unused = 1 << (SILU.split_bits + SILU.coarse_bits)
    end = base + rise
    assert base[0] == 0
    assert np.array_equal(end[: n - 1], base[1:n])
    assert end[n - 1] == base[n + unused]
    assert np.array_equal(end[n + unused : -1], base[n + unused + 1 :])
    assert not base[n : n + unused].any()


def test_rejects_halves_of_different_size() -> None:
    with pytest.raises(ValueError) as error:
        SiluParams(fine_bits=7)
    assert str(error.value) == (
        "split_bits + fine_bits must be 8, as many segments as up to the limit, not 9"
    )

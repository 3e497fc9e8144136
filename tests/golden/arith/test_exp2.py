"""``2**-d`` against float64."""

import numpy as np

from lutra_golden.arith.exp2 import EXP2, exp2_neg, exp2_table


def test_every_argument_below_32() -> None:
    d = np.arange(32 << EXP2.d_frac)
    exact = 2.0 ** -(d / (1 << EXP2.d_frac)) * (1 << EXP2.y_frac)
    error = np.abs(exp2_neg(d) - exact)
    assert (error <= 0.5 + 8e-5 * exact).all()


def test_whole_powers_are_exact() -> None:
    whole = np.arange(16)
    assert exp2_neg(whole << EXP2.d_frac).tolist() == [1 << (15 - n) for n in range(16)]


def test_never_rises() -> None:
    y = exp2_neg(np.arange(20 << EXP2.d_frac))
    assert y[0] == 1 << EXP2.y_frac
    assert (np.diff(y) <= 0).all()


def test_large_arguments_give_zero() -> None:
    large = [17 << 12, 31 << 12, 32 << 12, 64 << 12, (1 << EXP2.d_width) - 1]
    assert exp2_neg(large).tolist() == [0] * 5


def test_table_joins() -> None:
    base, drop = exp2_table()
    assert base[0] == 1 << EXP2.table_frac
    assert (base - drop).tolist() == [*base[1:].tolist(), 1 << (EXP2.table_frac - 1)]


def test_table_is_the_nearest() -> None:
    base, drop = exp2_table()
    exact = 2.0 ** (EXP2.table_frac - np.arange(33) / 32)
    assert np.abs(base - exact[:-1]).max() <= 0.5
    assert np.abs(base - drop - exact[1:]).max() <= 0.5


def test_interpolation_is_cut_and_the_result_rounded_once() -> None:
    base, drop = (x.tolist() for x in exp2_table())
    d = np.arange(2 << EXP2.d_frac)
    expected = []
    for x in d.tolist():
        whole, segment, rest = x >> 12, x >> 7 & 31, x & 127
        y = base[segment] - (drop[segment] * rest >> 7)
        expected.append((y + (2 << whole)) >> (2 + whole))
    assert exp2_neg(d).tolist() == expected

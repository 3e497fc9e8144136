"""Rounding, saturation, bit lengths and integer matrix products against Python's integers."""

from fractions import Fraction
from math import floor
from random import Random
from typing import Any

import numpy as np
import pytest

from lutra_golden.arith.fixed import Saturation, bit_length, exact_matmul, round_shift, saturate


def test_the_flag_of_saturation_stays() -> None:
    flag = Saturation()
    flag.note([[False, False]])
    assert not flag.seen
    flag.note([[False], [True]])
    flag.note(np.zeros((0, 3), bool))
    assert flag.seen


def test_round_shift_rounds_half_up() -> None:
    assert round_shift([5, 6, 7, -5, -6, -7], 1).tolist() == [3, 3, 4, -2, -3, -3]
    assert round_shift([2, -2, 6, -6], 2).tolist() == [1, 0, 2, -1]


def test_round_shift_is_exact_without_a_shift_to_the_right() -> None:
    x = [-(1 << 63), -1, 0, (1 << 63) - 1]
    assert round_shift(x, 0).tolist() == x
    assert round_shift([-3, 0, 3], -4).tolist() == [-48, 0, 48]


def test_round_shift_against_fractions() -> None:
    rng = Random(1)
    x = [rng.randrange(-(1 << 63), 1 << 63) >> rng.randrange(64) for _ in range(2000)]
    x += [-(1 << 63), (1 << 63) - 1, 0, 1, -1]
    n = [rng.randrange(64) for _ in x]
    expected = [floor(Fraction(a, 1 << b) + Fraction(1, 2)) for a, b in zip(x, n, strict=True)]
    assert round_shift(x, n).tolist() == expected


def test_saturate() -> None:
    assert saturate([-129, -128, -127, 0, 126, 127, 128], 8).tolist() == [
        *(-128, -128, -127),
        *(0, 126, 127, 127),
    ]
    assert saturate([-(1 << 63), (1 << 63) - 1], 32).tolist() == [-(1 << 31), (1 << 31) - 1]


def test_bit_length() -> None:
    x = [0, *((1 << bit) + d for bit in range(63) for d in (-1, 0, 1))]
    assert bit_length(x).tolist() == [value.bit_length() for value in x]


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_exact_matmul(dtype: type[Any]) -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(-127, 128, (5, 1001))
    b = rng.integers(-1, 2, (1001, 7))
    product = exact_matmul(a, b.astype(dtype))
    assert product.dtype == np.int64
    assert (product == a @ b).all()


def test_exact_matmul_up_to_its_bound() -> None:
    a = np.array([[1 << 24, 1]])
    assert exact_matmul(a, np.array([[1 << 28], [-1]])).tolist() == [[(1 << 52) - 1]]

"""Scales against exact fractions and float64."""

from fractions import Fraction
from math import floor
from random import Random

import numpy as np
import pytest

from lutra_golden.arith.scale import (
    Scale,
    pack_scale,
    packed_scale_to_float,
    recip_table,
    rsqrt_table,
    scale_add,
    scale_from_float,
    scale_from_int,
    scale_max,
    scale_mul,
    scale_recip,
    scale_rsqrt,
    scale_to_float,
    unpack_scale,
)

MANTISSAS = np.arange(1 << 15, 1 << 16, dtype=np.int64)
ZERO = Scale(np.array(0), np.array(0))


def _rounded(x: Fraction) -> tuple[int, int]:
    """The scale nearest to ``x``, half up, by exact arithmetic."""
    if x == 0:
        return 0, 0
    e = 0
    while x * Fraction(2) ** -e >= 1 << 16:
        e += 1
    while x * Fraction(2) ** -e < 1 << 15:
        e -= 1
    m = floor(x * Fraction(2) ** -e + Fraction(1, 2))
    return (m, e) if m < 1 << 16 else (m >> 1, e + 1)


def _value(a: Scale) -> Fraction:
    return int(a.m) * Fraction(2) ** int(a.e)


def _random(rng: Random) -> Scale:
    m = rng.choice([1 << 15, 0xFFFF, rng.randrange(1 << 15, 1 << 16)])
    return Scale(np.array(m), np.array(rng.randint(-60, 60)))


def test_from_int() -> None:
    rng = Random(1)
    x = [0, 1, 2, 0xFFFF, 0x1FFFE, 0x1FFFF, (1 << 63) - 1, 1 << 62, 0xFFFF8000, 0xFFFF7FFF]
    x += [rng.randrange(1 << rng.randrange(1, 64)) for _ in range(1000)]
    scales = scale_from_int(x, -7)
    for value, m, e in zip(x, *scales, strict=True):
        assert (m, e) == _rounded(Fraction(value, 1 << 7)), value


def test_mul_is_rounded_once() -> None:
    rng = Random(2)
    for _ in range(500):
        a, b = _random(rng), _random(rng)
        assert tuple(map(int, scale_mul(a, b))) == _rounded(_value(a) * _value(b))
        assert scale_mul(a, ZERO) == ZERO


def test_add_is_within_two_last_places_of_32_bits() -> None:
    rng = Random(3)
    for _ in range(500):
        a, b = _random(rng), _random(rng)
        b = Scale(b.m, a.e + rng.randint(-20, 20))
        total, exact = _value(scale_add(a, b)), _value(a) + _value(b)
        assert abs(total / exact - 1) <= Fraction(1, 1 << 16) + Fraction(1, 1 << 31)
        assert scale_add(a, b) == scale_add(b, a)
        assert scale_add(a, ZERO) == scale_add(ZERO, a) == a
    assert scale_add(ZERO, ZERO) == ZERO


@pytest.mark.parametrize("e", [-301, -300, -1, 0, 1, 8])
def test_recip_of_every_mantissa(e: int) -> None:
    a = Scale(MANTISSAS, np.full_like(MANTISSAS, e))
    result = scale_recip(a)
    assert ((result.m >> 15) == 1).all()
    assert np.abs(scale_to_float(result) * scale_to_float(a) - 1).max() < 4e-5
    assert scale_recip(ZERO) == ZERO


@pytest.mark.parametrize("e", [-301, -300, -1, 0, 1, 8])
def test_rsqrt_of_every_mantissa(e: int) -> None:
    a = Scale(MANTISSAS, np.full_like(MANTISSAS, e))
    result = scale_rsqrt(a)
    assert ((result.m >> 15) == 1).all()
    assert np.abs(scale_to_float(result) * np.sqrt(scale_to_float(a)) - 1).max() < 5e-5
    assert scale_rsqrt(ZERO) == ZERO


def test_tables_are_16_bit() -> None:
    for table in (recip_table(), rsqrt_table()):
        assert len(table) == 256
        assert table.min() >= 0 and table.max() < 1 << 16


def test_max() -> None:
    rng = Random(4)
    for _ in range(300):
        a, b = _random(rng), _random(rng)
        assert _value(scale_max(a, b)) == max(_value(a), _value(b))
        assert scale_max(a, ZERO) == scale_max(ZERO, a) == a


def test_floats() -> None:
    rng = Random(5)
    for x in [
        0.0,
        1.0,
        1e-5,
        2.0**-1074,
        3e300,
        *(rng.random() * 10.0 ** rng.randint(-30, 30) for _ in range(200)),
    ]:
        assert tuple(map(int, scale_from_float(x))) == _rounded(Fraction(x))
        assert scale_to_float(scale_from_float(x)) == pytest.approx(x, rel=2**-16)


@pytest.mark.parametrize("x", [-1.0, float("nan"), float("inf")])
def test_rejects_floats_that_are_no_scale(x: float) -> None:
    with pytest.raises(ValueError) as error:
        scale_from_float(x)
    assert str(error.value) == f"a scale must be finite and not negative, not {x}"


def test_pack() -> None:
    a = Scale(np.array([0, 1 << 15, 0xFFFF, 40000]), np.array([0, -512, 511, -1]))
    words = pack_scale(a)
    assert words.tolist() == [0, 0xFE008000, 0x01FFFFFF, 0xFFFF9C40]
    assert (np.array(unpack_scale(words)) == np.array(a)).all()
    assert [packed_scale_to_float(word) for word in words.tolist()] == scale_to_float(a).tolist()

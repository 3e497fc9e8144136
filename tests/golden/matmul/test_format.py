"""Names of number formats."""

import re
from dataclasses import replace

import pytest

from lutra_golden.matmul.format import FORMATS, GROUPS, Format


def test_every_name_is_read_back() -> None:
    assert len(set(FORMATS)) == len(FORMATS) == 14
    for name in FORMATS:
        assert str(Format.parse(name)) == name
        assert Format.parse(name.lower()) == Format.parse(name)
        for group in GROUPS:
            grouped = name.replace("A", f"g{group}A")
            assert str(Format.parse(grouped)) == grouped
            assert Format.parse(grouped.upper()) == replace(Format.parse(name), group=group)


@pytest.mark.parametrize(
    ("name", "w_bits", "a_bits", "ternary", "q_max"),
    [
        ("W1A8", 1, 8, False, 127),
        ("W1.58A8", 2, 8, True, 127),
        ("W2A8", 2, 8, False, 127),
        ("W4A16", 4, 16, False, 32767),
    ],
)
def test_what_a_name_says(name: str, w_bits: int, a_bits: int, ternary: bool, q_max: int) -> None:
    found = Format.parse(name)
    assert (found.w_bits, found.a_bits, found.ternary) == (w_bits, a_bits, ternary)
    assert found.q_max == q_max


@pytest.mark.parametrize(
    "name",
    ["", "W4", "A8", "W5A8", "W4A4", "W1.5A8", "4A8", "W4A8 ", "W04A8", "W4g16A8", "W4A8g32"],
)
def test_a_name_that_is_none(name: str) -> None:
    message = (
        "format must be one of W1A8, W1.58A8, W2A8, .*, or with a group of weights as "
        f"W1.58g128A8, not {re.escape(repr(name))}"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        Format.parse(name)


@pytest.mark.parametrize(
    ("w_bits", "a_bits", "ternary", "message"),
    [
        (5, 8, False, "w_bits must be one of (1, 2, 3, 4, 6, 8), not 5"),
        (0, 8, False, "w_bits must be one of (1, 2, 3, 4, 6, 8), not 0"),
        (4, 12, False, "a_bits must be one of (8, 16), not 12"),
        (4, 8, True, "w_bits of a ternary format must be 2, not 4"),
        (1, 8, True, "w_bits of a ternary format must be 2, not 1"),
    ],
)
def test_bits_that_can_not_be(w_bits: int, a_bits: int, ternary: bool, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Format(w_bits=w_bits, a_bits=a_bits, ternary=ternary)


def test_a_group_that_can_not_be() -> None:
    with pytest.raises(ValueError, match=r"^group must be one of \(32, 64, 128\), not 48$"):
        Format(w_bits=2, a_bits=8, ternary=True, group=48)

"""Checks of parameters."""

import re
from dataclasses import dataclass

import pytest

from lutra_golden.params import check_bools, check_positive, check_power_of_two


@dataclass
class Sizes:
    rows: object = 8
    deep: object = True


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (0, ValueError, "rows must be positive, not 0"),
        (-1, ValueError, "rows must be positive, not -1"),
        (1.0, TypeError, "rows must be an integer, not 1.0"),
        (True, TypeError, "rows must be an integer, not True"),
    ],
)
def test_positive(value: object, kind: type[Exception], message: str) -> None:
    check_positive(Sizes(), "rows")
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        check_positive(Sizes(rows=value), "rows")
    with pytest.raises(TypeError, match=r"^deep must be an integer, not True$"):
        check_positive(Sizes())


def test_power_of_two() -> None:
    for value in (1, 2, 1024):
        check_power_of_two(Sizes(rows=value), "rows")
    for value in (3, 96):
        with pytest.raises(ValueError, match=f"^rows must be a power of two, not {value}$"):
            check_power_of_two(Sizes(rows=value), "rows")


def test_bools() -> None:
    check_bools(Sizes(), "deep")
    with pytest.raises(TypeError, match=r"^rows must be a bool, not 8$"):
        check_bools(Sizes(), "rows", "deep")

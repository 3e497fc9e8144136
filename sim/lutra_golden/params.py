"""Checks that every class of parameters makes."""

from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["check_bools", "check_positive", "check_power_of_two"]


def check_positive(params: "DataclassInstance", *names: str) -> None:
    """Refuse fields that are not positive integers: those named, or all of them."""
    for name in names or [field.name for field in fields(params)]:
        value = getattr(params, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be positive, not {value}")


def check_power_of_two(params: "DataclassInstance", *names: str) -> None:
    """Refuse named fields that are no powers of two."""
    for name in names:
        value = getattr(params, name)
        if value & (value - 1):
            raise ValueError(f"{name} must be a power of two, not {value}")


def check_bools(params: "DataclassInstance", *names: str) -> None:
    """Refuse named fields that are not bools."""
    for name in names:
        value = getattr(params, name)
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, not {value!r}")

"""Checks of arguments, and their words: errors name the argument and what was given for it."""

from collections.abc import Iterable

import numpy as np

from lutra_golden.errors import LutraError

__all__ = ["check_kind", "check_number", "check_whole", "either"]


def either(choices: Iterable[object]) -> str:
    """The choices as a message lists them: ``a, b or c``."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last


def check_kind(value: object, kind: type, message: str) -> None:
    """Refuse what is no ``kind``, in one line."""
    if not isinstance(value, kind):
        raise LutraError(message)


def check_whole(name: str, value: object) -> None:
    """Refuse what is no whole number."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise LutraError(f"{name} must be a whole number, not {value!r}")


def check_number(name: str, value: object) -> None:
    """Refuse what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise LutraError(f"{name} must be a number, not {value!r}")

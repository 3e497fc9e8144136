"""Enums whose members are their text, as ``enum.StrEnum`` of newer Pythons has them."""

from enum import Enum

__all__ = ["StringEnum"]


class StringEnum(str, Enum):
    """Base of enums whose members are strings, and print as their value everywhere."""

    def __str__(self) -> str:
        return self.value

    def __format__(self, format_spec: str) -> str:
        return format(self.value, format_spec)

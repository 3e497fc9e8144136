"""Reading of XML with one error line for what is not as it must be."""

from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from lutra_golden.errors import LutraError

__all__ = ["children", "number", "parse", "required", "unique"]


def parse(text: str, tag: str, what: str) -> Element:
    """The root of ``text``, which must be ``tag``."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise LutraError(f"{what} is no XML: {error}") from None
    if root.tag != tag:
        raise LutraError(f"{what} must begin with {tag}, not {root.tag}")
    return root


def required(value: str | None, what: str) -> str:
    """``value``, which must be there and not empty."""
    if value is None or not value.strip():
        raise LutraError(f"{what} is missing")
    return value.strip()


def number(value: str | None, what: str) -> int:
    """``value`` as a whole number, decimal or with 0x."""
    text = required(value, what)
    try:
        return int(text, 0)
    except ValueError:
        raise LutraError(f"{what} must be a whole number, not {text!r}") from None


def unique(names: Sequence[str], what: str) -> None:
    """Refuse a name that is there twice."""
    for name in names:
        if names.count(name) > 1:
            raise LutraError(f"{what} {name} is there {names.count(name)} times: give it once")


def children(element: Element, order: Sequence[str], what: str) -> None:
    """Refuse children that are not in ``order``, or that it does not have."""
    tags = [child.tag for child in element]
    for tag in tags:
        if tag not in order:
            raise LutraError(f"{what} has an unknown element {tag.rpartition('}')[2]}")
    places = [order.index(tag) for tag in tags]
    for before, after in pairwise(places):
        if before > after:
            first, second = (order[i].rpartition("}")[2] for i in (after, before))
            raise LutraError(f"{what} must have {first} before {second}")

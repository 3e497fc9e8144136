"""Generated parts of the documentation's pages, their tables, and the goals of their figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lutra_golden.errors import LutraError

__all__ = ["Goal", "insert", "markdown_table"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure and its limit, which it must reach or, with ``at_most``, must not exceed."""

    name: str
    value: float
    limit: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """True if the figure is within its limit."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def insert(page: str, text: str, markers: tuple[str, str], generated: str) -> str:
    """Return ``text`` with ``generated`` between its markers; LutraError if it has none."""
    before, begin, rest = text.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise LutraError(f"{page} must have the lines '{markers[0]}' and '{markers[1]}': add them")
    return f"{before}{begin}\n{generated}\n{end}{after}"


def markdown_table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], numbers_from: int | None = None
) -> str:
    """A table in Markdown with ``heads``; columns from ``numbers_from`` on are aligned right."""
    n_left = len(heads) if numbers_from is None else numbers_from
    rule = ["---"] * n_left + ["---:"] * (len(heads) - n_left)
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (heads, rule, *rows))

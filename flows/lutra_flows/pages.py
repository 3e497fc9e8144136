"""Generated parts of the documentation's pages, and the goals that their figures are held to."""

from dataclasses import dataclass

from lutra_golden.errors import LutraError

__all__ = ["Goal", "insert"]


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

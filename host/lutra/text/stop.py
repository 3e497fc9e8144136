"""Text up to a stop string, piece by piece, in which nothing of that string shows."""

from collections.abc import Sequence

__all__ = ["StopFilter"]


class StopFilter:
    """Lets text through up to the first of ``stops``.

    Text ends where a stop string is complete for the first time, before the longest one that ends
    there. That depends on the characters alone, not on the pieces that they come in. Characters
    that a stop string may begin with are held back until it is clear.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held: str = ""
        self.found = False
        """True when a stop string has come; no text is let through from there on."""

    def push(self, text: str) -> str:
        """Return what is clear with ``text``, which may be less, or more by what was held."""
        if self.found:
            return ""
        text = self._held + text
        places = [(text.find(each), len(each)) for each in self._stops if each in text]
        if places:
            self.found, self._held = True, ""
            start, _ = min(places, key=lambda place: (sum(place), place))
            return text[:start]
        clear = len(text) - self._begun(text)
        self._held = text[clear:]
        return text[:clear]

    def flush(self) -> str:
        """Return what is held when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """Length of the longest end of ``text`` that a stop string begins with."""
        for n in range(min(len(text), self._longest - 1), 0, -1):
            if any(each.startswith(text[-n:]) for each in self._stops):
                return n
        return 0

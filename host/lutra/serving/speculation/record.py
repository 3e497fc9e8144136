"""Shares of guesses that were right, by their kind."""

from collections.abc import Sequence

__all__ = ["Record"]


class Record:
    """Shares of guesses that came true, of kinds ``0``, ``1``, ``2`` and so on.

    Later guesses count more: one counts ``keep`` times as much as the next one of its kind. What
    ``before`` says counts like ``weight`` guesses: shares that are given, or another record, which
    is told of every guess, too.
    """

    def __init__(self, before: "Sequence[float] | Record", weight: float, keep: float) -> None:
        self._before, self._weight, self._keep = before, weight, keep
        n_kinds = len(before if isinstance(before, Sequence) else before.shares())
        self._right, self._n = [0.0] * n_kinds, [0.0] * n_kinds

    def shares(self) -> Sequence[float]:
        """The expected share of right guesses of each kind."""
        before, weight = self._before, self._weight
        known = before.shares() if isinstance(before, Record) else before
        return [
            (right + weight * share) / (n + weight)
            for right, n, share in zip(self._right, self._n, known, strict=True)
        ]

    def note(self, kind: int, right: bool) -> None:
        """Note a guess."""
        if isinstance(self._before, Record):
            self._before.note(kind, right)
        self._right[kind] = self._keep * self._right[kind] + right
        self._n[kind] = self._keep * self._n[kind] + 1

    def fade(self) -> None:
        """Forget a little of what was noted here, as if a guess had come that was not noted."""
        self._right = [self._keep * each for each in self._right]
        self._n = [self._keep * each for each in self._n]

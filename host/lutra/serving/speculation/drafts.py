"""Drafts of one request, and what makes them: the protocols that all ways to guess share."""

from collections.abc import Collection, Sequence
from typing import Protocol

from lutra.text.sampling import Sampler

__all__ = ["Drafter", "Drafts", "NoDrafts"]


class Drafts(Protocol):
    """Guesses at how one text goes on."""

    def chances(self, most: int) -> Sequence[float]:
        """Probabilities of the next ``most`` drafts or fewer: of each, that it is right if those
        before it are."""
        ...

    def draft(self, n: int) -> list[int]:
        """The next ``n`` tokens, as they are guessed, or fewer; no more than :meth:`chances` has
        had last."""
        ...

    def go_on(self, tokens: Sequence[int]) -> None:
        """Take the tokens that came, and learn which guesses were right."""
        ...

    def close(self) -> None:
        """Release what is held for the text."""
        ...


class Drafter(Protocol):
    """Makes drafts for any number of texts."""

    @property
    def seconds_per_draft(self) -> float:
        """Expected seconds of a drafted token, 0 where that hardly takes any."""
        ...

    def begin(self, prompt: Sequence[int], sampler: Sampler, ends: Collection[int]) -> Drafts:
        """Drafts of what follows ``prompt``, up to one of ``ends``, drawn by ``sampler``."""
        ...


class NoDrafts:
    """Nothing is guessed."""

    def chances(self, most: int) -> Sequence[float]:
        """None."""
        return ()

    def draft(self, n: int) -> list[int]:
        """None."""
        return []

    def go_on(self, tokens: Sequence[int]) -> None:
        """Nothing is learnt."""

    def close(self) -> None:
        """Nothing is held."""

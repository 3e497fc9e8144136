"""Decoding without drafts, and the interface of decoding with some."""

from collections.abc import Collection, Sequence

from lutra.serving.speculation.drafts import Drafts, NoDrafts
from lutra.text.sampling import Sampler

__all__ = ["Speculation"]


class Speculation:
    """Which drafts the passes of one device check: none, unless a subclass says so."""

    def begin(self, prompt: Sequence[int], sampler: Sampler, ends: Collection[int] = ()) -> Drafts:
        """Drafts of what follows ``prompt``, up to one of ``ends``, drawn by ``sampler``."""
        return NoDrafts()

    def plan(self, requests: Sequence[tuple[Drafts, int]], room: int) -> list[list[int]]:
        """The drafts of each request that the next pass decodes, of which it can use so many;
        together no more than there is ``room`` for."""
        return [[] for _ in requests]

    def took(self, n_requests: int, n_tokens: int, n_made: int, seconds: float) -> None:
        """Note a pass over ``n_tokens``, drafts included, in which ``n_requests`` were given
        ``n_made`` tokens together."""

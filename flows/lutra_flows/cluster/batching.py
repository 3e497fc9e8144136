"""Contents of a pass of an instance."""

from collections.abc import Sequence
from typing import Protocol

from lutra.serving.chunks import PromptPace
from lutra_flows.cluster.jobs import Job

__all__ = ["Batching", "Chunks", "Parts", "WholePrompts"]

Parts = list[tuple[Job, int]]
"""Requests with the tokens of their prompts that a pass computes."""


class Batching(Protocol):
    """Forms passes; one belongs to each instance."""

    def order(self, job: Job) -> float:
        """The least comes first, of those that wait for memory and of prompts alike."""
        ...

    def prompts(self, jobs: Sequence[Job], n_answers: int) -> Parts:
        """Parts of prompts, in a pass with a token each of ``n_answers`` others."""
        ...

    def took(self, n_tokens: int, seconds: float) -> None:
        """Note a pass with so many tokens of prompts."""
        ...


class Chunks:
    """As :class:`lutra.serving.batch.Batch` does: prompts in chunks where others wait for tokens.

    A prompt whose answer is made elsewhere is computed whole, by itself, layer by layer, where
    nobody waits for tokens (:mod:`lutra.serving.plans.costs`).
    """

    def __init__(self, pass_tokens: int) -> None:
        self._pass_tokens, self._pace = pass_tokens, PromptPace()

    def order(self, job: Job) -> float:
        """A short prompt passes a long one, unless that has waited for it."""
        return job.arrival.at + job.left * (self._pace.token_s or 0.0)

    def prompts(self, jobs: Sequence[Job], n_answers: int) -> Parts:
        """As many tokens as leave the pass short enough."""
        parts: Parts = []
        room = self._pace.room(self._pass_tokens, n_answers)
        for job in sorted(jobs, key=self.order):
            if not room:
                break
            if job.target is not None and not n_answers:
                if parts:
                    continue
                return [(job, job.left)]
            size = min(job.left, room)
            parts.append((job, size))
            room -= size
        return parts

    def took(self, n_tokens: int, seconds: float) -> None:
        """Note a pass with so many tokens of prompts."""
        self._pace.took(n_tokens, seconds)


class WholePrompts:
    """First come, first served; prompts are never cut, and share a pass up to ``most`` tokens."""

    def __init__(self, most: int) -> None:
        self._most = most

    def order(self, job: Job) -> float:
        """The time of arrival."""
        return job.arrival.at

    def prompts(self, jobs: Sequence[Job], n_answers: int) -> Parts:
        """The first one, and what fits beside it."""
        parts: Parts = []
        room = self._most
        for job in sorted(jobs, key=self.order):
            if parts and job.left > room:
                break
            parts.append((job, job.left))
            room -= job.left
        return parts

    def took(self, n_tokens: int, seconds: float) -> None:
        """Nothing depends on it."""

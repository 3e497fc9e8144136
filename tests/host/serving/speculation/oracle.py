"""Speculation that is told how texts go on, and errs where it is to."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lutra.serving.speculation.drafts import Drafts
from lutra.serving.speculation.plain import Speculation
from lutra.text.sampling import Sampler

__all__ = ["Oracle"]


@dataclass
class _Told:
    """Drafts of an answer that is known, every ``wrong_every``-th of them wrong."""

    answer: list[int]
    wrong_every: int
    vocab_size: int
    at: int = 0
    closed: bool = False

    def chances(self, most: int) -> Sequence[float]:
        return [1.0] * most

    def draft(self, n: int) -> list[int]:
        first = self.at
        return [
            (token + (first + i) % self.wrong_every // (self.wrong_every - 1)) % self.vocab_size
            for i, token in enumerate(self.answer[first : first + n])
        ]

    def go_on(self, tokens: Sequence[int]) -> None:
        assert tokens == self.answer[self.at : self.at + len(tokens)]
        self.at += len(tokens)

    def close(self) -> None:
        self.closed = True


@dataclass
class Oracle(Speculation):
    """Drafts ``n`` tokens of each answer whenever it can, by the length of its prompt."""

    answers: Mapping[int, list[int]]
    n: int
    wrong_every: int
    vocab_size: int
    begun: list[_Told] = field(default_factory=list[_Told])
    passes: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])

    def begin(self, prompt: Sequence[int], sampler: Sampler, ends: Collection[int] = ()) -> Drafts:
        self.begun.append(_Told(self.answers[len(prompt)], self.wrong_every, self.vocab_size))
        return self.begun[-1]

    def plan(self, requests: Sequence[tuple[Drafts, int]], room: int) -> list[list[int]]:
        found: list[list[int]] = []
        for drafts, most in requests:
            found.append(drafts.draft(max(min(self.n, most, room), 0)))
            room -= len(found[-1])
        return found

    def took(self, n_requests: int, n_tokens: int, n_made: int, seconds: float) -> None:
        assert seconds > 0
        self.passes.append((n_requests, n_tokens, n_made))

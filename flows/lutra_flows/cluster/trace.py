"""Requests as they come to a public service: lengths of prompts and answers, and arrivals.

Lengths have the shape of the Azure LLM inference traces of November 2023, which Splitwise published
(Patel et al., ISCA 2024; github.com/Azure/AzurePublicDataset): log-normal with the mean and the
deviation that the generator of Splitwise's simulator states, between the shortest and the longest
that it states. Arrivals are Poisson's, as there. No file of the traces is here.
"""

from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np

from lutra_golden.errors import LutraError

__all__ = ["SHAPES", "Arrival", "Lengths", "TraceShape", "make_trace"]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens: ``mean`` and ``deviation`` of a log-normal distribution that is cut at ``least`` and
    ``most``. ``median`` is the published one of the trace, which nothing is drawn from."""

    mean: float
    deviation: float
    least: int
    most: int
    median: int

    def draw(self, rng: np.random.Generator, n: int) -> list[int]:
        """``n`` lengths."""
        spread = log(1 + (self.deviation / self.mean) ** 2)
        drawn = rng.lognormal(log(self.mean) - spread / 2, sqrt(spread), n)
        return np.clip(np.rint(drawn), self.least, self.most).astype(int).tolist()

    @property
    def drawn_median(self) -> float:
        """Median of the distribution."""
        return exp(log(self.mean) - log(1 + (self.deviation / self.mean) ** 2) / 2)


@dataclass(frozen=True, kw_only=True)
class TraceShape:
    """Lengths of prompts and answers; ``rate`` of the trace itself, requests per second."""

    name: str
    prompt: Lengths
    answer: Lengths
    rate: float


_CONVERSATION = TraceShape(
    name="conversation",
    prompt=Lengths(mean=1155, deviation=1109, least=2, most=14050, median=1020),
    answer=Lengths(mean=211, deviation=163, least=7, most=1000, median=129),
    rate=19366 / 3502,
)
_CODING = TraceShape(
    name="coding",
    prompt=Lengths(mean=2048, deviation=1973, least=3, most=7437, median=1500),
    answer=Lengths(mean=28, deviation=60, least=6, most=1899, median=13),
    rate=8819 / 3436,
)
SHAPES = {shape.name: shape for shape in (_CONVERSATION, _CODING)}
"""The two services of the traces. Medians: Splitwise, section III; requests and seconds: the
dataset's notebook."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request that comes at ``at`` seconds, with the tokens of its prompt and of its answer."""

    at: float
    prompt: int
    answer: int


def make_trace(
    shape: TraceShape, rate: float, n: int, *, context: int, seed: int = 0
) -> list[Arrival]:
    """``n`` requests that come at ``rate`` a second on average.

    An answer takes half of the ``context`` at most, and a prompt what is left of it. Of one seed,
    lengths are the same at every rate, and arrivals but for their pace.
    """
    if not rate > 0 or n < 1:
        raise LutraError(f"a trace needs requests at a rate above 0, not {n} at {rate:g} a second")
    lengths, gaps = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    prompts, answers = shape.prompt.draw(lengths, n), shape.answer.draw(lengths, n)
    times = np.cumsum(gaps.exponential(1.0, n)) / rate
    found = list[Arrival]()
    for at, prompt, answer in zip(times.tolist(), prompts, answers, strict=True):
        kept = min(answer, context // 2)
        found.append(Arrival(at=at, prompt=min(prompt, context - kept), answer=kept))
    return found

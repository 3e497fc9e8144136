"""How many drafts a pass has: those that pay, by what passes take and how often drafts are right.

Time is told, never measured: of each pass by a table, of guessing by a clock that is set.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from lutra.serving.speculation.adaptive import MOST_DRAFTS, AdaptiveSpeculation
from lutra.serving.speculation.drafts import Drafts
from lutra.serving.speculation.ngrams import NgramDrafter
from lutra.text.sampling import Sampler, SamplingParams

SAMPLER = Sampler(SamplingParams())
Seconds = Callable[[int], float]


def flat(_n: int) -> float:
    """A pass takes the same however many tokens it has."""
    return 1.0


def linear(n: int) -> float:
    """Every token takes as long as one alone."""
    return float(n)


def memory(n: int) -> float:
    """A pass reads all weights and computes a little for each token."""
    return 1.0 + 0.1 * (n - 1)


@dataclass
class Fixed:
    """Drafts of which each is right with the probability that is told."""

    chance: float
    most: int = 99
    asked: int = 0

    def chances(self, most: int) -> list[float]:
        self.asked += 1
        return [self.chance] * min(most, self.most)

    def draft(self, n: int) -> list[int]:
        return list(range(n))

    def go_on(self, tokens: Sequence[int]) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class FixedDrafter:
    seconds_per_draft: float = 0.0

    def begin(self, prompt: Sequence[int], sampler: Sampler, ends: Collection[int]) -> Drafts:
        return Fixed(0.5)


@dataclass
class Clock:
    """Goes on by ``step`` whenever it is read."""

    step: float = 0.0
    now: float = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@dataclass
class Run:
    """Passes of one request; each draft is right with its probability, independently."""

    speculation: AdaptiveSpeculation
    seconds: Seconds
    total: float = 0.0
    made: int = 0
    sizes: list[int] = field(default_factory=list[int])
    seed: int = 0

    def go(self, n_passes: int, chance: float, really: float | None = None, most: int = 99) -> None:
        rng, drafts = np.random.default_rng(self.seed), Fixed(chance)
        right = chance if really is None else really
        for _ in range(n_passes):
            [found] = self.speculation.plan([(drafts, most)], 511)
            n = len(found)
            wrong = np.flatnonzero(rng.random(n) >= right)
            made = 1 + (int(wrong[0]) if len(wrong) else n)
            took = self.seconds(1 + n)
            self.speculation.took(1, 1 + n, made, took)
            self.total += took
            self.made += made
            self.sizes.append(n)


def adaptive(**options: object) -> AdaptiveSpeculation:
    return AdaptiveSpeculation(FixedDrafter(), clock=Clock(), **options)  # type: ignore[arg-type]


def test_the_first_passes_show_what_one_takes_without_drafts() -> None:
    run = Run(adaptive(), flat)
    run.go(3, 0.9)
    assert run.sizes == [0, 0, 1]


def test_as_many_as_pay() -> None:
    """With these probabilities and times, the rate is highest at 3 and at 6 drafts."""
    for chance, expected in ((0.6, 3), (0.8, 6)):
        rates = [sum(chance**i for i in range(n + 1)) / memory(n + 1) for n in range(20)]
        assert int(np.argmax(rates)) == expected
        run = Run(adaptive(), memory)
        run.go(200, chance)
        assert set(run.sizes[100:]) <= {expected, 0}
        assert run.made / run.total > 0.9 * rates[expected]


def test_where_tokens_cost_nothing_there_are_as_many_as_there_may_be() -> None:
    run = Run(adaptive(), flat)
    run.go(80, 0.99)
    assert max(run.sizes) == MOST_DRAFTS
    run.go(3, 0.99, most=5)
    assert set(run.sizes[-3:]) <= {5, 0}


def test_a_size_that_pays_is_found_behind_some_that_do_not() -> None:
    """Kernels of many columns may begin at some size: 16 tokens take little more than 8."""
    run = Run(adaptive(), lambda n: 0.55 * n + 0.45 if n < 8 else 4.0 + 0.05 * n)
    run.go(300, 0.98)
    assert np.median(run.sizes[-100:]) > 20
    assert run.made / run.total > 2.5


def test_where_every_token_costs_as_much_there_are_none() -> None:
    """But for a first try, and rare ones later, of single drafts."""
    run = Run(adaptive(), linear)
    run.go(2000, 0.9, really=0.0)
    assert 1 <= np.count_nonzero(run.sizes) <= 40 and max(run.sizes) == 1
    assert run.made / run.total > 0.99


@pytest.mark.parametrize("seconds", [flat, memory, linear], ids=["flat", "memory", "linear"])
@pytest.mark.parametrize("chance", [0.0, 0.3, 0.9])
def test_it_costs_little_where_drafts_are_always_wrong(seconds: Seconds, chance: float) -> None:
    """Whatever is expected of them."""
    run = Run(adaptive(), seconds)
    run.go(1000, chance, really=0.0)
    assert run.made / run.total > 0.98


def test_drafts_come_back_when_they_pay_again() -> None:
    run = Run(adaptive(), memory)
    run.go(400, 0.9, really=0.0)
    few = np.count_nonzero(run.sizes[-100:])
    run.go(600, 0.9)
    assert few < 30 < 80 < np.count_nonzero(run.sizes[-100:])


def test_losses_are_small_before_anything_was_gained() -> None:
    """The first drafts may lose a pass and a half, in all; after gains several."""
    run = Run(adaptive(), lambda n: 1.0 + 0.5 * (n - 1))
    run.go(2, 0.99)
    run.go(3, 0.99, really=0.0)
    assert 1 <= max(run.sizes) <= 2 and run.total - run.made <= 1.55
    after = Run(adaptive(), lambda n: 1.0 + 0.5 * (n - 1))
    after.go(100, 0.999)
    assert max(after.sizes) == 24


def test_a_pass_without_drafts_comes_now_and_then() -> None:
    """So that what drafts gain is compared with what passes take now."""
    run = Run(adaptive(), memory)
    run.go(400, 1.0)
    plain = [i for i, n in enumerate(run.sizes) if n == 0]
    assert plain[:2] == [0, 1] and set(np.diff(plain[1:]).tolist()) == {66}


def test_a_machine_that_does_other_work_is_no_loss() -> None:
    """Passes that are stopped for a while say nothing of drafts."""
    stopped = iter([1.0] * 40 + [500.0] + [1.0] * 60 + [900.0] * 2 + [1.0] * 999)
    run = Run(adaptive(), lambda n: memory(n) * next(stopped))
    run.go(800, 0.9)
    assert np.count_nonzero(run.sizes[-300:]) > 250


def test_guessing_that_takes_longer_than_it_gains_stops() -> None:
    """Where a pass takes a tenth of a lookup, hardly any text is looked up."""
    speculation = AdaptiveSpeculation(FixedDrafter(), clock=Clock(step=0.05))
    drafts = Fixed(0.1)
    for _ in range(2000):
        [found] = speculation.plan([(drafts, 9)], 99)
        speculation.took(1, 1 + len(found), 1, 0.5)
    assert 10 < drafts.asked < 300


def test_drafts_that_take_long_are_fewer() -> None:
    few, many = (
        Run(AdaptiveSpeculation(FixedDrafter(cost), clock=Clock()), memory) for cost in (0.3, 0.0)
    )
    few.go(200, 0.8)
    many.go(200, 0.8)
    assert 0 < max(few.sizes[100:]) < max(many.sizes[100:])
    none = Run(AdaptiveSpeculation(FixedDrafter(2.0), clock=Clock()), memory)
    none.go(200, 0.8)
    assert np.count_nonzero(none.sizes) <= 2


def test_requests_share_the_drafts_that_pay() -> None:
    """The likeliest come first, whoever has them; there is no more than room."""
    speculation = adaptive()
    for n in (3, 3, 40, 40):
        speculation.took(3, n, n, 1.0 + n / 200)
    sure, unsure, none = Fixed(0.95), Fixed(0.3), Fixed(0.9, most=0)
    plan = speculation.plan([(unsure, 9), (sure, 9), (none, 9)], 40)
    assert [len(each) for each in plan] == [2, 9, 0]
    plan = speculation.plan([(unsure, 9), (sure, 9), (none, 9)], 4)
    assert [len(each) for each in plan] == [0, 4, 0]
    assert speculation.plan([(sure, 0), (sure, -3), (none, 9)], 40) == [[], [], []]
    assert speculation.plan([(sure, 9)] * 3, 0) == [[], [], []]


def test_the_limit_of_a_text_follows_its_guesses() -> None:
    """Of two texts under one model: one that repeats itself gets drafts, one that never does gets
    hardly any."""
    rng = np.random.default_rng(1)
    speculation = AdaptiveSpeculation(NgramDrafter(), clock=Clock())
    story = rng.integers(0, 40, 400).tolist()
    texts = {"copy": story, "new": rng.integers(0, 40, 400).tolist()}
    drafted = dict.fromkeys(texts, 0)
    total = dict.fromkeys(texts, 0.0)
    for name, text in texts.items():
        drafts, at = speculation.begin(story, SAMPLER), 0
        while at < len(text):
            [found] = speculation.plan([(drafts, len(text) - at - 1)], 511)
            n = next((i for i, t in enumerate(found) if t != text[at + i]), len(found)) + 1
            drafts.go_on(text[at : at + n])
            speculation.took(1, 1 + len(found), n, memory(1 + len(found)))
            total[name] += memory(1 + len(found))
            drafted[name] += len(found)
            at += n
        drafts.close()
    assert drafted["copy"] > 300 and len(story) / total["copy"] > 3
    assert drafted["new"] < 150 and len(story) / total["new"] > 0.97

"""How many drafts of each request the next pass checks, so that tokens come as fast as they can.

A pass of several tokens takes longer than one of a single token, on some devices hardly, on others
as many times. So both are measured: what passes take by their number of tokens, and how often
drafts are right. Where drafts lose more than they gain there are none, but for a rare try.

Tokens are those of plain decoding: each is drawn from its own logits, as ever, and drafts count up
to the first one that was not drawn (Leviathan et al. 2023; here without any other draw, since the
logits are exact in whatever pass).
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence

from lutra.serving.speculation.costs import PassCosts
from lutra.serving.speculation.drafts import Drafter, Drafts
from lutra.serving.speculation.plain import Speculation
from lutra.text.sampling import Sampler

__all__ = ["MOST_DRAFTS", "AdaptiveSpeculation"]

MOST_DRAFTS = 31
"""Drafts of a request in one pass."""
_SHARE = 0.01  # of the time of all passes, which drafts may lose
_CREDIT = 1.5  # passes that drafts may lose at first
_MOST_CREDIT = 12.0  # passes that drafts may lose after they have gained
_AGAIN = 0.25  # credit, in passes, from which on there are drafts again
_PLAIN_EVERY = 64  # passes, of which one shows what a pass without drafts takes
_MARGIN = 1.02  # gain that is expected of drafts at least
_DISTURBED = 1.5  # times as long as tokens one by one
_TRY = 0.5  # probability of drafts that are worth a try where so large passes are unknown


class AdaptiveSpeculation(Speculation):
    """Chooses the drafts of passes on one device, and learns from what they took.

    All requests share what passes take, and a credit: the passes' worth of time that drafts may
    still lose, which grows with time and with what they gain. Without credit nothing is guessed.
    ``clock`` gives the seconds that guessing itself takes.
    """

    def __init__(self, drafter: Drafter, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._drafter, self._clock = drafter, clock
        self._costs, self._lock = PassCosts(), threading.Lock()
        self._credit, self._paused, self._spent = _CREDIT, False, 0.0

    def begin(self, prompt: Sequence[int], sampler: Sampler, ends: Collection[int] = ()) -> Drafts:
        """Drafts of what follows ``prompt``, up to one of ``ends``, drawn by ``sampler``."""
        return self._drafter.begin(prompt, sampler, ends)

    def plan(self, requests: Sequence[tuple[Drafts, int]], room: int) -> list[list[int]]:
        """The drafts of each request that the next pass decodes, of which it can use so many;
        together no more than there is ``room`` for."""
        base = len(requests)
        with self._lock:
            age = self._costs.age(base)
            if self._paused or age is None or age > _PLAIN_EVERY:
                return [[] for _ in requests]
        start = self._clock()
        chances = [each.chances(max(min(most, MOST_DRAFTS), 0)) for each, most in requests]
        with self._lock:
            numbers = self._numbers(chances, room)
        drafts = [
            each.draft(n) if n else [] for (each, _), n in zip(requests, numbers, strict=True)
        ]
        with self._lock:
            self._spent += self._clock() - start
        return drafts

    def took(self, n_requests: int, n_tokens: int, n_made: int, seconds: float) -> None:
        """Note a pass over ``n_tokens``, drafts included, in which ``n_requests`` were given
        ``n_made`` tokens together."""
        with self._lock:
            if n_tokens == n_requests:
                self._costs.took(n_tokens, seconds)
                plain, gain = self._plain(n_requests), 0.0
            else:
                plain = self._plain(n_requests)  # known, as there are drafts
                # what takes longer than its tokens one by one was disturbed, guessing too
                seconds = min(seconds, _DISTURBED * plain * n_tokens / n_requests)
                self._costs.took(n_tokens, seconds)
                gain = plain * n_made / n_requests - seconds
            gain -= min(self._spent, plain * n_tokens / n_requests)
            self._spent = 0.0
            if plain > 0:
                self._credit += (_SHARE * min(seconds, plain) + gain) / plain
            self._credit = min(max(self._credit, -_CREDIT), _MOST_CREDIT)
            self._paused = self._credit < (_AGAIN if self._paused else 0.0)

    def _plain(self, n_requests: int) -> float:
        """Expected seconds of a pass without drafts."""
        [seconds] = self._costs.of(n_requests, 0)
        return seconds

    def _numbers(self, chances: Sequence[Sequence[float]], room: int) -> list[int]:
        """How many drafts of each request make most tokens a second."""
        base = len(chances)
        likely: list[tuple[float, int]] = []
        for i, each in enumerate(chances):
            p = 1.0
            for chance in each:
                p *= chance
                likely.append((p, i))
        # drafts of one request stay in their order, as each is at most as likely as the one before
        reach = self._costs.reach(base)
        likely = sorted(likely, key=lambda one: -one[0])[: min(max(room, 0), 2 * reach or 1)]
        seconds = self._costs.of(base, len(likely))
        affordable = (1 + self._credit) * seconds[0]
        expected, fastest, best = float(base), _MARGIN * base / seconds[0] if seconds[0] else 0.0, 0
        tries = not reach or self._costs.shares(base)
        for n, (p, _) in enumerate(likely, 1):
            expected += p
            took = seconds[n] + n * self._drafter.seconds_per_draft
            if took > affordable:
                break
            if expected > fastest * took:
                best, fastest = n, expected / took
            elif n > reach and tries and p >= _TRY:
                best = n  # so large a pass may take less than it seems
        numbers = [0] * base
        for _, i in likely[:best]:
            numbers[i] += 1
        return numbers

"""Continuous batching: requests that share passes over the weights, and come and go between them.

A pass has one token of every request that is past its prompt, and as many tokens of prompts as
leave the pass short enough: a long prompt is cut into chunks, and never stops the others
(Sarathi-Serve, Agrawal et al. 2024, sections 4.1 and 4.2). Where there are no tokens of prompts,
drafts may take part (:mod:`lutra.serving.speculation`). Since logits are exact whatever shares a
pass, a request's tokens are those that it has alone.
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from lutra.devices.base import StepResult
from lutra.devices.pages import NoRoom
from lutra.serving.chunks import PromptPace
from lutra.serving.loaded import LoadedModel
from lutra.serving.prefixes import LEAST_PREFIX, KnownPrefixes, common_prefix
from lutra.serving.results import RunStats
from lutra.serving.sequence import Mismatch, TokenSequence, run_together
from lutra.serving.speculation.drafts import Drafts, NoDrafts
from lutra.serving.speculation.draw import draw
from lutra.text.sampling import Sampler
from lutra_golden.errors import LutraError

__all__ = ["MOST_AT_ONCE", "Batch", "Places", "Request"]

MOST_AT_ONCE = 256
"""Requests on the device at a time, unless a batch says otherwise."""

_Part = tuple[TokenSequence, Sequence[int], int, int]


@dataclass(eq=False, kw_only=True)
class Request:
    """A prompt to go on from.

    ``accept`` gets each token as it is made and the result that it was drawn from, in the thread
    that runs the batch, and says whether it was the last; ``ended`` is called once, after that,
    with None or with what the request failed of. A request of higher ``priority`` goes first.
    Nothing is drafted behind ``max_tokens`` tokens, or behind one of ``ends``: give those that
    ``accept`` ends at, where they are known. What the batch notes here is its own: when the request
    ``arrived``, its ``sequence``, the ``next_token`` to go on with, and its ``drafts``; ``again``
    are the tokens that are to be computed once more if it has given its memory to others.
    """

    prompt: Sequence[int]
    sampler: Sampler
    accept: Callable[[int, StepResult], bool]
    ended: Callable[[BaseException | None], None] = lambda error: None
    priority: int = 0
    stats: RunStats = field(default_factory=RunStats)
    max_tokens: int | None = None
    ends: Collection[int] = ()
    arrived: float = field(default=0.0, init=False)
    cancelled: bool = field(default=False, init=False)
    sequence: TokenSequence | None = field(default=None, init=False, repr=False)
    next_token: int | None = field(default=None, init=False, repr=False)
    drafts: Drafts = field(default_factory=NoDrafts, init=False, repr=False)
    again: Sequence[int] = field(default=(), init=False, repr=False)

    @property
    def text(self) -> Sequence[int]:
        """Tokens that are computed before others are made: the prompt, or more of them again."""
        return self.again or self.prompt

    @property
    def left(self) -> int:
        """Tokens of the text that are still to be computed."""
        done = 0 if self.sequence is None else len(self.sequence.tokens)
        return max(len(self.text) - done, 0)

    @property
    def goes_on(self) -> bool:
        """True if its next step is its next token."""
        return self.next_token is not None and not self.again


class Places:
    """Room for ``most`` requests at a time, in one batch or in several of a device."""

    def __init__(self, most: int) -> None:
        self._left, self._lock = most, threading.Lock()

    def take(self) -> bool:
        """Take a place; False if there is none."""
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True

    def give(self) -> None:
        """Give a place back."""
        with self._lock:
            self._left += 1


class Batch:
    """Requests on one loaded model; one thread at a time runs its passes.

    At most ``most`` requests are on the device at a time, fewer where it has no memory for more
    sessions; the others wait. Of those that wait, and of prompts under way, the one with the
    highest priority goes first, then the one whose prompt takes least beyond the time it has
    waited already: short prompts pass long ones, and none waits for ever. A request comes in as
    long as there is memory for its prompt, and for a step of each of the others. Should there be
    none for a pass, the last in that order gives its memory up, and waits: what it had is computed
    once more then. ``clock`` gives seconds.
    A request that is past its prompt is given to ``hand_on``, if there is one, to go on elsewhere.
    ``others`` counts requests of other batches on the device, which will leave room, too, and
    ``places`` are those that they share, if there are fewer than of all of them together.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        most: int = MOST_AT_ONCE,
        *,
        clock: Callable[[], float] = time.perf_counter,
        hand_on: Callable[[Request], None] | None = None,
        others: Callable[[], int] = lambda: 0,
        places: Places | None = None,
    ) -> None:
        self._loaded, self._most, self._clock = loaded, most, clock
        self._hand_on, self._others = hand_on, others
        self._places = Places(most) if places is None else places
        self.blocked = False
        """True if requests wait, and none is here, for those of other batches to leave room."""
        self._lock = threading.Lock()
        self._waiting: list[Request] = []
        self._adopted: list[Request] = []
        self._running: list[Request] = []
        self.pace = PromptPace()
        """Seconds of prompts, measured."""
        self.passes = 0
        """Passes so far."""

    def add(self, request: Request) -> None:
        """Let a request take part from the next pass on; from any thread."""
        if not request.prompt:
            raise LutraError("the prompt of a request has no tokens: give at least one")
        request.arrived = self._clock()
        with self._lock:
            self._waiting.append(request)

    def adopt(self, request: Request) -> None:
        """Let a request of another batch on the same device go on here; from any thread."""
        with self._lock:
            self._adopted.append(request)

    def cancel(self, request: Request) -> None:
        """Let a request end before the next pass; from any thread. Nothing more is accepted."""
        request.cancelled = True

    @property
    def n_waiting(self) -> int:
        """Requests that are not yet on the device."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Requests that are on the device."""
        return len(self._running) + len(self._adopted)

    @property
    def has_news(self) -> bool:
        """True if requests have come that no pass has seen."""
        return bool(self._waiting or self._adopted)

    @property
    def known(self) -> KnownPrefixes:
        """Ended sequences that are kept for the prompts of later requests."""
        return self._loaded.known

    def step(self) -> bool:
        """Run one pass; False if there is nothing to do."""
        self._drop_cancelled()
        self._admit()
        while True:
            if not self._running:
                return False
            parts = self._parts()
            try:
                self._loaded.check()
                results, seconds = self._run([part for _, part in parts])
                break
            except NoRoom as error:
                if len(self._running) == 1 and not self._others():
                    self._end(self._running[0], error)
                    return True
                self._set_back(max(self._running, key=self._order))
                self.blocked = not self._running
            except BaseException as error:
                self._fail([request for request, _ in parts], error)
                raise
        self.passes += 1
        # of a pass, each request has taken the share of its tokens
        n_tokens = sum(len(tokens) for _, (_, tokens, *_) in parts)
        plain = all(request.goes_on for request, _ in parts)
        n_made, failed = 0, False
        for (request, part), result in zip(parts, results, strict=True):
            if isinstance(result, BaseException):
                failed = True
                self._end(request, result)
            else:
                n_made += self._take(request, part, result, seconds, len(part[1]) / n_tokens)
        if plain and not failed:
            self._loaded.speculation.took(len(parts), n_tokens, n_made, seconds)
        return True

    def close(self, error: BaseException | None = None) -> None:
        """End all requests, with ``error`` if there is one."""
        with self._lock:
            waiting, self._waiting = self._waiting + self._adopted, []
            self._adopted = []
        for request in waiting + list(self._running):
            self._end(request, error)

    # -- who takes part

    def _drop_cancelled(self) -> None:
        with self._lock:
            dropped = [each for each in self._waiting if each.cancelled]
            self._waiting = [each for each in self._waiting if not each.cancelled]
            self._running += self._adopted
            self._adopted = []
        for each in dropped + [each for each in self._running if each.cancelled]:
            self._end(each, None)

    def _admit(self) -> None:
        """Open sequences for those that wait, as long as the device has memory for them."""
        self.blocked = False
        while len(self._running) < self._most:
            with self._lock:
                ready = [each for each in self._waiting if not self._is_coming(each)]
                if not ready:
                    return
                request = min(ready, key=self._order)
            if not self._places.take():
                self.blocked = not self._running
                return
            try:
                self._begin(request)
            except LutraError as error:
                self._places.give()
                if self._running or self._others():
                    self.blocked = not self._running
                    return  # one of them will leave room
                failed = error
            else:
                failed = None
            with self._lock:
                self._waiting.remove(request)
            if failed is None:
                self._running.append(request)
            else:
                self._end(request, failed)

    def _is_coming(self, request: Request) -> bool:
        """True if a prompt under way begins like that of ``request``, which can copy it soon.

        One of lower priority may have to wait for others first.
        """
        for other in self._running:
            if other.priority < request.priority:
                continue
            shared = common_prefix(other.prompt, request.prompt[:-1])
            if shared >= LEAST_PREFIX and len(_tokens(other)) < shared:
                return True
        return False

    def _begin(self, request: Request) -> None:
        """A sequence that holds what is known of the text's beginning, of an ended sequence or of
        one that is under way, and has memory for all of it."""
        text = request.text
        shared = [common_prefix(_tokens(each), text[:-1]) for each in self._running]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        found = None
        if best is not None and shared[best] >= LEAST_PREFIX:
            source = self._running[best].sequence
            if source is not None and shared[best] > self._loaded.known.longest(text):
                found = self._loaded.fork(source, shared[best]), shared[best]
        sequence, n = found or self._loaded.begin(text)
        try:
            # one more for the first token, and a step of each of the others
            n_positions, spare = len(text) + 1, len(self._running)
            self._loaded.with_room(lambda: sequence.reserve(n_positions, spare))
        except BaseException:
            self._loaded.end(sequence)
            raise
        request.sequence = sequence
        if not request.again:
            request.stats.prompt_tokens, request.stats.reused_tokens = len(text), n
        request.stats.saturated |= sequence.saturated

    def _set_back(self, request: Request) -> None:
        """Give a request's memory to others; it waits, and computes again what it had."""
        sequence, request.sequence = request.sequence, None
        self._running.remove(request)
        if sequence is not None:
            if request.goes_on:
                request.again = list(sequence.tokens)
            self._places.give()
            sequence.close()
        with self._lock:
            self._waiting.append(request)

    def _order(self, request: Request) -> tuple[int, float]:
        """The least comes first."""
        # of all, the time that it is now would be taken off
        needed = request.left * (self.pace.token_s or 0.0)
        return -request.priority, request.arrived + needed

    # -- a pass

    def _parts(self) -> list[tuple[Request, _Part]]:
        """The parts of the next pass, at most one for each request."""
        parts: list[tuple[Request, _Part]] = [
            (each, (each.sequence, [each.next_token], 0, each.sampler.n_best))
            for each in self._running
            if each.sequence is not None and each.next_token is not None and each.goes_on
        ]
        if len(parts) == len(self._running):
            return self._with_drafts(parts)
        room = self.pace.room(self._loaded.device.pass_tokens, len(parts))
        for request in sorted(self._running, key=self._order):
            sequence = request.sequence
            if request.goes_on or sequence is None or not room:
                continue
            done = len(sequence.tokens)
            tokens = request.text[done : done + room]
            # what follows a text that is computed again is known
            last = request.next_token is None and done + len(tokens) == len(request.text)
            best = request.sampler.n_best
            parts.append((request, (sequence, tokens, len(tokens) - last, best)))
            room -= len(tokens)
        return parts

    def _with_drafts(self, parts: list[tuple[Request, _Part]]) -> list[tuple[Request, _Part]]:
        """Parts of requests that are all past their prompts, with drafts where these pay."""
        device = self._loaded.device
        wanted: list[tuple[Drafts, int]] = []
        for request, (sequence, *_) in parts:
            n, most = len(sequence.tokens), device.model.context
            if request.max_tokens is not None:
                most = min(len(request.prompt) + request.max_tokens - 1, most)
            wanted.append((request.drafts, most - n - 1))
        plan = self._loaded.speculation.plan(wanted, device.pass_tokens - len(parts))
        return [
            (request, (sequence, [*tokens, *drafts], 0, best))
            for (request, (sequence, tokens, _, best)), drafts in zip(parts, plan, strict=True)
        ]

    def _run(self, parts: Sequence[_Part]) -> tuple[list[StepResult | BaseException], float]:
        """Results of the parts, and the device's seconds; of those that fail when each runs alone,
        what they fail of."""
        n_prompt = sum(len(tokens) for _, tokens, *_ in parts if len(tokens) > 1)
        try:
            results, seconds = self._loaded.with_room(lambda: run_together(parts))
        except (Mismatch, NoRoom):
            raise  # of the former the sequences have gone on
        except LutraError as error:
            if len(parts) == 1:
                return [error], 0.0
            alone = [self._run([part]) for part in parts]
            return [result for [result], _ in alone], sum(seconds for _, seconds in alone)
        self.pace.took(n_prompt, seconds)
        return list(results), seconds

    def _take(
        self, request: Request, part: _Part, result: StepResult, seconds: float, share: float
    ) -> int:
        """Give a request its tokens, if its part of the pass gave some; how many it gave. Of the
        pass's ``seconds`` its ``share`` counts."""
        stats, (sequence, tokens, *_) = request.stats, part
        stats.saturated |= result.saturated
        stats.head += result.head
        if result.predicted_s is not None:
            stats.predicted_s = (stats.predicted_s or 0.0) + result.predicted_s * share
        if self._loaded.golden is not None:
            stats.bit_exact = True
        drafts = list[int]()
        if not request.goes_on:
            stats.computed_tokens += len(tokens)
            stats.prefill_s += seconds * share
            if request.again and not request.left:
                request.again = ()
            if not len(result.logits):
                return 0
        else:
            drafts = list(tokens[1:])
            stats.decode_s += seconds * share
        made: list[tuple[int, StepResult]] = []
        try:
            if request.next_token is None:
                request.drafts = self._loaded.speculation.begin(
                    request.prompt, request.sampler, request.ends
                )
            made = draw(result, request.sampler, drafts)
            if request.next_token is not None:
                # of its own token and the drafts, as many were processed as it was given
                sequence.truncate(len(sequence.tokens) - len(tokens) + len(made))
                stats.decode_steps += len(made)
                stats.drafted_tokens += len(drafts)
                stats.accepted_tokens += len(made) - 1
            request.drafts.go_on([token for token, _ in made])
            for token, drawn_from in made:
                request.next_token = token
                if request.cancelled or request.accept(token, drawn_from):
                    self._end(request, None)
                    return len(made)
        except Exception as error:
            self._end(request, error)
            return len(made)
        if self._hand_on is not None:
            self._running.remove(request)
            self._hand_on(request)
        return len(made)

    def _fail(self, requests: Sequence[Request], error: BaseException) -> None:
        for request in requests:
            self._end(request, error)

    def _end(self, request: Request, error: BaseException | None) -> None:
        """Take a request off the device; what it has computed is kept unless it failed."""
        sequence, request.sequence = request.sequence, None
        request.drafts.close()
        if request in self._running:
            self._running.remove(request)
        if sequence is not None:
            self._places.give()
            if error is None:
                self._loaded.end(sequence)
            else:
                sequence.close()
        request.ended(error)


def _tokens(request: Request) -> Sequence[int]:
    return () if request.sequence is None else request.sequence.tokens

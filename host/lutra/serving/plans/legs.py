"""Tokens on their way through layers that are divided: by layers, and by tokens in a pipeline."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutra.devices.base import StepResult
from lutra.serving.plans.layout import Route, Stage

__all__ = ["Leg", "Portion", "all_at_once", "chunk_size", "legs_of", "run_legs"]

_LEAST_CHUNK = 32  # tokens, as fewer would read the weights too often
_CHUNKS = 4  # of a prompt, for each stage of a pipeline


@dataclass(frozen=True)
class Leg:
    """Some layers of a stage, without a stop; ``is_all`` if they are all of them."""

    stage: Stage
    layers: range
    is_all: bool

    @property
    def sites(self) -> tuple[int, ...]:
        """The devices that compute them."""
        return self.stage.sites


@dataclass(frozen=True)
class Portion:
    """Tokens of one session, with logits from ``logits_from`` on; ``residual`` behind a leg."""

    tokens: Sequence[int]
    logits_from: int
    residual: NDArray[np.int32] | None = None

    def part(self, first: int, stop: int) -> "Portion":
        """Some of the tokens, before any leg."""
        tokens = self.tokens[first:stop]
        return Portion(tokens, min(max(self.logits_from - first, 0), len(tokens)))


Run = Callable[[Leg, Sequence[Portion]], list[StepResult]]
"""Runs a portion of each session on a leg."""


def legs_of(route: Route, *, by_layer: bool) -> list[Leg]:
    """The legs of a route: its stages, or its single layers."""
    parts = [(stage, stage.layers) for stage in route]
    if by_layer:
        parts = [(stage, range(i, i + 1)) for stage in route for i in stage.layers]
    return [Leg(stage, layers, len(parts) == 1) for stage, layers in parts]


def run_legs(
    legs: Sequence[Leg],
    portions: Sequence[Portion],
    run: Run,
    finished: Callable[[Leg], None],
) -> list[StepResult]:
    """Take a portion of each session through all legs; one result for each.

    Where legs are on different devices, many tokens are cut into chunks, which follow each other
    through the devices. ``finished`` is called when all tokens have passed a leg.
    """
    n_sites = len({leg.sites for leg in legs})
    chunks = _chunks(portions, n_sites) if n_sites > 1 else [list(portions)]
    done: list[list[StepResult]] = []
    if len(chunks) == 1:
        [chunk] = chunks
        results = list[StepResult]()
        for leg in legs:
            results = run(leg, chunk)
            finished(leg)
            chunk = _behind(chunk, results)
        done.append(results)
    else:
        done = _pipeline(legs, chunks, run, finished)
    return [_joined([each[i] for each in done]) for i in range(len(portions))]


def _chunks(portions: Sequence[Portion], n_stages: int) -> list[list[Portion]]:
    """Portions cut to as many tokens each, as long as there are any."""
    sizes = [len(portion.tokens) for portion in portions]
    longest, size = max(sizes), chunk_size(sizes, n_stages)
    return [
        [portion.part(first, first + size) for portion in portions]
        for first in range(0, longest, size)
    ]


def chunk_size(sizes: Sequence[int], n_stages: int) -> int:
    """Tokens of each session in a chunk, of ``sizes`` that go through a pipeline together."""
    n = max(1, min(_CHUNKS * n_stages, sum(sizes) // _LEAST_CHUNK))
    return -(-max(sizes) // n)


def _pipeline(
    legs: Sequence[Leg],
    chunks: Sequence[Sequence[Portion]],
    run: Run,
    finished: Callable[[Leg], None],
) -> list[list[StepResult]]:
    """Results of the chunks, each leg in a thread of its own."""
    waiting: list[queue.Queue[Sequence[Portion] | None]] = [queue.Queue() for _ in legs]
    done: list[list[StepResult]] = []
    errors: list[BaseException] = []
    for chunk in chunks:
        waiting[0].put(chunk)

    def work(i: int) -> None:
        try:
            for _ in chunks:
                chunk = waiting[i].get()
                if chunk is None or errors:
                    raise _Stopped
                results = run(legs[i], chunk)
                if i + 1 < len(legs):
                    waiting[i + 1].put(_behind(chunk, results))
                else:
                    done.append(results)
            finished(legs[i])
        except _Stopped:
            pass
        except BaseException as error:
            errors.append(error)
        finally:
            if i + 1 < len(legs):
                waiting[i + 1].put(None)

    all_at_once([lambda i=i: work(i) for i in range(len(legs))])
    if errors:
        raise errors[0]
    return done


class _Stopped(Exception):
    """The leg before has failed."""


def _behind(chunk: Sequence[Portion], results: Sequence[StepResult]) -> list[Portion]:
    """The portions behind a leg."""
    return [
        replace(portion, residual=result.residual)
        for portion, result in zip(chunk, results, strict=True)
    ]


def _joined(results: Sequence[StepResult]) -> StepResult:
    """One result of those of consecutive chunks."""
    if len(results) == 1:
        return results[0]
    cycles = [each.cycles for each in results if each.cycles is not None]
    return StepResult(
        logits=np.concatenate([each.logits for each in results]),
        scale=np.concatenate([each.scale for each in results]),
        argmax=np.concatenate([each.argmax for each in results]),
        saturated=any(each.saturated for each in results),
        cycles=sum(cycles) if cycles else None,
    )


def all_at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Call all, one or more, each in a thread, the last one in this; raise the first error when all
    are done."""
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    *others, last = calls
    threads = [threading.Thread(target=guarded, args=(call,)) for call in others]
    for thread in threads:
        thread.start()
    guarded(last)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]

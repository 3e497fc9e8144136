"""Generations of several prompts at once, as requests of a batch."""

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import replace

from lutra.devices.base import DeviceError, StepResult
from lutra.serving.batch import Batch, Request
from lutra.serving.engine import own_engine
from lutra.serving.generation import Generation, Writer
from lutra.serving.loaded import LoadedModel
from lutra.serving.results import Completion, Piece, RunStats
from lutra.text.tokenizer import Tokenizer

__all__ = ["complete_all", "requests_of"]


def requests_of(
    generation: Generation,
    tokenizer: Tokenizer,
    ends: Collection[int],
    take: Callable[[Piece, Completion | None], None],
    ended: Callable[[BaseException | None], None],
    priority: int = 0,
) -> list[Request]:
    """Requests of all ``n`` completions of a prompt.

    ``take`` gets each piece, and with the last one of a completion that; ``ended`` is called once
    for each request.
    """

    def request(index: int) -> Request:
        stats = RunStats(prompt_tokens=len(generation.prompt))
        writer = Writer(generation, index, stats, tokenizer, ends)

        def accept(token: int, result: StepResult) -> bool:
            take(writer.push(token, result), writer.completion)
            return writer.completion is not None

        return Request(
            prompt=generation.prompt,
            sampler=writer.sampler,
            accept=accept,
            ended=ended,
            priority=priority,
            stats=stats,
            max_tokens=generation.max_tokens,
            ends=ends,
        )

    return [request(index) for index in range(generation.sampling.n)]


def complete_all(
    loaded: LoadedModel,
    generations: Sequence[Generation],
    tokenizer: Tokenizer,
    ends_of: Callable[[Generation], Collection[int]],
) -> list[Completion]:
    """The completions of all prompts, in their order, each with its ``alternatives``; ``ends_of``
    gives the tokens that end each.

    Raises the first error of a request, when all have ended.
    """
    requests, errors = list[Request](), list[BaseException]()
    left = threading.Semaphore(0)
    found: list[dict[int, Completion]] = [{} for _ in generations]

    def ended(error: BaseException | None) -> None:
        if error is not None:
            errors.append(error)
        left.release()

    for generation, own in zip(generations, found, strict=True):

        def take(
            piece: Piece, completion: Completion | None, own: dict[int, Completion] = own
        ) -> None:
            if completion is not None:
                own[piece.index] = completion

        requests += requests_of(generation, tokenizer, ends_of(generation), take, ended)
    engine = own_engine(loaded)
    if engine is not None:
        with closing(engine):
            for request in requests:
                engine.submit(request)
            for _ in requests:
                left.acquire()
    else:
        _run(Batch(loaded), requests)
    if errors:
        # what the device says comes first: another one may take its place
        raise next((each for each in errors if isinstance(each, DeviceError)), errors[0])
    lists = [[own[index] for index in sorted(own)] for own in found]
    return [replace(first, alternatives=others) for first, *others in lists]


def _run(batch: Batch, requests: Sequence[Request]) -> None:
    """Run all requests here, in this thread."""
    for request in requests:
        batch.add(request)
    try:
        while batch.step():
            pass
    finally:
        batch.close()

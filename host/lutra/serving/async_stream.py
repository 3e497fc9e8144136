"""A generation in progress for a coroutine."""

import asyncio
from collections.abc import Collection

from lutra.serving.engine import Engine
from lutra.serving.generation import Generation
from lutra.serving.results import Completion, Piece
from lutra.serving.together import requests_of
from lutra.text.tokenizer import Tokenizer
from lutra_golden.errors import LutraError

__all__ = ["AsyncStream"]


class AsyncStream:
    """Pieces of a generation that takes part in a batch: ``async for piece in stream``.

    Of several completions of the prompt (``n``) pieces come as they are made, told apart by their
    ``index``. The requests begin with the first piece that is asked for, in the event loop that
    asks. Requests end when the stream does, is closed, or is dropped by a task that is cancelled.
    """

    def __init__(
        self,
        engine: Engine,
        generation: Generation,
        tokenizer: Tokenizer,
        ends: Collection[int],
        priority: int,
    ) -> None:
        self._engine, self._generation = engine, generation
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        self._found: dict[int, Completion] = {}
        self._requests = requests_of(
            generation, tokenizer, ends, self._take, self._arrive, priority
        )
        self._left, self._closed = len(self._requests), False

    @property
    def completions(self) -> list[Completion]:
        """The completions that have ended, in the order of their ``index``."""
        return [self._found[index] for index in sorted(self._found)]

    def __aiter__(self) -> "AsyncStream":
        return self

    async def __anext__(self) -> Piece:
        if self._closed:
            raise LutraError("the stream is closed: start another one")
        try:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
                for request in self._requests:
                    self._engine.submit(request)
            while self._left:
                found = await self._arrived.get()
                if isinstance(found, Piece):
                    return found
                self._left -= 1
                if found is not None:
                    raise found
        except BaseException:
            self.close()
            raise
        raise StopAsyncIteration

    def close(self) -> None:
        """End the generation here; its LLM keeps what was computed."""
        self._closed = True
        for request in self._requests:
            self._engine.cancel(request)

    # -- in the thread of the batch

    def _take(self, piece: Piece, completion: Completion | None) -> None:
        if completion is not None:
            self._found[piece.index] = completion
        self._arrive(piece)

    def _arrive(self, found: Piece | BaseException | None) -> None:
        assert self._loop is not None, "its requests were submitted there"
        try:
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, found)
        except RuntimeError:
            self.close()  # the event loop has ended, so nobody waits

"""A generation in progress: an iterator of pieces that raises when it cannot continue."""

from collections.abc import Generator

from lutra.closing import Closing
from lutra.process_lock import ProcessLock
from lutra.serving.generation import Generation
from lutra.serving.loaded import FORKED
from lutra.serving.results import Completion, Piece, RunStats
from lutra_golden.errors import LutraError

__all__ = ["Stream"]


class Stream(Closing):
    """Pieces of a generation, computed on demand, with its statistics in :attr:`stats`.

    Of several completions of the prompt (``n``) the pieces come one completion after another.

    Any thread may ask for the next one. A stream that was closed, or that an exception ended,
    raises LutraError when it is asked.
    """

    def __init__(self, pieces: Generator[Piece], generation: Generation) -> None:
        self._pieces, self._generation, self._closed = pieces, generation, False
        self._process = ProcessLock()

    @property
    def stats(self) -> RunStats:
        """Statistics of the completion that the pieces are of."""
        return self._generation.stats

    @property
    def completions(self) -> list[Completion]:
        """The completions that have ended: one, or ``n``, when all pieces have come."""
        return list(self._generation.completions)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Piece:
        if self._process.is_foreign():
            raise LutraError(FORKED)
        with self._process.lock:
            if self._closed:
                raise LutraError("the stream is closed: start another one")
            try:
                return next(self._pieces)
            except StopIteration:
                raise
            except BaseException:
                self._closed = True
                raise

    def close(self) -> None:
        """End the generation here; its LLM keeps the tokens computed so far."""
        if self._process.is_foreign():
            return  # a thread of the parent may have been in it, for ever
        with self._process.lock:
            self._closed = True
            self._pieces.close()

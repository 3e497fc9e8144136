"""A generation in progress: an iterator of pieces that raises when it cannot continue."""

from collections.abc import Generator

from lutra.closing import Closing
from lutra.process_lock import ProcessLock
from lutra.serving.loaded import FORKED
from lutra.serving.results import Piece, RunStats
from lutra_golden.errors import LutraError

__all__ = ["Stream"]


class Stream(Closing):
    """Pieces of a generation, computed on demand, with its statistics in :attr:`stats`.

    Any thread may ask for the next one. A stream that was closed, or that an exception ended,
    raises LutraError when it is asked.
    """

    def __init__(self, pieces: Generator[Piece], stats: RunStats) -> None:
        self.stats = stats
        self._pieces, self._closed = pieces, False
        self._process = ProcessLock()

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

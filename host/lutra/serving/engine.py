"""A thread that runs a batch for as long as it has requests."""

import threading
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lutra.process_lock import ProcessLock
from lutra.serving.batch import MOST_AT_ONCE, Batch, Request
from lutra.serving.loaded import FORKED, LoadedModel
from lutra.serving.prefixes import KnownPrefixes
from lutra_golden.errors import LutraError

__all__ = ["BatchEngine", "Engine", "OwnEngine", "make_engine", "own_engine"]

_RETRY_S = 0.01  # until another thread's requests may have left room


class Engine(Protocol):
    """Takes requests from any thread, and runs them in its own."""

    @property
    def n_waiting(self) -> int:
        """Requests that are not yet on the device."""
        ...

    @property
    def n_running(self) -> int:
        """Requests that are on the device."""
        ...

    @property
    def known(self) -> Sequence[KnownPrefixes]:
        """What is kept of ended sequences, for the prompts of later requests."""
        ...

    @property
    def ended(self) -> bool:
        """True if no more requests are taken."""
        ...

    def submit(self, request: Request) -> None:
        """Let a request take part; LutraError if the engine has ended."""
        ...

    def cancel(self, request: Request) -> None:
        """Let a request end before the next pass."""
        ...

    def close(self) -> None:
        """End all requests with an error, and the threads."""
        ...


@runtime_checkable
class OwnEngine(Protocol):
    """A device of several, which has a thread for each kind of work."""

    def make_engine(self, loaded: LoadedModel, most: int) -> Engine:
        """An engine for the model that it has loaded, of at most so many requests at a time."""
        ...


def own_engine(loaded: LoadedModel, most: int = MOST_AT_ONCE) -> Engine | None:
    """The engine that the device of a loaded model brings, unless its results are checked."""
    device = loaded.device
    if loaded.golden is None and isinstance(device, OwnEngine):
        return device.make_engine(loaded, most)
    return None


def make_engine(loaded: LoadedModel, most: int = MOST_AT_ONCE) -> Engine:
    """The engine of a loaded model: its device's own, or one thread with a batch of at most so many
    requests."""
    return own_engine(loaded, most) or BatchEngine(Batch(loaded, most))


class BatchEngine:
    """Runs the passes of ``batch`` in a thread of its own, which waits while there is nothing.

    Requests come from any thread; what they are given is given in that one thread. An error that is
    not one request's alone ends all of them, and those that come later get it, too.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch, self._process = batch, ProcessLock()
        self._work = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lutra batch", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Requests that are not yet on the device."""
        return self._batch.n_waiting

    @property
    def n_running(self) -> int:
        """Requests that are on the device."""
        return self._batch.n_running

    @property
    def known(self) -> Sequence[KnownPrefixes]:
        """What is kept of ended sequences, for the prompts of later requests."""
        return [self._batch.known]

    @property
    def ended(self) -> bool:
        """True if no more requests are taken."""
        return self._error is not None

    def submit(self, request: Request) -> None:
        """Let a request take part; LutraError if the engine has ended."""
        if self._process.is_foreign():
            raise LutraError(FORKED)
        with self._work:
            if self._error is not None:
                raise LutraError(f"requests are no longer taken: {self._error}") from self._error
            self._batch.add(request)
            self._work.notify()

    def adopt(self, request: Request) -> None:
        """Let a request of another engine on the same device go on here; it ends with the error if
        this one has ended."""
        with self._work:
            error = self._error
            if error is None:
                self._batch.adopt(request)
                self._work.notify()
        if error is not None:
            request.ended(error)

    @property
    def n_requests(self) -> int:
        """Requests that wait or run."""
        return self.n_waiting + self.n_running

    def cancel(self, request: Request) -> None:
        """Let a request end before the next pass."""
        self._batch.cancel(request)
        if not self._process.is_foreign():
            with self._work:
                self._work.notify()

    def close(self) -> None:
        """End all requests with an error, and the thread after the pass that it is in."""
        self._stop(LutraError("the model was closed: load it again"))
        if not self._process.is_foreign() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _stop(self, error: BaseException) -> None:
        if self._process.is_foreign():
            return  # the thread is the parent's
        with self._work:
            self._error = self._error or error
            self._work.notify()

    def _run(self) -> None:
        try:
            while self._error is None:
                if self._batch.step():
                    continue
                with self._work:
                    if self._batch.blocked:
                        self._work.wait(_RETRY_S)
                    while self._error is None and not self._batch.has_news:
                        self._work.wait()
        except BaseException as error:  # those who wait for tokens get it
            self._stop(error)
        self._batch.close(self._error)

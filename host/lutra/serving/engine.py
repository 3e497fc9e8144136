"""A thread that runs a batch for as long as it has requests."""

import threading

from lutra.process_lock import ProcessLock
from lutra.serving.batch import Batch, Request
from lutra.serving.loaded import FORKED
from lutra_golden.errors import LutraError

__all__ = ["BatchEngine"]


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
                    while self._error is None and not self._batch.n_waiting:
                        self._work.wait()
        except BaseException as error:  # those who wait for tokens get it
            self._stop(error)
        self._batch.close(self._error)

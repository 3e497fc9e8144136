"""Progress of long steps: a bar with an estimate on a terminal, lines of text elsewhere."""

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["StepProgress"]

_LINE_S, _STILL_S = 10.0, 60.0
"""Seconds between lines: of a stage that gets on, of one that does not."""


class StepProgress:
    """Call it with what is being done and the fraction done; it shows a bar.

    Use as a context manager; output goes to standard error.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._started = self._last_line = 0.0
        self._first = self._last = 0.0

    def __enter__(self) -> "StepProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def pause(self) -> None:
        """Take the bar away, so that a line can be printed; the next report shows it again."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    @contextmanager
    def waiting(self, stage: str, fraction: float) -> Generator[None]:
        """Report a stage that itself reports nothing, again and again while it lasts."""
        over = threading.Event()

        def report() -> None:
            while not over.wait(1.0):
                self(stage, fraction)

        self(stage, fraction)
        thread = threading.Thread(target=report, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def __call__(self, stage: str, fraction: float) -> None:
        """Report that ``fraction`` (0 to 1) of ``stage`` is done."""
        now = time.monotonic()
        if stage != self._stage:
            self._stop()
            self._stage, self._started, self._last_line = stage, now, now
            # a stage may be the middle part of something longer
            self._first = self._last = fraction
        if self._console.is_terminal:
            self._show(fraction)
        elif now - self._last_line >= (_LINE_S if fraction > self._last else _STILL_S):
            # by its speed so far, which a stage that stands still does not have
            left = f"still running after {now - self._started:.0f} s"
            if fraction > self._last:
                speed = (fraction - self._first) / (now - self._started)
                left = f"about {(1 - fraction) / speed:.0f} s left"
            print(f"{stage}: {fraction:.0%}, {left}", file=sys.stderr, flush=True)
            self._last, self._last_line = fraction, now

    def _show(self, fraction: float) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(self._stage, total=1.0)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=min(fraction, 1.0), description=self._stage)

"""A gate in a device's passes: what a test sees is what is there, however fast anything runs."""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from lutra.devices.base import BaseDevice, Chunk, Device, PassResult, Step, StepResult

__all__ = ["WAIT_S", "Gate", "gated", "until"]

WAIT_S = 60
"""Far beyond what anything here takes."""


class Gate:
    """Holds passes from number ``at`` on, which is 1 for the next one, until it is opened."""

    def __init__(self, at: int) -> None:
        self.passes = 0
        """Passes that have begun; the one that is held is the last of them."""
        self._at, self._go, self._lock = at, threading.Event(), threading.Lock()

    @property
    def holds(self) -> bool:
        """True if a pass is held."""
        return self.passes >= self._at and not self._go.is_set()

    def open(self) -> None:
        """Let all passes go on."""
        self._go.set()

    def enter(self) -> None:
        """Begin a pass, in the thread that runs it; AssertionError if the gate stays shut."""
        with self._lock:  # before a device is taken, several threads may come at once
            self.passes += 1
            number = self.passes
        assert number < self._at or self._go.wait(WAIT_S)


@contextmanager
def gated(device: Device, at: int = 1, *, taken: bool = True) -> Generator[Gate]:
    """A gate in a device of any kind, open and gone at the end.

    Other threads do not have the device while a pass is held in it, unless it is held before the
    device is ``taken``: then runs count instead of passes. Shares of passes count as passes do;
    greedy tokens that a device makes by itself do not.
    """
    assert isinstance(device, BaseDevice)
    gate, run = Gate(at), device._run

    def run_gated(
        steps: Sequence[Step],
        run_pass: Callable[[Sequence[Chunk]], PassResult],
        pass_tokens: int,
        rows: range | None,
    ) -> list[StepResult]:
        if not taken:
            gate.enter()
            return run(steps, run_pass, pass_tokens, rows)

        def run_one(chunks: Sequence[Chunk]) -> PassResult:
            gate.enter()
            return run_pass(chunks)

        return run(steps, run_one, pass_tokens, rows)

    device._run = run_gated
    try:
        yield gate
    finally:
        gate.open()
        del device._run


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    pause = threading.Event()
    for _ in range(WAIT_S * 100):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("it never held")

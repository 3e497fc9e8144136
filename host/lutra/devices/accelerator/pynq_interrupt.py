"""The interrupt of a board with PYNQ: a wait for it ends with the run that it is of."""

import asyncio
from typing import Any

__all__ = ["PynqInterrupt", "event_loop"]

# an interrupt belongs to the loop in which PYNQ opened it, and PYNQ keeps it for ever
_loops: list[asyncio.AbstractEventLoop] = []


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop in which interrupts are opened and awaited."""
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    return _loops[0]


class PynqInterrupt:
    """An interrupt as PYNQ's ``pin``, of an overlay until that is loaded again.

    PYNQ has lists of those who wait: of each interrupt controller, and of the system's device. They
    stay there until an interrupt comes, whatever became of them, and one that is left over from
    another run or overlay takes the next interrupt for itself. So a wait that is given up is taken
    off the lists.
    """

    def __init__(self, pin: Any) -> None:
        self._pin = pin
        self._task: asyncio.Task[None] | None = None

    @property
    def is_valid(self) -> bool:
        """False once PYNQ has loaded another overlay in this process."""
        return self._pin.parent() is not None

    def wait(self, seconds: float) -> bool:
        """Wait for the interrupt, for a while; true if it came."""
        loop = event_loop()
        if self._task is None:
            self._task = loop.create_task(self._pin.wait())
        done, _ = loop.run_until_complete(asyncio.wait({self._task}, timeout=max(seconds, 0)))
        if done:
            task, self._task = self._task, None
            task.result()
        return bool(done)

    def give_up(self) -> None:
        """Wait no longer: the run is over, or the overlay."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._pin.waiting = False
        parent = self._pin.parent()
        if parent is not None:
            _take_off(parent, self._pin.event, self._pin.number)

    def renewed(self, path: str) -> "PynqInterrupt":
        """The same interrupt of the overlay, at ``path`` of it, after it was loaded again."""
        return PynqInterrupt(type(self._pin)(path))


def _take_off(parent: Any, waiter: Any, number: int) -> None:
    """Take ``waiter`` off the list of ``parent`` for its input ``number``, and a controller that
    nobody waits at off the list of its own parent."""
    if not hasattr(parent, "wait_handles"):
        # the system's device
        parent.wait_events = [each for each in parent.wait_events if each is not waiter]
        return
    handles = parent.wait_handles
    handles[number] = [each for each in handles[number] if each is not waiter]
    parent.event_number = sum(map(len, handles))
    if not parent.event_number:
        _take_off(parent.parent, parent, parent.number)

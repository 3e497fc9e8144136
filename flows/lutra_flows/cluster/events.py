"""Time that goes from one event to the next.

A heap of calls is all that a cluster needs: nothing here waits in the middle of a function, so that
processes of a simulation library (SimPy) would cost several times as much, and explain no more.
"""

import heapq
from collections.abc import Callable
from itertools import count

__all__ = ["Clock", "Event"]


class Event:
    """A call to come; :meth:`cancel` takes it off."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Let it not happen."""
        self.call = None


class Clock:
    """``now`` in seconds, and the calls to come; those of one time in the order they were made."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Event]] = []
        self._order = count()

    def at(self, time: float, call: Callable[[], object]) -> Event:
        """Let ``call`` happen at ``time``, which has not passed."""
        if time < self.now:
            raise ValueError(f"time {time} has passed: it is {self.now}")
        event = Event(call)
        heapq.heappush(self._heap, (time, next(self._order), event))
        return event

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Let everything happen that there is, and that comes of it, as long as not ``until``."""
        while self._heap and not until():
            time, _, event = heapq.heappop(self._heap)
            if event.call is not None:
                self.now = time
                event.call()

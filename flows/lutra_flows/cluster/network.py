"""The way between devices: each has one port in each direction, on which transfers take turns."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lutra.serving.plans.profile import LinkProfile
from lutra_flows.cluster.events import Clock

if TYPE_CHECKING:
    from lutra_flows.cluster.instance import Instance

__all__ = ["Network"]


class Network:
    """Transfers between instances, each of which takes both ports for as long as ``link`` says."""

    def __init__(self, clock: Clock, link: LinkProfile) -> None:
        self._clock, self.link = clock, link
        self._free: dict[tuple[Instance, str], float] = {}
        self.n_bytes = 0
        """Bytes so far."""
        self.busy: dict[Instance, float] = {}
        """Seconds for which each instance has sent."""

    def send(
        self, source: "Instance", target: "Instance", n_bytes: int, arrived: Callable[[], None]
    ) -> None:
        """Send bytes when both ports are free."""
        out, into = (source, "out"), (target, "in")
        begin = max(self._clock.now, self._free.get(out, 0.0), self._free.get(into, 0.0))
        seconds = self.link.seconds(n_bytes)
        self._free[out] = self._free[into] = begin + seconds
        self.n_bytes += n_bytes
        self.busy[source] = self.busy.get(source, 0.0) + seconds
        self._clock.at(begin + seconds, arrived)

"""Brings keys and values of sessions to the devices that need them next."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from lutra.devices.base import DeviceError
from lutra.serving.plans.carriers import Carrier
from lutra.serving.plans.layout import Route
from lutra.serving.plans.live import LiveDevices, SiteFailed
from lutra.serving.plans.session import Part, PlannedSession
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import SequenceKv

__all__ = ["KvMover", "common_layers"]


class KvMover:
    """Moves keys and values between ``live`` devices over ``carrier``; each has a thread for what
    comes to it."""

    def __init__(self, live: LiveDevices, carrier: Carrier) -> None:
        self._live, self._carrier = live, carrier
        self._lock = threading.Lock()
        self._links: dict[int, ThreadPoolExecutor] = {}

    def close(self) -> None:
        """End the threads when what is under way has arrived."""
        with self._lock:
            links, self._links = self._links, {}
        for each in links.values():
            each.shutdown(wait=True)

    def part(self, session: PlannedSession, site: int) -> Part:
        """The part of a session on a device, which is opened there if it is not yet."""
        if site not in session.parts:
            with self._live.on(site) as device:
                session.parts[site] = Part(device.session(), [0] * session.plan.n_layers)
        return session.parts[site]

    def settle(self, session: PlannedSession, site: int) -> None:
        """Wait for what is under way to a device."""
        part = session.parts[site]
        arriving, part.arriving = part.arriving, []
        errors = [error for error in (each.exception() for each in arriving) if error is not None]
        for error in errors:
            if isinstance(error, DeviceError):
                raise SiteFailed(site, error) from error
            raise error

    def cut(self, session: PlannedSession, site: int, n: int) -> None:
        """Drop what a device has behind the first ``n`` positions."""
        self.settle(session, site)
        with self._live.on(site):
            session.parts[site].cut(n)

    def prepare(self, session: PlannedSession, route: Route, n: int, coming: int) -> Sequence[int]:
        """Have the first ``n`` positions, no more and no less, where ``route`` needs them.

        What is missing is brought from devices that have it, unless it is no more than what is
        ``coming``. The tokens come back that are to be computed on the route first.
        """
        sites = {site for stage in route for site in stage.sites}
        for site in sites:
            self.part(session, site)
            self.cut(session, site, n)
        if n - _least(session, route) > coming:
            for stage in route:
                for site in stage.sites:
                    self._fetch(session, site, stage.layers, n)
        least = _least(session, route)
        if least == n:
            return []
        tokens = session.known(least, n)
        if tokens is None:
            raise LutraError(
                "keys and values that were restored are lost with their device: restore them again"
            )
        for site in sites:
            self.cut(session, site, least)
        return tokens

    def send(self, session: PlannedSession, sites: Sequence[int], layers: range) -> None:
        """Send layers that are finished on ``sites`` on to where answers need them, in the
        background.

        They are exported here: the next layer would keep the device busy.
        """
        source = session.parts[sites[0]]
        for stage in session.plan.decode:
            wanted = common_layers(stage.layers, layers)
            for site in stage.sites if wanted else ():
                if site in sites:
                    continue
                target = session.parts[site]
                with self._live.on(sites[0]):
                    kv = source.session.export(wanted)
                target.arriving.append(self._link(site).submit(self._carry, target, kv))

    def _carry(self, target: Part, kv: SequenceKv) -> None:
        target.restore(self._carrier.carry(kv))

    def _fetch(self, session: PlannedSession, to: int, layers: range, n: int) -> None:
        """Bring what a device lacks of some layers from devices that have it."""
        target = session.parts[to]
        for site, part in list(session.parts.items()):
            if site == to:
                continue
            self.settle(session, site)
            missing = [i for i in layers if target.lengths[i] < n <= part.lengths[i]]
            for first, stop in _runs(missing):
                with self._live.on(site):
                    part.cut(n)
                    kv = part.session.export(range(first, stop))
                with self._live.on(to):
                    self._carry(target, kv)

    def _link(self, site: int) -> ThreadPoolExecutor:
        with self._lock:
            if site not in self._links:
                name = f"lutra to {self._live.labels[site]}"
                self._links[site] = ThreadPoolExecutor(1, name)
            return self._links[site]


def common_layers(a: range, b: range) -> range:
    """Numbers that are in both ranges."""
    first = max(a.start, b.start)
    return range(first, max(min(a.stop, b.stop), first))


def _least(session: PlannedSession, route: Route) -> int:
    """Positions that all layers of a route have at least."""
    return min(
        session.parts[site].lengths[i]
        for stage in route
        for site in stage.sites
        for i in stage.layers
    )


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First numbers and ends of consecutive ones."""
    if not numbers:
        return []
    starts = [b for a, b in pairwise(numbers) if b != a + 1]
    stops = [a + 1 for a, b in pairwise(numbers) if b != a + 1]
    return list(zip([numbers[0], *starts], [*stops, numbers[-1] + 1], strict=True))

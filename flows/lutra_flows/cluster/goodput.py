"""Requests per second that a cluster serves within an SLO."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from lutra.serving.plans.search import Slo
from lutra_flows.cluster.cluster import Cluster, attains, simulate
from lutra_flows.cluster.policies import DistServe, PolicyMaker, Splitwise
from lutra_flows.cluster.trace import Arrival, TraceShape, make_trace

__all__ = ["ATTAINED", "Load", "best_division", "capacity", "goodput"]

ATTAINED = 0.9
"""Share of requests that must meet both parts of the SLO (DistServe, section 4)."""
_ERROR = 0.02  # of a rate
_PER_DEVICE = 8  # requests at least, so that all of many devices are busy


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests of a ``shape`` that are to meet ``slo``: as many as come in ``seconds``, but not
    fewer than ``requests``, or 8 for each device."""

    shape: TraceShape
    slo: Slo
    requests: int = 300
    seconds: float = 20.0
    seed: int = 0

    def trace(self, cluster: Cluster, rate: float) -> list[Arrival]:
        """The requests at a rate."""
        n = max(self.requests, _PER_DEVICE * cluster.n_devices, ceil(rate * self.seconds))
        return make_trace(self.shape, rate, n, context=cluster.context, seed=self.seed)


def capacity(cluster: Cluster, maker: PolicyMaker, load: Load) -> float:
    """Requests per second that equal devices serve at most: their number by the seconds for which
    one of them computes a request, where all requests come at once."""
    trace = [replace(each, at=0.0) for each in load.trace(cluster, 1e-3 * cluster.n_devices)]
    outcome = simulate(cluster, maker, trace)
    return len(trace) * cluster.n_devices / sum(each.busy_s for each in outcome.instances)


def goodput(
    cluster: Cluster,
    maker: PolicyMaker,
    load: Load,
    *,
    guess: float = 1.0,
    pace: float = 2.0,
    limit: float = inf,
    note: Callable[[], None] = lambda: None,
) -> float:
    """The highest rate at which nine in ten requests meet the SLO; 0 if it is less than a
    thousandth of a request per second and device.

    From ``guess`` on rates are tried that are ``pace`` times as high, or as low, then by bisection
    up to 2 %. Rates above ``limit`` do not count: a trace that ends before its queue is long says
    nothing about them. ``note`` is called for each simulation.
    """

    def meets(rate: float) -> bool:
        if rate > limit:
            return False
        note()
        return attains(cluster, maker, load.trace(cluster, rate), load.slo, ATTAINED)

    low, high, least = 0.0, guess, 1e-3 * cluster.n_devices
    if meets(high):
        while meets(pace * high):
            high *= pace
        low, high = high, pace * high
    else:
        while high > least and not meets(high / pace):
            high /= pace
        if high <= least:
            return 0.0
        low = high / pace
    while high > (1 + _ERROR) * low:
        middle = (low + high) / 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


def best_division(
    maker: Splitwise | DistServe,
    cluster: Cluster,
    load: Load,
    *,
    note: Callable[[], None] = lambda: None,
) -> tuple[Splitwise | DistServe, float]:
    """The division of the devices into those for prompts and for answers that serves most, and
    its goodput: the placement search of DistServe (section 4.2), by simulation."""
    best, most = maker, -1.0
    for prompts in _divisions(cluster):
        tried = replace(maker, prompts=prompts)
        rate = goodput(cluster, tried, load, note=note)
        if rate > most:
            best, most = tried, rate
    return best, most


def _divisions(cluster: Cluster) -> Sequence[str | float]:
    """Ways to divide the devices: by machine where there are several, else in eighths."""
    names = [machine.name for machine, _ in cluster.machines]
    if len(names) > 1:
        return names
    n = cluster.n_devices
    parts = sorted({min(max(round(n * eighths / 8), 1), n - 1) for eighths in range(1, 8)})
    return [part / n for part in parts]

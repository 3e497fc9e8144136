"""A cluster that serves a trace, and what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from lutra.serving.plans.profile import LinkProfile
from lutra.serving.plans.search import Slo
from lutra_flows.cluster.events import Clock
from lutra_flows.cluster.instance import Instance
from lutra_flows.cluster.jobs import Job
from lutra_flows.cluster.machine import Machine
from lutra_flows.cluster.network import Network
from lutra_flows.cluster.policies import Policy, PolicyMaker
from lutra_flows.cluster.trace import Arrival
from lutra_golden.errors import LutraError

__all__ = ["Cluster", "Failure", "Outcome", "Quantiles", "attains", "meets", "simulate"]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How many there are of each machine, and the link between any two of them."""

    machines: Sequence[tuple[Machine, int]]
    link: LinkProfile

    @property
    def n_devices(self) -> int:
        """Devices in all."""
        return sum(n for _, n in self.machines)

    @property
    def context(self) -> int:
        """Longest text that all of them take."""
        return min(machine.kv.context for machine, _ in self.machines)

    def times(self, n: int) -> "Cluster":
        """``n`` of this, on one network."""
        return Cluster(machines=[(each, n * m) for each, m in self.machines], link=self.link)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The first device of the ``kind`` is lost at ``at`` seconds, for good."""

    kind: str
    at: float


@dataclass(frozen=True)
class Quantiles:
    """Of a figure of all requests."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quantiles":
        """Those of some values."""
        return cls(*(float(each) for each in np.quantile(values, (0.5, 0.9, 0.99))))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a trace.

    ``seconds`` are those from the first arrival to the last token, ``busy`` the share of it for
    which the devices of each kind computed, ``sending`` the largest share for which one sent.
    """

    jobs: Sequence[Job]
    instances: Sequence[Instance]
    seconds: float
    busy: dict[str, float]
    sending: float
    sent_bytes: int

    @property
    def ttft_s(self) -> Quantiles:
        """Seconds to the first token."""
        return Quantiles.of([job.ttft_s for job in self.jobs])

    @property
    def tpot_s(self) -> Quantiles:
        """Mean seconds of a token behind it, of each request."""
        return Quantiles.of([job.tpot_s for job in self.jobs])

    @property
    def exposed_s(self) -> Quantiles:
        """Seconds for which those wait that are handed over."""
        return Quantiles.of([job.exposed_s for job in self.jobs if job.exposed_s] or [0.0])

    @property
    def moved(self) -> float:
        """Share of the requests that are handed over."""
        return sum(job.exposed_s > 0 for job in self.jobs) / len(self.jobs)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of answers."""
        return sum(job.made for job in self.jobs) / self.seconds

    def attained(self, slo: Slo) -> float:
        """Share of the requests that meet both parts of ``slo``."""
        return sum(meets(job, slo) for job in self.jobs) / len(self.jobs)


def meets(job: Job, slo: Slo) -> bool:
    """True if a complete request meets both parts of ``slo``."""
    return (slo.ttft_s is None or job.ttft_s <= slo.ttft_s) and (
        slo.tpot_s is None or job.tpot_s <= slo.tpot_s
    )


def attains(
    cluster: Cluster, maker: PolicyMaker, trace: Sequence[Arrival], slo: Slo, share: float
) -> bool:
    """True if at least ``share`` of the requests meet ``slo``; ends as soon as too many miss it."""
    most = len(trace) - ceil(share * len(trace) - 1e-9)
    return _run(cluster, maker, trace, (), slo, most).watch.n_missed <= most


class _Watch:
    """Notes what is complete, and which of it misses ``slo``, and tells the policy."""

    def __init__(self, slo: Slo) -> None:
        self.policy: Policy | None = None
        self.n_over = self.n_missed = 0
        self._slo = slo

    def prompt_done(self, instance: Instance, job: Job) -> None:
        if self.policy is not None:
            self.policy.prompt_done(instance, job)

    def over(self, instance: Instance, job: Job) -> None:
        self.n_over += 1
        self.n_missed += not meets(job, self._slo)
        if self.policy is not None:
            self.policy.over(job)


def simulate(
    cluster: Cluster,
    maker: PolicyMaker,
    trace: Sequence[Arrival],
    failures: Sequence[Failure] = (),
) -> Outcome:
    """Serve all requests of ``trace``; LutraError if some can never be."""
    run = _run(cluster, maker, trace, failures, Slo(), len(trace))
    begin = min(job.arrival.at for job in run.jobs)
    seconds = max(job.last or 0.0 for job in run.jobs) - begin
    busy = dict[str, float]()
    for machine, n in cluster.machines:
        own = [each.busy_s for each in run.instances if each.machine is machine]
        busy[machine.name] = sum(own) / n / seconds
    return Outcome(
        jobs=run.jobs,
        instances=run.instances,
        seconds=seconds,
        busy=busy,
        sending=max(run.network.busy.values(), default=0.0) / seconds,
        sent_bytes=run.network.n_bytes,
    )


@dataclass(frozen=True)
class _Run:
    jobs: list[Job]
    instances: list[Instance]
    network: Network
    watch: _Watch


def _run(
    cluster: Cluster,
    maker: PolicyMaker,
    trace: Sequence[Arrival],
    failures: Sequence[Failure],
    slo: Slo,
    most_missed: int,
) -> _Run:
    """Serve a trace, until more requests than that have missed ``slo``."""
    clock, watch = Clock(), _Watch(slo)
    network = Network(clock, cluster.link)
    instances = [
        Instance(
            f"{machine.name} {i}", machine, clock, network, maker.batching(machine), watch,
            pulls=maker.pulls,
        )
        for machine, n in cluster.machines
        for i in range(n)
    ]  # fmt: skip
    policy = watch.policy = maker.make(instances, cluster.link)
    jobs = [Job(arrival) for arrival in trace]
    for job in jobs:
        clock.at(job.arrival.at, lambda job=job: policy.place(job))
    for failure in failures:
        clock.at(failure.at, lambda failure=failure: _fail(instances, failure, policy))
    clock.run(lambda: watch.n_missed > most_missed)
    if watch.n_over != len(jobs) and watch.n_missed <= most_missed:
        raise LutraError(
            f"{len(jobs) - watch.n_over} of {len(jobs)} requests were never answered: the devices "
            f"of {maker.name} that are left cannot take them"
        )
    return _Run(jobs, instances, network, watch)


def _fail(instances: Sequence[Instance], failure: Failure, policy: Policy) -> None:
    """Lose a device: what was there, or on its way there, begins again from the last token."""
    alive = [each for each in instances if not each.is_dead]
    lost = next((each for each in alive if each.machine.name == failure.kind), None)
    if lost is None or len(alive) == 1:
        raise LutraError(f"no {failure.kind} can be lost: one device at least must be left")
    jobs = lost.fail()
    for each in alive:
        coming = [*each.waiting, *each.prompts, *each.leaving]
        jobs += [job for job in coming if job.target is lost and each.drop(job)]
    for job in jobs:
        job.again()
        for instance in list(job.reserved):
            instance.release(job)
    for job in jobs:
        policy.place(job)

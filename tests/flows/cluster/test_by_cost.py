"""Lutra's policy, which looks at many devices at once, against the same one device by device."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil

import numpy as np
import pytest
from tests.flows.cluster.machines import FREE, cluster, machine

from lutra.serving.chunks import prompt_room
from lutra.serving.plans.planner import USUAL
from lutra.serving.plans.profile import LinkProfile
from lutra.serving.plans.search import AS_GOOD, Slo
from lutra_flows.cluster.by_cost import ByCost
from lutra_flows.cluster.cluster import Cluster, Failure, simulate
from lutra_flows.cluster.instance import Instance
from lutra_flows.cluster.jobs import Job
from lutra_flows.cluster.machine import Machine
from lutra_flows.cluster.policies import Policy
from lutra_flows.cluster.trace import Arrival


class OneByOne(ByCost):
    """As :class:`ByCost`, in plain numbers."""

    def make(self, instances: Sequence[Instance], link: LinkProfile) -> Policy:
        return _OneByOne(instances, link, self.slo)


class _OneByOne:
    def __init__(self, instances: Sequence[Instance], link: LinkProfile, slo: Slo) -> None:
        self.instances, self.link, self.slo = instances, link, slo
        self.answers = [USUAL.answer]

    @property
    def mean(self) -> float:
        return sum(self.answers) / len(self.answers)

    def over(self, job: Job) -> None:
        self.answers.append(job.arrival.answer)

    def place(self, job: Job) -> None:
        own = [each for each in self.instances if not each.is_dead]
        kinds = list(dict.fromkeys(each.machine.name for each in own))

        def best(kind: str, value: Callable[[Instance], object]) -> Instance:
            return min((a for a in own if a.machine.name == kind), key=value)  # type: ignore[type-var]

        def whole_s(each: Instance) -> float:
            token_s, wait_s = self.answer_s(each)
            return self.prompt_s(each, job) + (wait_s + (self.mean - 1) * token_s)

        firsts = [best(kind, lambda each: self.prompt_s(each, job)) for kind in kinds]
        lasts = [best(kind, self.answer_s) for kind in kinds]
        ways = [(each, each) for each in (best(kind, whole_s) for kind in kinds)]
        ways += [(a, b) for a in firsts for b in lasts if a is not b]
        costs = {way: self.cost(*way, job) for way in ways}

        def missed(way: tuple[Instance, Instance]) -> float:
            ttft, tpot, _ = costs[way]
            return max(ttft / (self.slo.ttft_s or 1e30), tpot / (self.slo.tpot_s or 1e30))

        meeting = [way for way in ways if missed(way) <= 1]
        here, there = min(ways, key=missed)
        if meeting:
            most = AS_GOOD * min(costs[way][2] for way in meeting)
            quick = [way for way in meeting if costs[way][2] <= most]
            here, there = min(quick, key=lambda way: (way[0] is not way[1], costs[way][2]))
        job.target = None if here is there else there
        here.submit(job)

    def prompt_done(self, instance: Instance, job: Job) -> None:
        left = max(self.mean - job.made, 1.0)
        here = instance.machine
        best, target = left * here.answer_s[len(instance.answers)] / AS_GOOD, None
        for other in self.instances:
            if other is instance or other.waiting or not other.has_room(job):
                continue
            seconds = self.link.seconds(here.kv.token_bytes * job.prompt)
            seconds += left * self.answer_s(other)[0]
            if seconds < best:
                best, target = seconds, other
        if target is not None:
            instance.move(job, target)

    def prompt_s(self, instance: Instance, job: Job) -> float:
        own, n = instance.machine, len(instance.answers)
        seconds = instance.queued_tokens * own.token_s + own.prompt_s(job.prompt)
        if n:
            room = prompt_room(own.profile.pass_tokens, n, own.token_s)
            passes = ceil((instance.queued_tokens + job.prompt) / room)
            seconds += passes * own.answer_s[min(n, own.most)]
        return seconds

    def answer_s(self, instance: Instance) -> tuple[float, float]:
        own, n = instance.machine, instance.n_jobs
        fit = int(own.kv_bytes // own.needs(round(USUAL.prompt + self.mean)))
        token_s = own.answer_s[min(n + 1, own.most, max(fit, 1))]
        excess = max(n + 1 - min(fit, own.most), 0)
        return token_s, excess * self.mean * token_s / max(min(n, fit), 1)

    def cost(self, here: Instance, there: Instance, job: Job) -> tuple[float, float, float]:
        token_s, wait_s = self.answer_s(there)
        own, exposed = here.machine, 0.0
        if here is not there:
            layer = self.link.seconds(own.kv.token_bytes * job.prompt // own.n_layers)
            behind = own.prompt_s(job.prompt) * (1 - 1 / own.n_layers)
            exposed = max(layer, layer * own.n_layers - behind)
        ttft = self.prompt_s(here, job) + wait_s
        tokens = max(self.mean - 1, 1.0)
        return ttft, token_s + exposed / tokens, ttft + exposed + tokens * token_s


def _busy(machine: Machine, token_s: float) -> Machine:
    """Passes that take longer the more take part in them."""
    batch = machine.profile.batch
    rows = tuple(tuple(token_s * n for _ in batch.positions) for n in (1, 8))
    own = replace(machine.profile, batch=replace(batch, tokens=(1, 8), seconds=rows))
    return replace(machine, profile=own)


SLOW = LinkProfile(latency_s=1e-3, bytes_per_s=1e5, kind="modelled")
CLUSTERS = {
    "equal": cluster(machine("a", 0.002, 0.02), n=7, link=SLOW),
    "unlike": cluster(machine("a", 0.001, 0.05), machine("b", 0.004, 0.01), n=3, link=SLOW),
    "moved": cluster(_busy(machine("a", 0.002), 0.01), n=6, link=replace(FREE, latency_s=1e-3)),
    "memory": cluster(
        machine("a", 0.002, 0.02, kv_bytes=800_000, whole_context=True),
        machine("b", 0.003, 0.02, kv_bytes=500_000),
        n=2,
        link=SLOW,
    ),
}


@pytest.mark.parametrize("own", CLUSTERS.values(), ids=CLUSTERS)
@pytest.mark.parametrize("slo", [Slo(), Slo(ttft_s=0.5, tpot_s=0.1)], ids=["any", "slo"])
@pytest.mark.parametrize("pace", [0.02, 0.2], ids=["busy", "calm"])
def test_many_devices_at_once_are_as_one_by_one(own: Cluster, slo: Slo, pace: float) -> None:
    """Every token comes at the same time, to the last bit, also where a device is lost."""
    rng = np.random.default_rng(5)
    trace = [
        Arrival(at=float(at), prompt=int(prompt), answer=int(answer))
        for at, prompt, answer in zip(
            np.cumsum(rng.exponential(pace, 150)), rng.integers(1, 400, 150),
            rng.integers(1, 60, 150), strict=True,
        )
    ]  # fmt: skip
    lost = [Failure(kind="a", at=trace[75].at)]
    found, expected = (
        [
            (job.first, job.last, job.attempt, job.exposed_s, job.worst_gap_s)
            for job in simulate(own, maker, trace, lost).jobs
        ]
        for maker in (ByCost(slo), OneByOne(slo))
    )
    assert found == expected

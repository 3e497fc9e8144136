"""Lutra's policy: of all ways to divide a request, the one that costs least at that time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.serving.chunks import prompt_room
from lutra.serving.plans.costs import Cost
from lutra.serving.plans.planner import USUAL
from lutra.serving.plans.profile import LinkProfile
from lutra.serving.plans.search import AS_GOOD, Slo
from lutra_flows.cluster.batching import Batching, Chunks
from lutra_flows.cluster.instance import Instance
from lutra_flows.cluster.jobs import Job
from lutra_flows.cluster.machine import Machine
from lutra_flows.cluster.policies import Policy, alive

__all__ = ["ByCost"]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ByCost:
    """Lutra's: of all ways to divide a request, the one that costs least as the cluster is now.

    Whole on any device, or the prompt here and the answer there. Of ways that meet ``slo`` the
    quickest counts, of those that are as quick within 2 % the one with the fewest devices; if none
    meets it, the one that misses it least (as :func:`lutra.serving.plans.search.choose_plan`). An
    answer is taken to be as long as those so far on average. When the prompt of a whole request is
    computed, its answer is placed once more.
    """

    slo: Slo
    pulls: bool = False
    name: str = "Lutra"

    def batching(self, machine: Machine) -> Batching:
        """In chunks, as Lutra's batch."""
        return Chunks(machine.profile.pass_tokens)

    def make(self, instances: Sequence[Instance], link: LinkProfile) -> Policy:
        """The policy."""
        return _ByCost(instances, link, self.slo)


@dataclass(frozen=True)
class _Place:
    """An instance, with the seconds that are expected there: ``before`` the first token, if there
    is memory, then ``token_s`` for each and ``wait_s`` for memory."""

    instance: Instance
    before: float
    token_s: float
    wait_s: float


@dataclass(frozen=True)
class _Way:
    """A way to divide a request, with the seconds that it is expected to take."""

    here: Instance
    there: Instance
    cost: Cost

    @property
    def n_devices(self) -> int:
        return 1 if self.here is self.there else 2


class _ByCost:
    """Looks at all instances of a kind at once, as arrays [instances]: there may be thousands."""

    def __init__(self, instances: Sequence[Instance], link: LinkProfile, slo: Slo) -> None:
        self._link, self._slo = link, slo
        self._n, self._tokens = 1, float(USUAL.answer)
        kinds = dict[str, list[Instance]]()
        for each in instances:
            kinds.setdefault(each.machine.name, []).append(each)
        self._kinds: Mapping[str, Sequence[Instance]] = kinds

    def place(self, job: Job) -> None:
        wholes, firsts, lasts = list[_Place](), list[_Place](), list[_Place]()
        for kind in self._kinds.values():
            own = alive(kind)
            if own:
                # of equal machines only those that are least busy can be best
                whole, first, last = self._best_places(own, job)
                wholes.append(whole)
                firsts.append(first)
                lasts.append(last)
        ways = [self._way(each, each, job) for each in wholes]
        ways += [
            self._way(a, b, job) for a in firsts for b in lasts if a.instance is not b.instance
        ]
        way = self._best(ways)
        job.target = None if way.here is way.there else way.there
        way.here.submit(job)

    def prompt_done(self, instance: Instance, job: Job) -> None:
        machine = instance.machine
        left = max(self._mean - job.made, 1.0)
        stay = left * machine.answer_s[min(len(instance.answers), machine.most)]
        best, target = stay / AS_GOOD, None
        hand_over = self._link.seconds(machine.kv.token_bytes * job.prompt)
        for kind in self._kinds.values():
            # even an idle one must be quicker
            if not hand_over + left * kind[0].machine.answer_s[1:].min() < best:
                continue
            own = [each for each in alive(kind) if not each.waiting and each is not instance]
            own = [each for each in own if each.has_room(job)]
            if not own:
                continue
            seconds = hand_over + left * self._answer_s(own[0].machine, _n_jobs(own))[0]
            i = int(np.argmin(seconds))
            if seconds[i] < best:
                best, target = seconds[i], own[i]
        if target is not None:
            instance.move(job, target)

    def over(self, job: Job) -> None:
        self._n += 1
        self._tokens += job.arrival.answer

    # -- what is expected

    @property
    def _mean(self) -> float:
        """Tokens of an answer."""
        return self._tokens / self._n

    def _best_places(self, own: Sequence[Instance], job: Job) -> tuple[_Place, _Place, _Place]:
        """Instances of one kind that are best for a whole request, a prompt and an answer; the
        earliest of those that are equally good."""
        before = self._prompt_s(own, job)
        token_s, wait_s = self._answer_s(own[0].machine, _n_jobs(own))
        whole = int(np.argmin(before + (wait_s + (self._mean - 1) * token_s)))
        quickest = np.flatnonzero(token_s == token_s.min())
        last = int(quickest[np.argmin(wait_s[quickest])])

        def place(i: int) -> _Place:
            return _Place(own[i], float(before[i]), float(token_s[i]), float(wait_s[i]))

        return place(whole), place(int(np.argmin(before))), place(last)

    def _prompt_s(self, own: Sequence[Instance], job: Job) -> _Floats:
        """Seconds to the first token, if there is memory: prompts before it, its own, and tokens of
        others between its chunks."""
        machine = own[0].machine
        queued = np.array([each.queued_tokens for each in own])
        n = np.array([len(each.answers) for each in own])
        numbers, which = np.unique(n, return_inverse=True)
        rooms = [
            prompt_room(machine.profile.pass_tokens, int(each), machine.token_s) for each in numbers
        ]
        room = np.array(rooms)[which]
        passes = np.ceil((queued + job.prompt) / room)
        # without others their pass takes none
        others_s = machine.answer_s[np.minimum(n, machine.most)]
        return queued * machine.token_s + machine.prompt_s(job.prompt) + passes * others_s

    def _answer_s(self, machine: Machine, n: _Ints) -> tuple[_Floats, _Floats]:
        """Seconds of a token of an answer, and to wait for memory, where ``n`` requests are."""
        here = np.minimum(n, machine.most - 1) + 1
        least = machine.needs(round(USUAL.prompt + self._mean))
        most = int(machine.kv_bytes // least)
        token_s = machine.answer_s[np.minimum(here, max(most, 1))]
        excess = np.maximum(n + 1 - min(most, machine.most), 0)
        return token_s, excess * self._mean * token_s / np.maximum(np.minimum(n, most), 1)

    def _way(self, here: _Place, there: _Place, job: Job) -> _Way:
        exposed = 0.0
        if here.instance is not there.instance:
            machine = here.instance.machine
            layer = self._link.seconds(machine.kv.token_bytes * job.prompt // machine.n_layers)
            all_s, prompt_s = layer * machine.n_layers, machine.prompt_s(job.prompt)
            exposed = max(all_s - prompt_s * (1 - 1 / machine.n_layers), 0.0)
            exposed = max(exposed, layer)
        ttft = here.before + there.wait_s
        tokens = max(self._mean - 1, 1.0)
        return _Way(
            here.instance,
            there.instance,
            Cost(
                ttft_s=ttft,
                tpot_s=there.token_s + exposed / tokens,
                seconds=ttft + exposed + tokens * there.token_s,
                exposed_s=exposed,
                kind="modelled",
            ),
        )

    def _best(self, ways: Sequence[_Way]) -> _Way:
        meeting = [each for each in ways if self._slo.missed(each.cost) <= 1]
        if not meeting:
            return min(ways, key=lambda each: self._slo.missed(each.cost))
        quickest = min(each.cost.seconds for each in meeting)
        as_quick = [each for each in meeting if each.cost.seconds <= AS_GOOD * quickest]
        return min(as_quick, key=lambda each: (each.n_devices, each.cost.seconds))


def _n_jobs(instances: Sequence[Instance]) -> _Ints:
    """Requests of each."""
    return np.array([each.n_jobs for each in instances])

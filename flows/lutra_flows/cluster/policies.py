"""Where requests go: Lutra's choice by cost, and the policies of Splitwise and DistServe.

They are told of every request that comes, and of those that must begin again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol, TypeVar

from lutra.serving.chunks import prompt_room
from lutra.serving.plans.costs import Cost
from lutra.serving.plans.planner import USUAL
from lutra.serving.plans.profile import LinkProfile
from lutra.serving.plans.search import AS_GOOD, Slo
from lutra_flows.cluster.batching import Batching, Chunks, WholePrompts
from lutra_flows.cluster.instance import Instance
from lutra_flows.cluster.jobs import Job
from lutra_flows.cluster.machine import Machine

__all__ = ["ByCost", "DistServe", "Policy", "PolicyMaker", "Replicas", "Splitwise"]

_SHARED_TOKENS = 2048  # of prompts that share a pass (Splitwise, section IV-B)
_PENDING_TOKENS = 8192  # of prompts that wait before the other pool is asked (Splitwise)
_Value = TypeVar("_Value", float, tuple[float, float])


class Policy(Protocol):
    """Places requests on the instances of a cluster that are not lost."""

    def place(self, job: Job) -> None:
        """Submit a request somewhere."""
        ...

    def prompt_done(self, instance: Instance, job: Job) -> None:
        """A prompt is computed, and its answer goes on there unless it is moved."""
        ...

    def over(self, job: Job) -> None:
        """An answer is complete."""
        ...


class PolicyMaker(Protocol):
    """Makes a policy: first what is in a pass of each machine, then the policy itself."""

    @property
    def name(self) -> str: ...

    def batching(self, machine: Machine) -> Batching:
        """Forms passes of an instance."""
        ...

    @property
    def pulls(self) -> bool:
        """See :class:`~lutra_flows.cluster.instance.Instance`."""
        ...

    def make(self, instances: Sequence[Instance], link: LinkProfile) -> Policy: ...


def _alive(instances: Sequence[Instance]) -> list[Instance]:
    return [each for each in instances if not each.is_dead]


class _Fixed:
    """Nothing is moved."""

    def prompt_done(self, instance: Instance, job: Job) -> None:
        """Stay."""

    def over(self, job: Job) -> None:
        """Nothing is learnt."""


@dataclass(frozen=True)
class Replicas:
    """Whole requests where the fewest tokens of prompts wait, then the fewest requests are; on
    machines of the ``kind``, on all if it is None."""

    kind: str | None = None
    pulls: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        return "whole requests" if self.kind is None else f"{self.kind} alone"

    def batching(self, machine: Machine) -> Batching:
        """In chunks, as Lutra's batch."""
        return Chunks(machine.profile.pass_tokens)

    def make(self, instances: Sequence[Instance], link: LinkProfile) -> Policy:
        """The policy."""
        own = [each for each in instances if self.kind in (None, each.machine.name)]
        return _Replicas(own)


class _Replicas(_Fixed):
    def __init__(self, instances: Sequence[Instance]) -> None:
        self._instances = instances

    def place(self, job: Job) -> None:
        own = _alive(self._instances)
        min(own, key=lambda each: (each.queued_tokens, each.n_jobs)).submit(job)


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
class _Way:
    """A way to divide a request, with the seconds that it is expected to take."""

    here: Instance
    there: Instance
    cost: Cost

    @property
    def n_devices(self) -> int:
        return 1 if self.here is self.there else 2


class _ByCost:
    def __init__(self, instances: Sequence[Instance], link: LinkProfile, slo: Slo) -> None:
        self._instances, self._link, self._slo = instances, link, slo
        self._n, self._tokens = 1, float(USUAL.answer)

    def place(self, job: Job) -> None:
        own = _alive(self._instances)
        kinds = {each.machine.name: each.machine for each in own}
        alone = {kind: machine.prompt_s(job.prompt) for kind, machine in kinds.items()}
        before, behind = self._expected(own, job, alone)
        # of equal machines only those that are least busy can be best
        firsts = [_least(own, kind, before) for kind in kinds]
        lasts = [_least(own, kind, behind) for kind in kinds]
        both = {each: before[each] + self._after(behind[each]) for each in own}
        ways = [
            self._way(each, each, job, before[each], behind[each])
            for each in [_least(own, kind, both) for kind in kinds]
        ]
        ways += [
            self._way(a, b, job, before[a], behind[b]) for a in firsts for b in lasts if a is not b
        ]
        way = self._best(ways)
        job.target = None if way.here is way.there else way.there
        way.here.submit(job)

    def prompt_done(self, instance: Instance, job: Job) -> None:
        left = max(self._mean - job.made, 1.0)
        stay = left * instance.machine.answer_s[min(len(instance.answers), instance.machine.most)]
        best, target = stay / AS_GOOD, None
        hand_over = self._link.seconds(instance.machine.kv.token_bytes * job.prompt)
        for other in _alive(self._instances):
            if other is instance or other.waiting or not other.has_room(job):
                continue
            seconds = hand_over + left * self._answer_s(other)[0]
            if seconds < best:
                best, target = seconds, other
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

    def _after(self, behind: tuple[float, float]) -> float:
        token_s, wait_s = behind
        return wait_s + (self._mean - 1) * token_s

    def _expected(
        self, instances: Sequence[Instance], job: Job, alone: Mapping[str, float]
    ) -> tuple[dict[Instance, float], dict[Instance, tuple[float, float]]]:
        """See :meth:`_prompt_s` and :meth:`_answer_s`; many instances are as busy as others."""
        seen: dict[object, tuple[float, tuple[float, float]]] = {}
        before, behind = dict[Instance, float](), dict[Instance, tuple[float, float]]()
        for each in instances:
            name = each.machine.name
            state = name, each.queued_tokens, len(each.answers), each.n_jobs
            found = seen.get(state)
            if found is None:
                found = self._prompt_s(each, job, alone[name]), self._answer_s(each)
                seen[state] = found
            before[each], behind[each] = found
        return before, behind

    def _prompt_s(self, instance: Instance, job: Job, alone: float) -> float:
        """Seconds to the first token, if there is memory: prompts before it, its own, which takes
        ``alone``, and tokens of others between its chunks."""
        machine = instance.machine
        queued = instance.queued_tokens
        seconds = queued * machine.token_s + alone
        n = len(instance.answers)
        if n:
            room = prompt_room(machine.profile.pass_tokens, n, machine.token_s)
            passes = ceil((queued + job.prompt) / room)
            seconds += passes * machine.answer_s[min(n, machine.most)]
        return seconds

    def _answer_s(self, instance: Instance) -> tuple[float, float]:
        """Seconds of a token of an answer, and to wait for memory."""
        machine, n = instance.machine, instance.n_jobs
        here = min(n, machine.most - 1) + 1
        least = machine.needs(round(USUAL.prompt + self._mean))
        most = int(machine.kv_bytes // least)
        token_s = machine.answer_s[min(here, max(most, 1))]
        excess = n + 1 - min(most, machine.most)
        return token_s, max(excess, 0) * self._mean * token_s / max(min(n, most), 1)

    def _way(
        self, here: Instance, there: Instance, job: Job, before: float, behind: tuple[float, float]
    ) -> _Way:
        token_s, wait_s = behind
        exposed = 0.0
        if here is not there:
            machine = here.machine
            layer = self._link.seconds(machine.kv.token_bytes * job.prompt // machine.n_layers)
            all_s, prompt_s = layer * machine.n_layers, machine.prompt_s(job.prompt)
            exposed = max(all_s - prompt_s * (1 - 1 / machine.n_layers), 0.0)
            exposed = max(exposed, layer)
        ttft = before + wait_s
        tokens = max(self._mean - 1, 1.0)
        return _Way(
            here,
            there,
            Cost(
                ttft_s=ttft,
                tpot_s=token_s + exposed / tokens,
                seconds=ttft + exposed + tokens * token_s,
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


def _least(instances: Sequence[Instance], kind: str, value: Mapping[Instance, _Value]) -> Instance:
    """The instance of a kind whose value is least."""
    return min((each for each in instances if each.machine.name == kind), key=value.__getitem__)


@dataclass(frozen=True)
class Splitwise:
    """Splitwise's (Patel et al., ISCA 2024, section IV): a pool of devices for prompts, one for
    tokens, and a mixed one.

    A request gets the prompt device where the fewest tokens of prompts wait, and the token device
    with the fewest requests, when it comes. If more than 8,192 tokens wait at the best one, or it
    has no memory left, devices of the mixed pool are asked, then one of the other pool, which is in
    the mixed pool until it has no more of this work. Keys and values are sent layer by layer while
    a prompt is computed. Prompts are not cut. ``prompts`` are the machines of the prompt pool, or
    the share of the devices where all are equal.
    """

    prompts: str | float
    pulls: bool = False
    name: str = "Splitwise"

    def batching(self, machine: Machine) -> Batching:
        """Whole prompts up to 2,048 tokens, with tokens of answers in the mixed pool."""
        return WholePrompts(_SHARED_TOKENS)

    def make(self, instances: Sequence[Instance], link: LinkProfile) -> Policy:
        """The policy."""
        return _Splitwise(*_divide(instances, self.prompts))


def _divide(
    instances: Sequence[Instance], prompts: str | float
) -> tuple[list[Instance], list[Instance]]:
    """Devices for prompts, by the machine's name or as a share of all, and for answers."""
    if isinstance(prompts, str):
        first = [each for each in instances if each.machine.name == prompts]
    else:
        n = min(max(round(prompts * len(instances)), 1), len(instances) - 1)
        first = list(instances[:n])
    chosen = set(first)
    return first, [each for each in instances if each not in chosen]


class _Splitwise(_Fixed):
    def __init__(self, prompts: Sequence[Instance], answers: Sequence[Instance]) -> None:
        self._prompts, self._answers = prompts, answers

    def place(self, job: Job) -> None:
        here = self._pick(self._prompts, self._answers, self._takes_prompt)
        there = self._pick(self._answers, self._prompts, lambda each: each.has_room(job))
        job.target = None if here is there else there
        here.submit(job)

    def _pick(
        self,
        own: Sequence[Instance],
        other: Sequence[Instance],
        can: Callable[[Instance], bool],
    ) -> Instance:
        def order(each: Instance) -> tuple[int, int]:
            return each.queued_tokens, each.n_jobs

        own, other = _alive(own), _alive(other)
        best = min(own, key=order, default=None)
        if best is not None and can(best):
            return best
        # those that do both already come first
        spare = [each for each in other if can(each)]
        mixed = [each for each in spare if each.prompts and each.answers]
        if mixed or spare:
            return min(mixed or spare, key=order)
        return best or min(other, key=order)

    def _takes_prompt(self, instance: Instance) -> bool:
        return instance.queued_tokens <= _PENDING_TOKENS


@dataclass(frozen=True)
class DistServe:
    """DistServe's (Zhong et al., OSDI 2024): some devices compute prompts, the others answers.

    First come, first served: a prompt goes where the fewest tokens wait, its answer where the
    fewest requests are. The device of the answer pulls keys and values when the prompt is computed
    and it has memory for them. ``prompts`` are the machines for prompts, or the share of devices;
    which one is best is found by simulation (:func:`lutra_flows.cluster.goodput.place_distserve`).
    """

    prompts: str | float
    pulls: bool = True
    name: str = "DistServe"

    def batching(self, machine: Machine) -> Batching:
        """Whole prompts that together keep the device busy, no more."""
        return WholePrompts(min(machine.profile.pass_tokens, _SHARED_TOKENS))

    def make(self, instances: Sequence[Instance], link: LinkProfile) -> Policy:
        """The policy."""
        return _DistServe(*_divide(instances, self.prompts))


class _DistServe(_Fixed):
    def __init__(self, prompts: Sequence[Instance], answers: Sequence[Instance]) -> None:
        self._prompts, self._answers = prompts, answers
        self._given: dict[Instance, int] = dict.fromkeys(answers, 0)
        self._where: dict[Job, Instance] = {}

    def place(self, job: Job) -> None:
        self.over(job)
        # where a kind is lost, the other one does both
        first = _alive(self._prompts) or _alive(self._answers)
        last = _alive(self._answers) or first
        here = min(first, key=lambda each: (each.queued_tokens, each.n_jobs))
        there = min(last, key=lambda each: self._given.get(each, 0))
        self._given[there] = self._given.get(there, 0) + 1
        self._where[job] = there
        job.target = None if here is there else there
        here.submit(job)

    def over(self, job: Job) -> None:
        """It leaves its device."""
        there = self._where.pop(job, None)
        if there is not None:
            self._given[there] -= 1

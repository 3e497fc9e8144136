"""Where requests go: the policies of Splitwise and DistServe, and the one that looks at least.

They are told of every request that comes, and of those that must begin again. Lutra's own is in
:mod:`lutra_flows.cluster.by_cost`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lutra.serving.plans.profile import LinkProfile
from lutra_flows.cluster.batching import Batching, Chunks, WholePrompts
from lutra_flows.cluster.instance import Instance
from lutra_flows.cluster.jobs import Job
from lutra_flows.cluster.machine import Machine

__all__ = ["DistServe", "Policy", "PolicyMaker", "Replicas", "Splitwise", "alive"]

_SHARED_TOKENS = 2048  # of prompts that share a pass (Splitwise, section IV-B)
_PENDING_TOKENS = 8192  # of prompts that wait before the other pool is asked (Splitwise)


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


def alive(instances: Sequence[Instance]) -> list[Instance]:
    """Those that are not lost."""
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
        own = alive(self._instances)
        min(own, key=lambda each: (each.queued_tokens, each.n_jobs)).submit(job)


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

        own, other = alive(own), alive(other)
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
        first = alive(self._prompts) or alive(self._answers)
        last = alive(self._answers) or first
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

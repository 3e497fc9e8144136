"""A device of a cluster: who is on it, its passes, and keys and values that leave it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from lutra_flows.cluster.batching import Batching, Parts
from lutra_flows.cluster.events import Clock, Event
from lutra_flows.cluster.jobs import Job
from lutra_flows.cluster.machine import Machine
from lutra_flows.cluster.network import Network

__all__ = ["Instance", "Watcher"]

_STEPS = 16  # passes of answers alone that are taken together, as in lutra.serving.plans.costs


class Watcher(Protocol):
    """Is told what happens on an instance."""

    def prompt_done(self, instance: "Instance", job: Job) -> None:
        """A prompt has been computed whose answer would be made here, too."""
        ...

    def over(self, instance: "Instance", job: Job) -> None:
        """An answer is complete."""
        ...


@dataclass
class _Pass:
    """Passes under way: ``steps`` of ``seconds`` each from ``begin`` on."""

    begin: float
    seconds: float
    steps: int
    parts: Parts
    answers: list[Job]
    end: Event


class Instance:
    """One device.

    ``pulls`` is True where keys and values are asked for by the device of the answer once the
    prompt is computed; else they are sent layer by layer while it is, and a prompt is not begun
    before both devices have memory for it.
    """

    def __init__(
        self,
        name: str,
        machine: Machine,
        clock: Clock,
        network: Network,
        batching: Batching,
        watcher: Watcher,
        *,
        pulls: bool = False,
    ) -> None:
        self.name, self.machine, self.pulls = name, machine, pulls
        self._clock, self._network, self._watcher = clock, network, watcher
        self.batching = batching
        self.waiting: list[Job] = []
        self.prompts: list[Job] = []
        self.answers: list[Job] = []
        self.leaving: list[Job] = []
        """Prompts are computed, keys and values still here."""
        self._asking: deque[tuple[Job, int, Callable[[], None]]] = deque()
        self._blocked: dict[Instance, None] = {}
        """Those that wait for memory here, in the order in which they came."""
        self.queued_tokens = 0
        """Tokens of prompts that are still to be computed here."""
        self.used_bytes = 0
        self.busy_s = 0.0
        self.prompt_tokens = self.answer_tokens = 0
        self.is_dead = False
        self._pass: _Pass | None = None
        self._start: Event | None = None

    # -- what policies look at

    @property
    def n_jobs(self) -> int:
        """Requests that are here or wait to be."""
        return len(self.waiting) + len(self.prompts) + len(self.answers)

    @property
    def free_bytes(self) -> float:
        """Memory for keys and values that nobody has reserved."""
        return self.machine.kv_bytes - self.used_bytes

    # -- requests come

    def submit(self, job: Job) -> None:
        """Let a prompt be computed here."""
        self.waiting.append(job)
        self.queued_tokens += job.left
        self._wake()

    def join(self, job: Job) -> None:
        """Let an answer go on here, whose keys and values have come."""
        self.answers.append(job)
        self._wake()

    def move(self, job: Job, target: "Instance") -> bool:
        """Let an answer that has begun here go on elsewhere; False if there is no memory there."""
        if not target.reserve(job):
            return False
        self.answers.remove(job)
        job.target = target
        self.leaving.append(job)
        self._send(job, self.machine.kv.token_bytes * job.prompt, job.attempt)
        return True

    # -- memory

    def has_room(self, job: Job) -> bool:
        """True if there is memory for a request, and a place for one more."""
        n_here = len(self.prompts) + len(self.answers)
        fits = self._needs(job) <= self.free_bytes and n_here < self.machine.most
        return fits and not self.is_dead

    def reserve(self, job: Job) -> bool:
        """Reserve memory for a request; False if there is no room."""
        if not self.has_room(job):
            return False
        job.reserved[self] = n_bytes = self._needs(job)
        self.used_bytes += n_bytes
        return True

    def _needs(self, job: Job) -> int:
        return self.machine.needs(job.arrival.prompt + job.arrival.answer)

    def release(self, job: Job) -> None:
        """Free what a request has reserved here, for those that wait for it."""
        self.used_bytes -= job.reserved.pop(self, 0)
        while self._asking:
            other, attempt, granted = self._asking[0]
            if other.attempt == attempt:
                if not self.reserve(other):
                    break
                self._clock.at(self._clock.now, granted)
            self._asking.popleft()
        blocked, self._blocked = self._blocked, {}
        for instance in blocked:
            self._clock.at(self._clock.now, instance._wake)
        if self.waiting:
            self._clock.at(self._clock.now, self._wake)

    def _ask(self, job: Job, granted: Callable[[], None]) -> None:
        """Reserve memory when there is some."""
        if not self._asking and self.reserve(job):
            granted()
        else:
            self._asking.append((job, job.attempt, granted))

    def _admit(self) -> None:
        while self.waiting:
            job = min(self.waiting, key=self.batching.order)
            if not self.has_room(job):
                return
            target = job.target
            if target is not None and not self.pulls and not target.reserve(job):
                target._blocked[self] = None
                return
            self.reserve(job)
            self.waiting.remove(job)
            self.prompts.append(job)

    # -- passes

    def _wake(self) -> None:
        """Begin a pass; cut those short that somebody new could take part in."""
        if self.is_dead:
            return
        under_way = self._pass
        if under_way is None:
            # those that come at this very time take part, too
            if self._start is None:
                self._start = self._clock.at(self._clock.now, self._begin)
        elif under_way.steps > 1:
            now = self._clock.now
            steps = max(ceil((now - under_way.begin) / under_way.seconds - 1e-9), 1)
            if steps < under_way.steps:
                under_way.steps = steps
                under_way.end.cancel()
                end = max(under_way.begin + steps * under_way.seconds, now)
                under_way.end = self._clock.at(end, self._finish)

    def _begin(self) -> None:
        self._start = None
        if self.is_dead or self._pass is not None:
            return
        self._admit()
        answers = list(self.answers)
        parts = self.batching.prompts(self.prompts, len(answers)) if self.prompts else []
        if not parts and not answers:
            return
        steps = 1
        if not parts:
            steps = min(_STEPS, *(job.arrival.answer - job.made for job in answers))
        sizes = [1] * len(answers) + [size for _, size in parts]
        ahead = (steps - 1) / 2
        positions = [job.position + ahead for job in answers] + [job.done for job, _ in parts]
        seconds = self.machine.pass_s(sizes, positions)
        profile, now = self.machine.profile, self._clock.now
        if any(job.target is not None for job, _ in parts):
            seconds += (profile.n_layers - 1) * profile.call_s
            if not self.pulls:
                self._send_layers(parts, now, seconds)
        end = self._clock.at(now + steps * seconds, self._finish)
        self._pass = _Pass(now, seconds, steps, parts, answers, end)

    def _finish(self) -> None:
        under_way = self._pass
        assert under_way is not None
        self._pass = None
        steps, seconds = under_way.steps, under_way.seconds
        self.busy_s += steps * seconds
        self._tokens(under_way, steps)
        for job in under_way.answers:
            if job.is_over:
                self.answers.remove(job)
                self._over(job)
        for job, size in under_way.parts:
            job.done += size
            self.prompt_tokens += size
            self.queued_tokens -= size
            if not job.left:
                self._computed(job)
        self.batching.took(sum(size for _, size in under_way.parts if size > 1), seconds)
        self._begin()

    def _tokens(self, under_way: _Pass, steps: int) -> None:
        """Give the answers of a pass so many tokens."""
        self.answer_tokens += steps * len(under_way.answers)
        for step in range(steps):
            time = min(under_way.begin + (step + 1) * under_way.seconds, self._clock.now)
            for job in under_way.answers:
                job.token(time)

    def _computed(self, job: Job) -> None:
        """A prompt is computed, which gives the next token of the answer."""
        job.token(self._clock.now)
        self.answer_tokens += 1
        self.prompts.remove(job)
        target = job.target
        if job.is_over:
            if target is not None:
                target.release(job)
            self._over(job)
        elif target is None:
            self.answers.append(job)
            self._watcher.prompt_done(self, job)
        else:
            self.leaving.append(job)
            if self.pulls:
                n_bytes, attempt = self.machine.kv.token_bytes * job.prompt, job.attempt
                job.sent += 1

                def granted() -> None:
                    job.sent -= 1
                    self._send(job, n_bytes, attempt)

                target._ask(job, granted)
            else:
                self._leave(job)

    def _over(self, job: Job) -> None:
        self.release(job)
        self._watcher.over(self, job)

    # -- keys and values

    def _send_layers(self, parts: Parts, begin: float, seconds: float) -> None:
        """Send each layer's when it is finished."""
        n_layers = self.machine.n_layers
        for job, size in parts:
            if job.target is None:
                continue
            n_bytes = self.machine.kv.token_bytes * size // n_layers
            job.sent += n_layers
            for layer in range(n_layers):

                def send(
                    job: Job = job, n_bytes: int = n_bytes, attempt: int = job.attempt
                ) -> None:
                    if job.attempt == attempt:
                        job.sent -= 1
                        self._send(job, n_bytes, attempt)

                self._clock.at(begin + seconds * (layer + 1) / n_layers, send)

    def _send(self, job: Job, n_bytes: int, attempt: int) -> None:
        """Send keys and values, unless the request was begun again since."""
        target = job.target
        if job.attempt != attempt or target is None:
            return
        job.sent += 1

        def arrived() -> None:
            if job.attempt == attempt:
                job.sent -= 1
                self._leave(job)

        self._network.send(self, target, n_bytes, arrived)

    def _leave(self, job: Job) -> None:
        """Let a request go when all has arrived."""
        if job.sent or job not in self.leaving:
            return
        target = job.target
        assert target is not None and job.last is not None
        job.exposed_s += self._clock.now - job.last
        self.leaving.remove(job)
        job.target = None
        self.release(job)
        target.join(job)

    # -- failures

    def fail(self) -> list[Job]:
        """Lose everything that is here; the requests that were on it."""
        self.is_dead = True
        under_way, self._pass = self._pass, None
        if under_way is not None:
            under_way.end.cancel()
            took = self._clock.now - under_way.begin
            self.busy_s += took
            # tokens of passes that had ended were sent
            steps = min(int(took / under_way.seconds + 1e-9), under_way.steps - 1)
            self._tokens(under_way, steps)
        lost = [*self.waiting, *self.prompts, *self.answers, *self.leaving]
        self.waiting, self.prompts, self.answers, self.leaving = [], [], [], []
        self.queued_tokens = 0
        return lost

    def drop(self, job: Job) -> bool:
        """Take off a request whose answer has lost its device; False if it is not here."""
        for jobs in (self.waiting, self.prompts, self.leaving):
            if job in jobs:
                jobs.remove(job)
                self.queued_tokens -= job.left
                if self._pass is not None:
                    self._pass.parts = [part for part in self._pass.parts if part[0] is not job]
                return True
        return False

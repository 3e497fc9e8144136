"""A device of several devices: runs each step where the plan says, and without those that fail."""

import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from lutra.arguments import check_whole
from lutra.closing import Closing
from lutra.devices.base import (
    Device,
    DeviceError,
    GreedyResult,
    Session,
    Step,
    StepResult,
    check_tokens,
)
from lutra.devices.shares import Share
from lutra.process_lock import ProcessLock
from lutra.serving.engine import Engine
from lutra.serving.loaded import LoadedModel
from lutra.serving.plans.carriers import Carrier, Direct
from lutra.serving.plans.facts import Fact, Facts
from lutra.serving.plans.layout import Plan, Route, Stage
from lutra.serving.plans.legs import Leg, Portion, all_at_once, legs_of, run_legs
from lutra.serving.plans.live import LiveDevices, SiteFailed
from lutra.serving.plans.mover import KvMover, common_layers
from lutra.serving.plans.rows import RowRunner, sharing
from lutra.serving.plans.session import PlannedSession
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import LayerKv, SequenceKv
from lutra_golden.model.capabilities import COMMON_PARTS, Capabilities
from lutra_golden.model.packed import PackedModel

__all__ = ["Chooser", "PlannedDevice", "fixed"]

Chooser = Callable[[PackedModel, Sequence[int]], Sequence[Plan]]
"""Plans for a model on the devices of these numbers, one or several that share the sessions."""
Expect = Callable[[Route, Sequence[int], Sequence[int], Sequence[int]], float]
"""Seconds of a pass on a route: tokens of each session, their positions, and other devices that are
at work."""
_LESSON = 256  # passes from which a profile learns at a time
_PROMPT_TOKENS = 16  # more of a session in one step are a prompt
T = TypeVar("T")


def _has(device: Device, model: PackedModel) -> bool:
    try:
        return device.model is model
    except LutraError:
        return False


def fixed(*plans: Plan) -> Chooser:
    """These plans; those that lost a device give way to everything on one of the others."""

    def choose(model: PackedModel, sites: Sequence[int]) -> Sequence[Plan]:
        left = [plan for plan in plans if plan.sites <= set(sites)]
        return left or [Plan.on(sites[0], len(model.layers))]

    return choose


def _is_divided(route: Route) -> bool:
    """True unless one device has all of a route."""
    return len(route) > 1 or any(stage.shares for stage in route)


@dataclass
class _Item:
    """A step of a session at ``position``."""

    step: Step
    session: PlannedSession
    position: int

    @property
    def n(self) -> int:
        return len(self.step.tokens)


class PlannedDevice(Closing):
    """Runs one model on several ``devices``, each step where a plan of ``choose`` has it.

    A session's plan may send prompts to other devices than answers, and layers to several. Keys
    and values go where they are needed next while a prompt is computed, layer by layer, over
    ``carrier``. A device that fails is left out: what only it had is computed again from the
    tokens, and since all devices give the same bits nobody can tell. :attr:`notes` say so. Calls of
    several threads with different sessions overlap where they need different devices. ``expect``
    predicts what passes take, ``learn`` is given what they took, some hundred at a time.
    """

    name = "plan"

    def __init__(
        self,
        devices: Sequence[Device],
        choose: Chooser,
        *,
        labels: Sequence[str] | None = None,
        carrier: Carrier | None = None,
        expect: Expect | None = None,
        learn: Callable[[Sequence[Fact]], None] | None = None,
    ) -> None:
        if not devices:
            raise LutraError("a plan needs devices: give at least one")
        names = [each.name for each in devices] if labels is None else labels
        self._live = LiveDevices(devices, names)
        self._mover = KvMover(self._live, Direct() if carrier is None else carrier)
        self.process = ProcessLock()
        self.epoch = 0
        """Number of models loaded so far; sessions of another epoch are gone."""
        self.took = Facts()
        """Seconds that passes took, to be compared with predictions."""
        self._choose, self._lock = choose, threading.RLock()
        self._returning, self._learning = threading.Lock(), threading.Lock()
        self._rows, self._expect, self._learn = RowRunner(), expect, learn
        self._model: PackedModel | None = None
        self._plans: list[Plan] = []
        self._sessions: weakref.WeakSet[PlannedSession] = weakref.WeakSet()

    @property
    def devices(self) -> list[Device]:
        """The devices, by number."""
        return self._live.devices

    @property
    def labels(self) -> list[str]:
        """Names of the devices, by number."""
        return self._live.labels

    @property
    def notes(self) -> list[str]:
        """A line on each device that was left out, or came back."""
        return self._live.notes

    @property
    def plans(self) -> list[Plan]:
        """The plans, of the devices that are left."""
        return list(self._plans)

    @property
    def sites(self) -> list[int]:
        """Numbers of the devices that have not failed."""
        return list(self._live.left)

    @property
    def answering(self) -> Device | None:
        """The device that makes tokens by the first plan; None while nothing is loaded."""
        return self.devices[self._plans[0].decode[-1].site] if self._plans else None

    # -- the protocol

    @property
    def capabilities(self) -> Capabilities:
        """Parts of packed models that all of the devices run."""
        found = [getattr(each, "capabilities", COMMON_PARTS) for each in self.devices]
        return Capabilities(
            activation_groups=all(each.activation_groups for each in found),
            offsets=all(each.offsets for each in found),
            vocabulary=all(each.vocabulary for each in found),
        )

    @property
    def pass_tokens(self) -> int:
        """Most tokens that share one pass: a prompt is never cut where it goes layer by layer."""
        if any(plan.prefill != plan.decode for plan in self._plans):
            return self.model.context
        return min(each.pass_tokens for each in self.devices)

    @property
    def greedy_tokens(self) -> int:
        """Most tokens that :meth:`greedy` makes without the host; 1 if the host takes each."""
        return min(
            1 if _is_divided(plan.decode) else self.devices[plan.decode[0].site].greedy_tokens
            for plan in self._plans
        )

    @property
    def model(self) -> PackedModel:
        """The model that is loaded; LutraError if none is."""
        if self._model is None:
            raise LutraError("no model is loaded: call load(model) first")
        return self._model

    def load(self, model: PackedModel) -> None:
        """Take a model; sessions of the one before are gone. A device that has it already keeps it,
        one that fails is left out."""
        with self.process.adopt():
            self._begin_again()
            self._live.all_again()
            self._model = model
            try:
                for site in self.sites:
                    try:
                        with self._live.on(site) as device:
                            if not _has(device, model):
                                device.load(model)
                    except SiteFailed as failed:
                        self._live.leave_out(failed)
                self._plans = self._chosen()
            except BaseException:
                self.close()
                raise

    def take_back(self) -> list[int]:
        """Load the model on devices that were left out, and count again on those that take it;
        their numbers. Sessions that were there have nothing there any more."""
        back = list[int]()
        with self._returning:
            for site in self._live.left_out:
                try:
                    self.devices[site].load(self.model)
                except LutraError:
                    continue
                for session in list(self._sessions):
                    with session.lock:
                        session.parts.pop(site, None)
                self._live.back(site)
                back.append(site)
            if back:
                with self._lock:
                    self._plans = self._chosen()
        return back

    def session(self, plan: Plan | None = None) -> PlannedSession:
        """New, empty session, of ``plan`` while its devices live; LutraError with the bytes needed
        and free if there is no room."""
        with self._lock:
            self._check()
            while True:
                lives = plan is not None and plan.sites <= set(self.sites)
                session = PlannedSession(self, plan if plan and lives else self._next_plan())
                try:
                    for site in sorted(session.plan.sites):
                        self._mover.part(session, site)
                except SiteFailed as failed:
                    self._leave_out(failed)
                    continue
                self._sessions.add(session)
                return session

    def run(self, steps: Sequence[Step]) -> list[StepResult]:
        """Run steps of different sessions, through all layers; see :class:`Device`."""
        self._check()
        if not len(steps):
            return []
        chosen = [self._checked(step) for step in steps]
        with ExitStack() as held:
            for session in sorted(chosen, key=lambda each: each.number):
                held.enter_context(session.lock)
            items = [self._item(*each) for each in zip(steps, chosen, strict=True)]
            before = [(item.session, item.position) for item in items]
            results = self._without_failing(before, lambda: self._attempt(items))
            for item in items:
                item.session.tokens.extend(map(int, item.step.tokens))
            return results

    def greedy(
        self, session: Session, token: int, n: int, ends: Collection[int] = ()
    ) -> GreedyResult:
        """Make ``n`` greedy tokens that follow ``token``; see :class:`Device`."""
        check_whole("n", n)
        if n < 1:
            raise LutraError(f"n must be 1 or more tokens, not {n}")
        own = self._checked(Step(session=session, tokens=[token]))
        with own.lock:
            position = own.length
            made = self._without_failing(
                [(own, position)], lambda: self._greedy(own, position, token, n, ends)
            )
            own.tokens.extend([token, *made.tokens[:-1]])
            return made

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the device that answers."""
        answering = self.answering
        return {} if answering is None else answering.counters()

    def facts(self) -> Mapping[str, str | int]:
        """The plans in words."""
        words = "; ".join(plan.describe(self.labels) for plan in self._plans)
        return {"plan": words} if words else {}

    def close(self) -> None:
        """Release the model on all devices."""
        with self.process.adopt():
            self._begin_again()
            if self._model is not None:
                self._model = None
                for site, device in enumerate(self.devices):
                    # one that has failed may fail of this, too
                    failed = site not in self._live.left
                    with suppress(DeviceError) if failed else nullcontext():
                        device.close()

    def make_engine(self, loaded: LoadedModel, most: int) -> Engine:
        """Threads that keep the devices busy with at most so many requests; see :mod:`.lanes`."""
        from lutra.serving.plans.lanes import LaneEngine

        return LaneEngine(loaded, self, most)

    def _begin_again(self) -> None:
        self.epoch += 1
        self._sessions.clear()
        self._mover.close()
        self._rows.close()
        self.took.take()  # times of another model
        self._plans = []

    # -- for sessions

    def forget(self, session: PlannedSession) -> None:
        """Count a session no longer."""
        self._sessions.discard(session)

    def export(self, session: PlannedSession, layers: range) -> SequenceKv:
        """Keys and values of ``layers`` from where they are, or are computed again."""
        n = session.length

        def export() -> SequenceKv:
            route, model = session.plan.decode, self.model
            self._prepare(session, route, n, 0)
            found: dict[int, LayerKv] = {}
            for stage in route:
                wanted = common_layers(stage.layers, layers)
                if wanted:
                    with self._live.on(stage.site):
                        part = session.parts[stage.site]
                        found |= part.session.export(wanted).layers
            return SequenceKv(
                key_bits=model.key_bits,
                value_bits=model.value_bits,
                layers=dict(sorted(found.items())),
            )

        return self._without_failing([(session, n)], export)

    def restore(self, session: PlannedSession, kv: SequenceKv) -> None:
        """Replace keys and values of all layers, on the devices that answer."""

        def restore() -> None:
            for stage in session.plan.decode:
                layers = {i: kv.layers[i] for i in stage.layers}
                for site in stage.sites:
                    part = self._mover.part(session, site)
                    with self._live.on(site):
                        part.restore(replace(kv, layers=layers))

        self.rewind([(session, 0)])
        session.tokens = []
        self._without_failing([(session, 0)], restore)

    def reserve(self, session: PlannedSession, n: int, spare: int) -> None:
        """Have memory for ``n`` positions on the devices of a session that do not fail of it."""
        for site, part in list(session.parts.items()):
            try:
                with self._live.on(site):
                    part.session.reserve(n, spare)
            except SiteFailed as failed:
                self._leave_out(failed)

    def fork(self, session: PlannedSession, n: int) -> PlannedSession:
        """New session with the first ``n`` positions of another one."""

        def fork() -> PlannedSession:
            other = PlannedSession(self, session.plan)
            try:
                for site, part in list(session.parts.items()):
                    self._mover.settle(session, site)
                    with self._live.on(site):
                        other.parts[site] = part.fork(n)
            except BaseException:
                other.close()
                raise
            return other

        other = self._without_failing([(session, session.length)], fork)
        other.tokens = session.tokens[:n]
        self._sessions.add(other)
        return other

    def rewind(self, sessions: Sequence[tuple[PlannedSession, int]]) -> None:
        """Drop everything behind some positions of sessions."""
        for session, n in sessions:
            for site in list(session.parts):
                try:
                    self._mover.cut(session, site, n)
                except SiteFailed as failed:
                    self._leave_out(failed)
                    session.parts.pop(site, None)

    # -- failures

    def _without_failing(
        self, before: Sequence[tuple[PlannedSession, int]], attempt: Callable[[], T]
    ) -> T:
        """The result of ``attempt``, on devices that do not fail of it; sessions go back to where
        they were ``before`` it is tried again, and after an exception."""
        while True:
            try:
                for session, _ in before:
                    self._replan(session)
                return attempt()
            except SiteFailed as failed:
                self._leave_out(failed)
                self.rewind(before)
            except BaseException:
                self.rewind(before)
                raise

    def _leave_out(self, failed: SiteFailed) -> None:
        """Go on without a device; DeviceError if none is left."""
        with self._lock:
            if self._live.leave_out(failed):
                self._plans = self._chosen()

    def _chosen(self) -> list[Plan]:
        model, sites = self.model, set(self._live.left)
        plans = list(self._choose(model, list(self._live.left)))
        if not plans or any(
            plan.n_layers != len(model.layers) or not plan.sites <= sites for plan in plans
        ):
            raise LutraError(
                f"the plan is for other devices, or another model than {model.name} of "
                f"{len(model.layers)} layers: make one for these"
            )
        return plans

    def _next_plan(self) -> Plan:
        """The plan with the fewest sessions, the first of equals."""
        counts = {id(plan): 0 for plan in self._plans}
        for each in self._sessions:
            if id(each.plan) in counts:
                counts[id(each.plan)] += 1
        return min(self._plans, key=lambda plan: counts[id(plan)])

    def _replan(self, session: PlannedSession) -> None:
        """Give a session that lost a device another plan, and drop what the device had."""
        with self._lock:
            sites = set(self._live.left)
            for site in [each for each in session.parts if each not in sites]:
                del session.parts[site]
            if not session.plan.sites <= sites:
                session.plan = self._next_plan()

    # -- steps

    def _check(self) -> None:
        if self._model is not None and self.process.is_foreign():
            raise LutraError(
                f"device {self.name} was loaded before this process was forked: load the model "
                "again here"
            )

    def _checked(self, step: Step) -> PlannedSession:
        """The session of a step; LutraError if it does not fit."""
        session, n_layers = step.session, len(self.model.layers)
        if not isinstance(session, PlannedSession) or session not in self._sessions:
            if isinstance(session, PlannedSession):
                session.check()
            raise LutraError(f"the session is not one of device {self.name}: open one there")
        session.check()
        if step.layers not in (None, range(n_layers)) or step.residual is not None:
            raise LutraError(
                f"device {self.name} divides layers itself: leave layers and residual out"
            )
        check_tokens(step.tokens)
        return session

    def _item(self, step: Step, session: PlannedSession) -> _Item:
        return _Item(step, session, session.length)

    def _attempt(self, items: Sequence[_Item]) -> list[StepResult]:
        if len({id(item.session) for item in items}) < len(items):
            raise LutraError("a session has several steps in one run: give it one")
        groups: dict[Route, list[int]] = {}
        for i, item in enumerate(items):
            groups.setdefault(self._route(item), []).append(i)
        results: dict[int, StepResult] = {}

        def run(route: Route) -> None:
            own = groups[route]
            done = self._run_route(route, [items[i] for i in own])
            results.update(zip(own, done, strict=True))

        all_at_once([lambda route=route: run(route) for route in groups])
        predicted = self._predicted(
            {route: [items[i] for i in own] for route, own in groups.items()}
        )
        return [replace(results[i], predicted_s=predicted) for i in range(len(items))]

    def _predicted(self, groups: Mapping[Route, Sequence[_Item]]) -> float | None:
        """Seconds that were expected of what ran on several routes at once."""
        if self._expect is None:
            return None
        every = {site for route in groups for stage in route for site in stage.sites}
        beside = self._live.beside(every)
        return max(
            self._expect(
                route, [item.n for item in items], [item.position for item in items], beside
            )
            for route, items in groups.items()
        )

    def _route(self, item: _Item) -> Route:
        plan = item.session.plan
        is_prompt = item.n > _PROMPT_TOKENS or not item.position
        return plan.prefill if is_prompt else plan.decode

    def _run_route(self, route: Route, items: Sequence[_Item]) -> list[StepResult]:
        onward = any(Plan(route, item.session.plan.decode).is_handed_over for item in items)
        for item in items:
            self._prepare(item.session, route, item.position, item.n)
            for stage in item.session.plan.decode if onward else ():
                for site in stage.sites:
                    self._mover.part(item.session, site)
        portions = [Portion(item.step.tokens, item.step.logits_from) for item in items]
        return self._through(route, [item.session for item in items], portions, onward=onward)

    def _prepare(self, session: PlannedSession, route: Route, n: int, coming: int) -> None:
        """Have the first ``n`` positions where ``route`` needs them; see :class:`KvMover`."""
        tokens = self._mover.prepare(session, route, n, coming)
        if tokens:
            self._through(route, [session], [Portion(tokens, len(tokens))], onward=False)

    def _through(
        self,
        route: Route,
        sessions: Sequence[PlannedSession],
        portions: Sequence[Portion],
        *,
        onward: bool,
    ) -> list[StepResult]:
        """Tokens of sessions through a route; ``onward``: then to where they are needed next."""

        def run(leg: Leg, chunk: Sequence[Portion]) -> list[StepResult]:
            some = [i for i, portion in enumerate(chunk) if len(portion.tokens)]
            parts = {site: [sessions[i].parts[site] for i in some] for site in leg.sites}
            steps = {
                site: [
                    Step(
                        session=part.session,
                        tokens=chunk[i].tokens,
                        logits_from=chunk[i].logits_from,
                        layers=None if leg.is_all else leg.layers,
                        residual=chunk[i].residual,
                    )
                    for i, part in zip(some, own, strict=True)
                ]
                for site, own in parts.items()
            }
            with self._live.turn(leg.sites):
                start = time.perf_counter()
                found = self._run_leg(leg, steps)
                seconds = time.perf_counter() - start
            first = parts[leg.sites[0]]
            self._note(
                replace(leg.stage, layers=leg.layers),
                [len(chunk[i].tokens) for i in some],
                [part.lengths[leg.layers.start] for part in first],
                seconds,
            )
            results = [self._nothing] * len(chunk)
            for i, result in zip(some, found, strict=True):
                results[i] = result
                for part in (sessions[i].parts[site] for site in leg.sites):
                    for layer in leg.layers:
                        part.lengths[layer] += len(chunk[i].tokens)
            return results

        def finished(leg: Leg) -> None:
            for session in sessions if onward else ():
                self._mover.send(session, leg.sites, leg.layers)

        legs = legs_of(route, by_layer=onward and len(route) == 1)
        return run_legs(legs, portions, run, finished)

    def _run_leg(self, leg: Leg, steps: Mapping[int, Sequence[Step]]) -> list[StepResult]:
        """Steps of each device of a leg, which are the same ones in its own sessions."""
        if not leg.stage.shares:
            [site] = leg.sites
            with self._live.on(site) as device:
                return device.run(steps[site])

        def share(site: int, own: Share) -> list[StepResult]:
            with self._live.on(site) as device:
                return sharing(device, self.labels[site]).run_share(steps[site], own)

        devices = [self.devices[site] for site in leg.sites]
        return self._rows.run(
            leg.stage, devices, self.model, [partial(share, site) for site in leg.sites]
        )

    def _note(
        self, stage: Stage, sizes: Sequence[int], positions: Sequence[int], seconds: float
    ) -> None:
        """Keep what a pass took; when there are many, somebody may learn from them."""
        self.took.note(
            Fact(
                stage=stage,
                sizes=tuple(sizes),
                positions=tuple(positions),
                seconds=seconds,
                beside=self._live.beside(stage.sites),
            )
        )
        if self._learn is not None and len(self.took) >= _LESSON:
            if self._learning.acquire(blocking=False):
                try:
                    self._learn(self.took.take())
                finally:
                    self._learning.release()

    @property
    def _nothing(self) -> StepResult:
        """Result of no tokens."""
        return StepResult(
            logits=np.empty((0, self.model.vocab_size), np.int64),
            scale=np.empty(0),
            argmax=np.empty(0, np.int64),
        )

    def _greedy(
        self, session: PlannedSession, n: int, token: int, n_tokens: int, ends: Collection[int]
    ) -> GreedyResult:
        """Greedy tokens at position ``n``, by the device itself if it has all layers."""
        route = session.plan.decode
        if _is_divided(route):
            step = Step(session=session, tokens=[token])
            item = self._item(step, session)
            [result] = self._run_route(route, [item])
            return GreedyResult(
                tokens=result.argmax.tolist(),
                saturated=result.saturated,
                cycles=result.cycles,
                predicted_s=self._predicted({route: [item]}),
            )
        self._prepare(session, route, n, 1)
        site = route[0].site
        part = session.parts[site]
        with self._live.turn([site]), self._live.on(site) as device:
            start = time.perf_counter()
            made = device.greedy(part.session, token, n_tokens, ends)
            seconds = time.perf_counter() - start
        if made.tokens:
            each = seconds / len(made.tokens)
            self._note(route[0], [1], [n + len(made.tokens) // 2], each)
        part.lengths = [length + len(made.tokens) for length in part.lengths]
        if made.error is not None:
            # what was made is right, and the next call goes elsewhere
            self._leave_out(SiteFailed(site, made.error))
        predicted = None
        if self._expect is not None:
            n_made = len(made.tokens)
            beside = self._live.beside(route[0].sites)
            predicted = n_made * self._expect(route, [1], [n + n_made // 2], beside)
        return replace(made, error=None, predicted_s=predicted)

"""Threads that keep the devices of a plan busy: one for each phase, stage, or plan of several."""

from collections.abc import Collection, Mapping, Sequence

from lutra.devices.base import GreedyResult, Session, Step, StepResult
from lutra.serving.batch import Batch, Places, Request
from lutra.serving.engine import BatchEngine
from lutra.serving.loaded import LoadedModel
from lutra.serving.plans.device import PlannedDevice
from lutra.serving.plans.layout import Plan
from lutra.serving.prefixes import KnownPrefixes
from lutra_golden.model.packed import PackedModel

__all__ = ["LaneEngine"]


class LaneEngine:
    """Runs the requests of a planned device in several threads, so that its devices overlap.

    Where phases are split, one has prompts, one after another, and gives each request to the other
    at its first token. Where layers are, there are as many as stages: while one's pass is on the
    second device, another's is on the first. Of several plans each has one. A request goes to the
    thread that has the fewest. At most ``most`` of them are on the devices at a time.
    """

    def __init__(self, loaded: LoadedModel, device: PlannedDevice, most: int) -> None:
        self._lanes: list[tuple[BatchEngine, BatchEngine]] = []
        self._engines: list[BatchEngine] = []
        self._own: list[LoadedModel] = []
        plans, places = device.plans, Places(most)
        for plan in plans:
            own = loaded
            if len(plans) > 1:
                # the memory of known prefixes is divided, too
                kept = loaded.known.max_bytes // len(plans)
                own = LoadedModel(device.model, Lane(device, plan), None, kept)
                self._own.append(own)
            if plan.kind == "phase split":
                answers = self._engine(Batch(own, places=places))
                prompts = self._engine(
                    Batch(own, 1, hand_on=answers.adopt, others=self._running, places=places)
                )
                self._lanes.append((prompts, answers))
            else:
                for _ in plan.decode:
                    engine = self._engine(Batch(own, others=self._running, places=places))
                    self._lanes.append((engine, engine))

    def _engine(self, batch: Batch) -> BatchEngine:
        engine = BatchEngine(batch)
        self._engines.append(engine)
        return engine

    @property
    def n_waiting(self) -> int:
        """Requests that have no sessions yet."""
        return sum(engine.n_waiting for engine in self._engines)

    @property
    def n_running(self) -> int:
        """Requests that have sessions on the devices."""
        return sum(engine.n_running for engine in self._engines)

    @property
    def known(self) -> Sequence[KnownPrefixes]:
        """What is kept of ended sequences, for the prompts of later requests; lanes may share
        it."""
        return [each for engine in self._engines for each in engine.known]

    @property
    def ended(self) -> bool:
        """True if no more requests are taken."""
        return any(engine.ended for engine in self._engines)

    def _running(self) -> int:
        return self.n_running

    def submit(self, request: Request) -> None:
        """Let a request take part; LutraError if the engine has ended."""
        first, _ = min(self._lanes, key=lambda lane: sum(each.n_requests for each in set(lane)))
        first.submit(request)

    def cancel(self, request: Request) -> None:
        """Let a request end before the next pass."""
        for engine in self._engines:
            engine.cancel(request)

    def close(self) -> None:
        """End all requests with an error, and the threads."""
        for engine in self._engines:
            engine.close()
        for loaded in self._own:
            loaded.close()


class Lane:
    """A planned device whose new sessions follow one of its plans."""

    def __init__(self, device: PlannedDevice, plan: Plan) -> None:
        self._device, self._plan, self.name = device, plan, device.name

    @property
    def pass_tokens(self) -> int:
        """Most tokens that share one pass over the weights."""
        return self._device.pass_tokens

    @property
    def greedy_tokens(self) -> int:
        """Most tokens that :meth:`greedy` makes without the host."""
        return self._device.greedy_tokens

    @property
    def model(self) -> PackedModel:
        """The model that is loaded."""
        return self._device.model

    def load(self, model: PackedModel) -> None:
        """Load a model on all devices of the plan."""
        self._device.load(model)

    def session(self) -> Session:
        """New, empty session of the plan."""
        return self._device.session(self._plan)

    def run(self, steps: Sequence[Step]) -> list[StepResult]:
        """Run steps of different sessions."""
        return self._device.run(steps)

    def greedy(
        self, session: Session, token: int, n: int, ends: Collection[int] = ()
    ) -> GreedyResult:
        """Make ``n`` greedy tokens that follow ``token``."""
        return self._device.greedy(session, token, n, ends)

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run."""
        return self._device.counters()

    def facts(self) -> Mapping[str, str | int]:
        """The plans in words."""
        return self._device.facts()

    def close(self) -> None:
        """Nothing: the planned device is closed by whoever made it."""

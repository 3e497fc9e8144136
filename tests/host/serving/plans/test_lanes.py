"""Requests on a device of several: the tokens are those of one device, and devices overlap."""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, contextmanager

import pytest
from tests.host.gate import WAIT_S, gated, until
from tests.host.serving.test_batch import GREEDY, Client, alone, prompt

from lutra import SamplingParams
from lutra.devices.base import Chunk, Device, DeviceError, PassResult
from lutra.devices.golden import GoldenDevice
from lutra.serving.batch import MOST_AT_ONCE, Batch
from lutra.serving.engine import BatchEngine, make_engine, own_engine
from lutra.serving.loaded import LoadedModel
from lutra.serving.plans.device import PlannedDevice, fixed
from lutra.serving.plans.lanes import LaneEngine
from lutra.serving.plans.layout import Plan, RowShare, Stage, by_rows
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shares import Party

Model = Callable[[str], PackedModel]
SPLIT = Plan(Plan.on(0, 2).prefill, Plan.on(1, 2).decode)
PIPELINE = Plan(*([(Stage(0, range(1)), Stage(1, range(1, 2)))] * 2))
ROWS = by_rows((RowShare(0, 1), RowShare(1, 1)), 2)
PLANS: dict[str, list[Plan]] = {
    "whole": [Plan.on(0, 2)],
    "phases": [SPLIT],
    "pipeline": [PIPELINE],
    "side by side": [Plan.on(0, 2), Plan.on(1, 2)],
    "rows": [Plan(ROWS, ROWS)],
}


class Failing(GoldenDevice):
    """Fails after some passes."""

    def __init__(self, passes: int = 10**9) -> None:
        super().__init__()
        self.passes = passes

    def _pass_of(self, party: Party | None, chunks: Sequence[Chunk]) -> PassResult:
        self.passes -= 1
        if self.passes < 0:
            raise DeviceError("it hangs: power it off and on")
        return super()._pass_of(party, chunks)


@contextmanager
def held(devices: Sequence[Device]) -> Generator[Callable[[], None]]:
    """Devices that run nothing before what this gives is called."""
    with ExitStack() as stack:
        gates = [stack.enter_context(gated(each, taken=False)) for each in devices]

        def go() -> None:
            for each in gates:
                each.open()

        yield go


def engine_of(
    model: PackedModel,
    plans: Sequence[Plan],
    devices: Sequence[GoldenDevice],
    most: int = MOST_AT_ONCE,
) -> tuple[PlannedDevice, LaneEngine]:
    device = PlannedDevice(devices, fixed(*plans), labels=["a", "b"])
    device.load(model)
    engine = make_engine(LoadedModel(model, device, None, 1 << 20), most)
    assert isinstance(engine, LaneEngine)
    return device, engine


def run(
    model: PackedModel,
    engine: LaneEngine,
    lengths: Sequence[int],
    n: int = 5,
    submitted: Callable[[], object] = lambda: None,
) -> list[BaseException]:
    """Submit requests, call ``submitted``, and compare the tokens with those of each alone."""
    own: list[tuple[Client, list[int], SamplingParams]] = []
    left, errors = threading.Semaphore(0), list[BaseException]()
    for i, length in enumerate(lengths):
        sampling = GREEDY if i % 2 else SamplingParams(temperature=1.5, seed=i)
        client = Client(n)
        own.append((client, prompt(length, i, model.vocab_size), sampling))
        request = client.request(own[-1][1], sampling)

        def ended(error: BaseException | None) -> None:
            if error is not None:
                errors.append(error)
            left.release()

        request.ended = ended
        engine.submit(request)
    submitted()
    for _ in lengths:
        assert left.acquire(timeout=WAIT_S)
    if not errors:
        for client, tokens, sampling in own:
            assert client.tokens == alone(model, tokens, n, sampling)
    return errors


@pytest.mark.parametrize("kind", PLANS)
def test_tokens_are_those_of_a_request_alone(kind: str, packed: Model) -> None:
    model = packed("grouped")
    device, engine = engine_of(model, PLANS[kind], [Failing(), Failing()])
    with closing(engine):
        assert run(model, engine, (3, 19, 1, 9, 20)) == []
        # prompts that begin like earlier ones
        assert run(model, engine, (3, 19, 9)) == []
    assert not device.notes


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("most", [1, 3])
def test_no_more_requests_are_on_the_devices_than_there_may_be(
    kind: str, most: int, packed: Model
) -> None:
    """Those that are answered elsewhere, and those between two threads, count, too."""
    model, seen = packed("grouped"), list[int]()

    class Watched(GoldenDevice):
        def _pass_of(self, party: Party | None, chunks: Sequence[Chunk]) -> PassResult:
            seen.append(engine.n_running)
            return super()._pass_of(party, chunks)

    first, second = Watched(), Watched()
    _, engine = engine_of(model, PLANS[kind], [first, second], most)
    # of split phases, prompts go on while the first answer waits
    waits = [second] if kind == "phases" else [first, second]
    with closing(engine), held(waits) as go:

        def submitted() -> None:
            if kind == "phases":
                until(lambda: engine.n_running == most)
            go()

        assert run(model, engine, (9, 3, 14, 11, 2), 6, submitted) == []
    assert max(seen) == most


@pytest.mark.parametrize(
    ("kind", "at"), [("phases", 3), ("pipeline", 2), ("side by side", 1), ("rows", 1)]
)
def test_devices_work_at_the_same_time(kind: str, at: int, packed: Model) -> None:
    """One is asked for its run ``at`` while the other one is for its first; a prompt goes from
    phase to phase in two runs, layer by layer."""
    model = packed("grouped")
    first, second = GoldenDevice(), GoldenDevice()
    _, engine = engine_of(model, PLANS[kind], [first, second])
    with (
        closing(engine),
        gated(first, at, taken=False) as one,
        gated(second, taken=False) as other,
    ):

        def at_once() -> None:
            until(lambda: one.holds and other.holds)
            one.open()
            other.open()

        assert run(model, engine, (9, 12), submitted=at_once) == []


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_device_fails_while_requests_are_on_it(kind: str, victim: int, packed: Model) -> None:
    model = packed("grouped")
    for passes in (0, 1, 3):
        devices = [Failing(), Failing()]
        devices[victim].passes = passes
        device, engine = engine_of(model, PLANS[kind], devices)
        with closing(engine), held(devices) as go:
            assert run(model, engine, (5, 18, 9), submitted=go) == []
        assert len(device.notes) == ((kind, victim) != ("whole", 1))


def test_errors_of_the_last_device_end_requests(packed: Model) -> None:
    model = packed("grouped")
    _, engine = engine_of(model, [SPLIT], [Failing(0), Failing(0)])
    with closing(engine):
        errors = run(model, engine, (5, 9))
    assert errors and all("it hangs" in str(error) for error in errors)


def test_a_request_is_cancelled(packed: Model) -> None:
    model = packed("grouped")
    first = GoldenDevice()
    _, engine = engine_of(model, [SPLIT], [first, GoldenDevice()])
    with closing(engine), gated(first) as gate:
        client, ended = Client(10), threading.Event()
        request = client.request([1, 2, 3])
        request.ended = lambda error: ended.set()
        engine.submit(request)
        until(lambda: gate.holds)
        engine.cancel(request)
        gate.open()
        assert ended.wait(WAIT_S)
        assert client.tokens == []
    with pytest.raises(LutraError, match="no longer taken"):
        engine.submit(request)


def test_other_devices_have_one_thread(packed: Model) -> None:
    device = GoldenDevice()
    device.load(packed("grouped"))
    loaded = LoadedModel(device.model, device, None, 0)
    assert own_engine(loaded) is None
    with closing(make_engine(loaded)) as engine:
        assert isinstance(engine, BatchEngine)


def test_requests_that_end_with_their_prompt_are_not_handed_on(packed: Model) -> None:
    model = packed("grouped")
    device = GoldenDevice()
    device.load(model)
    handed: list[object] = []
    batch = Batch(LoadedModel(model, device, None, 0), hand_on=handed.append)
    one, two = Client(1), Client(2)
    for client in (one, two):
        batch.add(client.request([1, 2, 3]))
    while batch.step():
        pass
    assert len(handed) == 1 and one.ends == [None] and two.ends == []
    assert len(two.tokens) == 1


def test_requests_wait_for_memory_of_other_threads(packed: Model) -> None:
    """There is room for two sessions on each device, one of which has a prompt."""
    model = packed("grouped")
    devices = [GoldenDevice(), GoldenDevice()]
    for device in devices:
        device.memory_limit = 2 * device._session_bytes(model)
    _, engine = engine_of(model, [SPLIT], devices)
    with closing(engine), gated(devices[1], taken=False) as gate:

        def submitted() -> None:
            until(lambda: (engine.n_running, engine.n_waiting) == (2, 3))
            gate.open()

        assert run(model, engine, (5, 18, 9, 7, 3), submitted=submitted) == []

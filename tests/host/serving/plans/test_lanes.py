"""Requests on a device of several: the tokens are those of one device, and devices overlap."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import pytest
from tests.host.serving.test_batch import GREEDY, Client, alone, prompt

from lutra import SamplingParams
from lutra.devices.base import Chunk, DeviceError, PassResult
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


AT_ONCE: set[str] = set()
INSIDE: list[str] = []


class Slow(GoldenDevice):
    """Takes a while for a pass, notes who is in one with it, and may fail after some passes."""

    def __init__(self, label: str, passes: int = 10**9, seconds: float = 0.0) -> None:
        super().__init__()
        self.label, self.passes, self.seconds = label, passes, seconds

    def bytes_of(self, model: PackedModel) -> int:
        return self._session_bytes(model)

    def _pass_of(self, party: Party | None, chunks: Sequence[Chunk]) -> PassResult:
        self.passes -= 1
        if self.passes < 0:
            raise DeviceError("it hangs: power it off and on")
        INSIDE.append(self.label)
        time.sleep(self.seconds)
        if len(set(INSIDE)) > 1:
            AT_ONCE.update(INSIDE)
        result = super()._pass_of(party, chunks)
        INSIDE.remove(self.label)
        return result


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
    model: PackedModel, engine: LaneEngine, lengths: Sequence[int], n: int = 5
) -> list[BaseException]:
    """Submit requests and compare their tokens with those of each alone."""
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
    for _ in lengths:
        assert left.acquire(timeout=60)
    if not errors:
        for client, tokens, sampling in own:
            assert client.tokens == alone(model, tokens, n, sampling)
    return errors


@pytest.mark.parametrize("kind", PLANS)
def test_tokens_are_those_of_a_request_alone(kind: str, packed: Model) -> None:
    model = packed("grouped")
    device, engine = engine_of(model, PLANS[kind], [Slow("a"), Slow("b")])
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

    class Watched(Slow):
        def _pass_of(self, party: Party | None, chunks: Sequence[Chunk]) -> PassResult:
            seen.append(engine.n_running)
            return super()._pass_of(party, chunks)

    _, engine = engine_of(model, PLANS[kind], [Watched("a"), Watched("b")], most)
    with closing(engine):
        assert run(model, engine, (9, 3, 14, 11, 2), n=6) == []
    assert max(seen) == most


@pytest.mark.parametrize("kind", [kind for kind in PLANS if kind != "whole"])
def test_devices_work_at_the_same_time(kind: str, packed: Model) -> None:
    model = packed("grouped")
    AT_ONCE.clear()
    _, engine = engine_of(model, PLANS[kind], [Slow("a", seconds=0.01), Slow("b", seconds=0.01)])
    with closing(engine):
        assert run(model, engine, (9, 12, 14, 11), n=8) == []
    assert AT_ONCE == {"a", "b"}


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_device_fails_while_requests_are_on_it(kind: str, victim: int, packed: Model) -> None:
    model = packed("grouped")
    for passes in (0, 1, 3):
        devices = [Slow("a"), Slow("b")]
        devices[victim].passes = passes
        device, engine = engine_of(model, PLANS[kind], devices)
        with closing(engine):
            assert run(model, engine, (5, 18, 9)) == []
        assert len(device.notes) == ((kind, victim) != ("whole", 1))


def test_errors_of_the_last_device_end_requests(packed: Model) -> None:
    model = packed("grouped")
    _, engine = engine_of(model, [SPLIT], [Slow("a", 0), Slow("b", 0)])
    with closing(engine):
        errors = run(model, engine, (5, 9))
    assert errors and all("it hangs" in str(error) for error in errors)


def test_a_request_is_cancelled(packed: Model) -> None:
    model = packed("grouped")
    _, engine = engine_of(model, [SPLIT], [Slow("a", seconds=0.02), Slow("b", seconds=0.02)])
    with closing(engine):
        client, ended = Client(10), threading.Event()
        request = client.request([1, 2, 3])
        request.ended = lambda error: ended.set()
        engine.submit(request)
        engine.cancel(request)
        assert ended.wait(60)
        assert len(client.tokens) < 10
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
    devices = [Slow("a", seconds=0.002), Slow("b", seconds=0.002)]
    for device in devices:
        device.memory_limit = 2 * device.bytes_of(model)
    _, engine = engine_of(model, [SPLIT], devices)
    with closing(engine):
        assert run(model, engine, (5, 18, 9, 7, 3)) == []

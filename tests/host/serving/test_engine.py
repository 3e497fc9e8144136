"""The thread of a batch: requests from several threads, its end, and its errors."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest
from tests.host.gate import WAIT_S, gated, until
from tests.host.serving.test_batch import GREEDY, Watched, alone, loaded, prompt

from lutra.serving.batch import Batch, Request
from lutra.serving.engine import BatchEngine
from lutra.text.sampling import Sampler
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

Model = Callable[[str], PackedModel]
End = tuple[list[int], BaseException | None]


class Client:
    """Waits for a request of ``n`` tokens."""

    def __init__(self, tokens: list[int], n: int) -> None:
        self.made: list[int] = []
        self.done: Queue[BaseException | None] = Queue()
        self.request = Request(
            prompt=tokens,
            sampler=Sampler(GREEDY),
            accept=lambda token, _result: self.made.append(token) or len(self.made) == n,
            ended=self.done.put,
        )

    def wait(self) -> End:
        return self.made, self.done.get(timeout=WAIT_S)


def test_requests_of_several_threads(packed: Model) -> None:
    model = packed("grouped")
    engine = BatchEngine(Batch(loaded(Watched(model)), most=3))
    prompts = [prompt(3 + i, i, model.vocab_size) for i in range(8)]
    found: dict[int, End] = {}

    def ask(i: int) -> None:
        client = Client(prompts[i], 4)
        engine.submit(client.request)
        found[i] = client.wait()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for i, tokens in enumerate(prompts):
        assert found[i] == (alone(model, tokens, 4, GREEDY), None)
    # when it waits, it is woken
    later = Client([1, 2], 2)
    engine.submit(later.request)
    assert later.wait() == (alone(model, [1, 2], 2, GREEDY), None)
    engine.close()


def test_closing_ends_what_is_under_way(packed: Model) -> None:
    device = Watched(packed("grouped"))
    engine = BatchEngine(Batch(loaded(device)))
    client = Client([1, 2], 10)
    with ThreadPoolExecutor() as pool, gated(device, 3) as gate:
        engine.submit(client.request)
        until(lambda: gate.holds)
        closed = pool.submit(engine.close)
        until(lambda: engine.ended)
        gate.open()
        closed.result()
    made, error = client.wait()
    assert len(made) == 3
    assert isinstance(error, LutraError) and str(error).startswith("the model was closed")
    with pytest.raises(LutraError, match=r"^requests are no longer taken: the model was closed"):
        engine.submit(Client([1], 1).request)


def test_a_request_can_be_cancelled(packed: Model) -> None:
    model = packed("grouped")
    engine = BatchEngine(Batch(loaded(Watched(model)), most=1))
    first, second = Client([1, 2], 20), Client([1, 2], 20)
    engine.cancel(second.request)
    engine.submit(first.request)
    engine.submit(second.request)
    assert second.wait() == ([], None)
    assert len(first.wait()[0]) == 20
    engine.close()


def test_a_model_that_is_gone(packed: Model) -> None:
    """Whoever asks is told, one after another."""
    model = packed("grouped")
    device = Watched(model)
    engine = BatchEngine(Batch(loaded(device)))
    device.load(packed("least"))
    for _ in range(2):
        client = Client([1, 2], 3)
        engine.submit(client.request)
        made, error = client.wait()
        assert not made
        assert isinstance(error, LutraError) and "has loaded the model" in str(error)
    engine.close()


def test_an_error_of_all_ends_the_engine(packed: Model) -> None:
    model = packed("grouped")
    device = Watched(model)
    batch = Batch(loaded(device))

    def broken() -> bool:
        raise MemoryError("no memory for logits")

    batch.step = broken
    engine = BatchEngine(batch)
    engine._thread.join(WAIT_S)
    with pytest.raises(LutraError, match=r"^requests are no longer taken: no memory for logits$"):
        engine.submit(Client([1, 2], 3).request)

"""Continuous batching: the tokens of each request are those that it has alone."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from lutra.devices.base import Chunk, DeviceError, PassResult, StepResult
from lutra.devices.golden import GoldenDevice
from lutra.serving.batch import Batch, Request
from lutra.serving.loaded import LoadedModel
from lutra.serving.sequence import TokenSequence
from lutra.text.sampling import Sampler, SamplingParams
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

GREEDY = SamplingParams(temperature=0)
Model = Callable[[str], PackedModel]


class Watched(GoldenDevice):
    """Notes the chunks of its passes, and fails where a token is ``bad``."""

    pass_tokens = 8

    def __init__(self, model: PackedModel, memory_limit: int | None = None) -> None:
        super().__init__(memory_limit=memory_limit)
        self.seen: list[list[int]] = []
        self.bad: int | None = None
        self.load(model)

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        if any(self.bad in chunk.tokens for chunk in chunks):
            raise DeviceError("a bus error: check the board")
        self.seen.append([len(chunk.tokens) for chunk in chunks])
        return super()._pass(chunks)


@dataclass
class Client:
    """Gathers the tokens and the end of a request."""

    most: int
    tokens: list[int] = field(default_factory=list[int])
    ends: list[BaseException | None] = field(default_factory=list[BaseException | None])

    def accept(self, token: int, _result: StepResult) -> bool:
        self.tokens.append(token)
        return len(self.tokens) >= self.most

    def request(
        self, prompt: Sequence[int], sampling: SamplingParams = GREEDY, priority: int = 0
    ) -> Request:
        return Request(
            prompt=prompt,
            sampler=Sampler(sampling),
            accept=self.accept,
            ended=self.ends.append,
            priority=priority,
        )


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def loaded(device: GoldenDevice, prefix_bytes: int = 0) -> LoadedModel:
    return LoadedModel(device.model, device, None, prefix_bytes)


def prompt(n: int, seed: int, vocab_size: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, n).tolist()


def alone(model: PackedModel, tokens: Sequence[int], n: int, sampling: SamplingParams) -> list[int]:
    """The tokens of a prompt that has a device for itself."""
    device, sampler, made = GoldenDevice(), Sampler(sampling), list[int]()
    device.load(model)
    sequence = TokenSequence.open(device, None)
    while len(made) < n:
        result, _ = sequence.run(tokens, len(tokens) - 1)
        made.append(sampler(result.logits[-1], float(result.scale[-1])))
        tokens = made[-1:]
    return made


def finish(batch: Batch) -> None:
    while batch.step():
        pass
    assert (batch.n_running, batch.n_waiting) == (0, 0)


@pytest.mark.parametrize("prefix_bytes", [0, 1 << 20])
def test_tokens_are_those_of_a_request_alone(packed: Model, prefix_bytes: int) -> None:
    """Of prompts shorter and longer than a pass, greedy and drawn, that come one after another."""
    model = packed("grouped")
    device = Watched(model)
    batch = Batch(loaded(device, prefix_bytes))
    requests: list[tuple[Client, list[int], SamplingParams]] = []
    for i, n in enumerate((3, 19, 1, 9, 5, 20)):
        sampling = GREEDY if i % 2 else SamplingParams(temperature=1.5, seed=i)
        requests.append((Client(5 + i), prompt(n, i, model.vocab_size), sampling))
    for client, tokens, sampling in requests:
        batch.add(client.request(tokens, sampling))
        batch.step()
    finish(batch)
    for client, tokens, sampling in requests:
        assert client.tokens == alone(model, tokens, client.most, sampling)
        assert client.ends == [None]
    assert max(map(len, device.seen)) > 2


def test_a_long_prompt_does_not_stop_others(packed: Model) -> None:
    """Every pass has a token of each request that is past its prompt, and room for the rest."""
    model = packed("grouped")
    device = Watched(model)
    batch = Batch(loaded(device))
    first, second = Client(20), Client(3)
    batch.add(first.request(prompt(4, 1, model.vocab_size)))
    batch.step()
    batch.add(second.request(prompt(18, 2, model.vocab_size)))
    for n in (2, 3, 4):
        batch.step()
        assert len(first.tokens) == n
    assert device.seen[1:4] == [[1, 7], [1, 7], [1, 4]]
    assert len(second.tokens) == 1
    finish(batch)


def test_a_prompt_does_not_starve_beside_many_answers(packed: Model) -> None:
    """Seven answers leave one place of eight: the prompt has eight more, and ends in two passes."""
    model = packed("grouped")
    device = Watched(model)
    batch = Batch(loaded(device))
    answers = [Client(9) for _ in range(7)]
    for i, client in enumerate(answers):
        batch.add(client.request([i]))
    batch.step()
    late = Client(1)
    batch.add(late.request(prompt(18, 1, model.vocab_size)))
    batch.step()
    assert device.seen[1:] == [[1] * 8, [8]]
    batch.step()
    assert device.seen[3:] == [[1] * 8, [8]]
    assert len(late.tokens) == 1
    assert [len(client.tokens) for client in answers] == [3] * 7


def test_prompts_share_a_pass(packed: Model) -> None:
    model = packed("grouped")
    device = Watched(model)
    batch = Batch(loaded(device))
    for i, n in enumerate((5, 6, 4)):
        batch.add(Client(1).request(prompt(n, i, model.vocab_size)))
    finish(batch)
    assert device.seen == [[5, 3], [3, 4]]
    assert batch.passes == 2


def test_chunks_are_as_long_as_a_pass_may_take(packed: Model) -> None:
    """Where a token takes 10 ms, 25 share a pass with requests that wait for theirs."""
    model = packed("grouped")
    device = Watched(model)
    device.pass_tokens = 512
    batch = Batch(loaded(device))
    batch.add(Client(9).request(prompt(4, 1, model.vocab_size)))
    batch.step()
    batch.pace.token_s = 0.01
    batch.add(Client(9).request(prompt(30, 2, model.vocab_size)))
    batch.step()
    assert device.seen[-1] == [1, 25]


def test_who_goes_first(packed: Model) -> None:
    """The highest priority, then the shortest prompt, unless the longer one has waited for it."""
    model = packed("grouped")
    device, clock = Watched(model), Clock()
    device.pass_tokens = 512
    batch = Batch(loaded(device), most=1, clock=clock)
    batch.pace.token_s = 1.0
    clients = {name: Client(1) for name in ("long", "short", "urgent", "late")}
    batch.add(clients["long"].request(prompt(20, 1, model.vocab_size)))
    batch.add(clients["short"].request(prompt(5, 2, model.vocab_size)))
    batch.add(clients["urgent"].request(prompt(30, 3, model.vocab_size), priority=1))
    done: list[str] = []

    def step() -> None:
        batch.pace.token_s = 1.0
        batch.step()
        done.extend(each for each, c in clients.items() if c.ends and each not in done)

    step()
    step()
    assert done == ["urgent", "short"]
    clock.now = 16.0
    batch.add(clients["late"].request(prompt(5, 4, model.vocab_size)))
    step()
    assert done[2:] == ["long"]
    step()
    assert done[3:] == ["late"]


@pytest.mark.parametrize("n_sessions", [1, 2])
def test_requests_wait_for_memory(packed: Model, n_sessions: int) -> None:
    model = packed("grouped")
    session = GoldenDevice()._session_bytes(model)
    device = Watched(model, memory_limit=n_sessions * session)
    batch = Batch(loaded(device, 1 << 30))
    clients = [Client(4) for _ in range(5)]
    for i, client in enumerate(clients):
        batch.add(client.request(prompt(6, i, model.vocab_size)))
    batch.step()
    assert (batch.n_running, batch.n_waiting) == (n_sessions, 5 - n_sessions)
    finish(batch)
    for i, client in enumerate(clients):
        assert client.tokens == alone(model, prompt(6, i, model.vocab_size), 4, GREEDY)


def test_no_memory_at_all(packed: Model) -> None:
    device = Watched(packed("grouped"), memory_limit=1)
    batch, client = Batch(loaded(device)), Client(4)
    batch.add(client.request([1, 2]))
    finish(batch)
    [error] = client.ends
    assert isinstance(error, LutraError) and "no memory for another session" in str(error)


def test_a_common_beginning_is_computed_once(packed: Model) -> None:
    """Requests of one prompt, and one that only begins like it."""
    model = packed("grouped")
    device = Watched(model)
    batch = Batch(loaded(device))
    common = prompt(24, 1, model.vocab_size)
    prompts = [common, common, [*common[:19], 1, 2], [*common[:12], 9]]
    made = [
        (Client(4), each, SamplingParams(temperature=2, seed=i)) for i, each in enumerate(prompts)
    ]
    requests = [client.request(each, sampling) for client, each, sampling in made]
    for each in requests:
        batch.add(each)
    finish(batch)
    assert [each.stats.reused_tokens for each in requests] == [0, 23, 19, 12]
    assert [each.stats.computed_tokens for each in requests] == [24, 1, 2, 1]
    for client, each, sampling in made:
        assert client.tokens == alone(model, each, 4, sampling)


def test_what_requests_leave_behind_does_not_grow(packed: Model) -> None:
    """A hundred requests for three prompts: sessions, kept bytes and objects stay as many."""
    device = Watched(packed("grouped"))
    model = loaded(device, 1 << 30)
    batch, prompts = Batch(model), [prompt(12, i, device.model.vocab_size) for i in range(3)]

    def ask(n: int) -> tuple[int, int, int]:
        for i in range(n):
            batch.add(Client(4).request(prompts[i % 3]))
            if i % 5 == 4:
                finish(batch)
        device.seen.clear()
        gc.collect()
        return len(device._sessions), model.known.n_bytes, len(gc.get_objects())

    sessions, n_bytes, n_objects = ask(20)
    assert sessions == len(model.known) == 3
    more = ask(100)
    assert more[:2] == (sessions, n_bytes)
    assert more[2] - n_objects < 50


def test_a_request_that_is_cancelled_leaves_the_others_alone(packed: Model) -> None:
    model = packed("grouped")
    device = Watched(model)
    batch = Batch(loaded(device), most=2)
    clients = [Client(8) for _ in range(3)]
    requests = [client.request(prompt(6, i, model.vocab_size)) for i, client in enumerate(clients)]
    for each in requests:
        batch.add(each)
    batch.step()
    batch.cancel(requests[0])
    batch.cancel(requests[2])
    batch.step()
    assert len(device.seen[-1]) == 1
    finish(batch)
    assert [len(client.tokens) for client in clients] == [1, 8, 0]
    assert all(client.ends == [None] for client in clients)


def test_a_request_that_the_device_fails_on_ends_alone(packed: Model) -> None:
    model = packed("grouped")
    device = Watched(model)
    device.bad = 77
    batch = Batch(loaded(device))
    clients = [Client(4) for _ in range(3)]
    prompts = [[1, 2, 3], [4, 77, 5], [6, 7, 8]]
    for client, tokens in zip(clients, prompts, strict=True):
        batch.add(client.request(tokens))
    finish(batch)
    [error] = clients[1].ends
    assert isinstance(error, DeviceError)
    assert not clients[1].tokens
    for i in (0, 2):
        device.bad = None
        assert clients[i].tokens == alone(model, prompts[i], 4, GREEDY)


def test_a_client_that_fails_ends_its_request(packed: Model) -> None:
    model = packed("grouped")
    batch, client, ended = Batch(loaded(Watched(model))), Client(3), list[object]()

    def broken(token: int, _result: StepResult) -> bool:
        raise ValueError(token)

    request = Request(prompt=[1, 2], sampler=Sampler(GREEDY), accept=broken, ended=ended.append)
    batch.add(request)
    batch.add(client.request([1, 2, 3]))
    finish(batch)
    assert isinstance(ended[0], ValueError)
    assert len(client.tokens) == 3


def test_the_context_ends_a_request_with_an_error(packed: Model) -> None:
    model = packed("grouped")
    batch, client = Batch(loaded(Watched(model))), Client(10)
    batch.add(client.request(prompt(model.context - 2, 1, model.vocab_size)))
    finish(batch)
    assert len(client.tokens) == 3
    assert isinstance(client.ends[0], LutraError)


def test_closing_ends_all(packed: Model) -> None:
    model = packed("grouped")
    device = Watched(model)
    batch, clients = Batch(loaded(device), most=1), [Client(9), Client(9)]
    for client in clients:
        batch.add(client.request([1, 2, 3]))
    batch.step()
    why = LutraError("the server stops: ask again later")
    batch.close(why)
    assert [client.ends for client in clients] == [[why], [why]]
    assert not batch.step()
    with pytest.raises(LutraError, match="no tokens"):
        batch.add(clients[0].request([]))


def test_a_prompt_waits_for_none_that_comes_after_it(packed: Model) -> None:
    """Others may go before one of lower priority that begins alike: nobody waits for that."""
    model = packed("grouped")
    device = Watched(model)
    batch = Batch(loaded(device))
    common = prompt(16, 1, model.vocab_size)
    slow, between, urgent = Client(2), Client(2), Client(2)
    batch.add(slow.request([*common, *prompt(8, 2, model.vocab_size)]))
    batch.step()
    assert device.seen == [[8]]
    batch.add(between.request(prompt(24, 3, model.vocab_size), priority=1))
    batch.add(urgent.request([*common, *prompt(4, 4, model.vocab_size)], priority=2))
    while not urgent.ends:
        batch.step()
    assert not between.tokens and not slow.tokens
    finish(batch)
    expected = alone(model, [*common, *prompt(4, 4, model.vocab_size)], 2, GREEDY)
    assert urgent.tokens == expected

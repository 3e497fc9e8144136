"""Requests that share the pages of a device: who comes in, who gives way, and the same tokens."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.host.devices.cpu.test_pages import PAGE, long_model
from tests.host.serving.test_batch import GREEDY, Client, alone, finish, prompt

from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

if shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)

from lutra.devices.base import Step
from lutra.devices.cpu import cache as pages
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.golden import GoldenDevice
from lutra.devices.pages import NoRoom
from lutra.serving.batch import Batch
from lutra.serving.loaded import LoadedModel
from lutra.text.sampling import SamplingParams


@dataclass
class Held:
    """A device with pages of 16 positions, and what it has loaded."""

    device: CpuDevice

    @property
    def model(self) -> PackedModel:
        return self.device.model

    @property
    def n(self) -> int:
        """Pages that somebody holds."""
        return self.device._pool.n_held  # pyright: ignore[reportPrivateUsage]

    def loaded(self, n_pages: int, prefix_bytes: int = 0) -> LoadedModel:
        self.device._pool.n_pages = n_pages  # pyright: ignore[reportPrivateUsage]
        return LoadedModel(self.model, self.device, None, prefix_bytes)

    def prompt(self, n: int, seed: int) -> list[int]:
        return prompt(n, seed, self.model.vocab_size)


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    monkeypatch.setattr(pages, "PAGE", PAGE)
    with CpuDevice(threads=1) as device:
        device.load(long_model(tmp_path))
        yield Held(device)


def drawn(seed: int) -> SamplingParams:
    return GREEDY if seed % 2 else SamplingParams(temperature=1.5, seed=seed)


def test_requests_come_in_by_the_pages_of_their_prompts(held: Held) -> None:
    """A page each, and one for each of those that are there: whole contexts would be four each."""
    batch = Batch(held.loaded(5))
    clients = [Client(3) for _ in range(5)]
    for i, client in enumerate(clients):
        batch.add(client.request(held.prompt(6, i)))
    batch.step()
    assert (batch.n_running, batch.n_waiting) == (3, 2)
    finish(batch)
    for i, client in enumerate(clients):
        assert client.tokens == alone(held.model, held.prompt(6, i), 3, GREEDY)
    assert held.n == 0


@pytest.mark.parametrize("n_pages", [3, 9])
@pytest.mark.parametrize("prefix_bytes", [0, 1 << 20])
def test_who_gives_way_goes_on_with_the_same_tokens(
    held: Held, n_pages: int, prefix_bytes: int
) -> None:
    """Answers that need more memory together than there is."""
    batch = Batch(held.loaded(n_pages, prefix_bytes))
    made = [(Client(14 + 3 * i), held.prompt(7 + 4 * i, i), drawn(i)) for i in range(3)]
    requests = [client.request(each, sampling) for client, each, sampling in made]
    for each in requests:
        batch.add(each)
    most = 0
    while batch.step():
        most = max(most, batch.n_running)
        assert held.n <= n_pages
    for (client, each, sampling), request in zip(made, requests, strict=True):
        assert client.ends == [None]
        assert client.tokens == alone(held.model, each, client.most, sampling)
        assert request.stats.prompt_tokens == len(each)
        assert request.stats.decode_steps == client.most - 1
    assert most > 1 and (prefix_bytes or held.n == 0)
    again = sum(request.stats.computed_tokens for request in requests)
    assert (again > sum(len(each) for _, each, _ in made)) == (n_pages < 9)


def test_the_last_in_order_gives_way(held: Held) -> None:
    """Not to those of lower priority, and it does not come back before there is room."""
    batch = Batch(held.loaded(3))
    first, urgent = Client(20), Client(30)
    batch.add(first.request(held.prompt(10, 1)))
    batch.step()
    batch.add(urgent.request(held.prompt(10, 2), priority=1))
    batch.step()
    while batch.n_waiting == 0:
        batch.step()
    n = len(first.tokens)
    assert n == len(urgent.tokens) == 8
    while not urgent.ends:
        batch.step()
        assert len(first.tokens) == n or urgent.ends
    finish(batch)
    assert urgent.tokens == alone(held.model, held.prompt(10, 2), 30, GREEDY)
    assert first.tokens == alone(held.model, held.prompt(10, 1), 20, GREEDY)


def test_one_that_outgrows_all_memory_ends(held: Held) -> None:
    batch = Batch(held.loaded(2))
    long, other = Client(40), Client(3)
    batch.add(long.request(held.prompt(20, 1)))
    batch.add(other.request(held.prompt(5, 2)))
    finish(batch)
    assert long.tokens == alone(held.model, held.prompt(20, 1), 13, GREEDY)
    [error] = long.ends
    assert isinstance(error, NoRoom) and "no memory for 16 more positions" in str(error)
    assert other.tokens == alone(held.model, held.prompt(5, 2), 3, GREEDY)
    never = Client(1)
    batch.add(never.request(held.prompt(40, 3)))
    finish(batch)
    assert isinstance(never.ends[0], LutraError) and not never.tokens


def test_one_that_is_set_back_in_its_prompt(held: Held) -> None:
    """It has no token yet, and none is drawn twice."""
    loaded = held.loaded(4)
    held.device.pass_tokens = 8
    batch, first, long = Batch(loaded), Client(12), Client(4)
    batch.add(first.request(held.prompt(14, 1), drawn(2)))
    batch.step()
    request = long.request(held.prompt(30, 2), drawn(4))
    batch.add(request)
    batch.step()
    assert request.sequence is not None and not long.tokens
    batch._set_back(request)  # pyright: ignore[reportPrivateUsage]
    assert request.sequence is None and batch.n_waiting == 1
    finish(batch)
    assert first.tokens == alone(held.model, held.prompt(14, 1), 12, drawn(2))
    assert long.tokens == alone(held.model, held.prompt(30, 2), 4, drawn(4))


def test_known_prefixes_share_pages_and_give_way(held: Held) -> None:
    loaded = held.loaded(9, 1 << 20)
    batch = Batch(loaded)
    common = held.prompt(PAGE, 1)
    for i in range(3):
        client = Client(3)
        batch.add(client.request([*common, *held.prompt(20, 10 + i)]))
        finish(batch)
        assert client.tokens == alone(held.model, [*common, *held.prompt(20, 10 + i)], 3, GREEDY)
    # the common page once, and two each
    assert (len(loaded.known), held.n) == (3, 1 + 3 * 2)
    other = Client(25)
    batch.add(other.request(held.prompt(30, 5)))
    finish(batch)
    assert other.tokens == alone(held.model, held.prompt(30, 5), 25, GREEDY)


def test_a_single_text_takes_the_memory_of_known_ones(held: Held) -> None:
    loaded = held.loaded(4, 1 << 20)
    for i in range(3):
        sequence, _ = loaded.begin(held.prompt(PAGE, i))
        loaded.with_room(lambda s=sequence, i=i: s.run(held.prompt(PAGE, i)))
        loaded.end(sequence)
    assert held.n == 3
    tokens = held.prompt(40, 9)
    sequence = loaded.open()
    result, _ = loaded.with_room(lambda: sequence.run(tokens))
    golden = GoldenDevice()
    golden.load(held.model)
    [expected] = golden.run([Step(session=golden.session(), tokens=tokens)])
    np.testing.assert_array_equal(result.logits, expected.logits)
    assert len(loaded.known) == 1


def test_who_gives_way_leaves_its_place(held: Held) -> None:
    """As many as before come in at a time, however often one of them was set back."""
    batch = Batch(held.loaded(3), most=2)
    for seed in (0, 2, 4):
        clients = [Client(24), Client(24)]
        for i, client in enumerate(clients):
            batch.add(client.request(held.prompt(10, seed + i)))
        batch.step()
        assert batch.n_running == 2
        finish(batch)
        for i, client in enumerate(clients):
            assert client.tokens == alone(held.model, held.prompt(10, seed + i), 24, GREEDY)

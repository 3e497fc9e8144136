"""Greedy tokens of a session: one descriptor of an accelerator gives what single steps give."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
from tests.host.tiles import Compiled, Tiles, driver, golden, on_transport

from lutra.compile.program import Program
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.runs import DescriptorRuns, RegisterRuns
from lutra.devices.accelerator.transport import Transport
from lutra.devices.base import Chunk, DeviceError, GreedyResult, PassResult, Step
from lutra.devices.golden import GoldenDevice
from lutra_golden.control.failure import Failure
from lutra_golden.control.interpreter import RunError
from lutra_golden.control.registers import (
    STATUS_ERROR,
    STATUS_REFUSED,
    STATUS_SATURATED,
    ErrorCode,
)
from lutra_golden.control.result import Result
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Purpose, Response
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

Packed = Callable[[str], PackedModel]
Find = Callable[[str], Compiled]

PROMPT = [3, 1, 4]
_WRITE = list(Purpose).index(Purpose.WRITE)


@pytest.fixture(scope="session")
def found(packed: Packed, program: Callable[[str], Program]) -> Find:
    """A random model with its program."""
    return cache(lambda name: Compiled(packed(name), program(name)))


class Counting(InterpretedTransport):
    """Counts calls; changes result blocks, or fails the pass ``fails`` of every run, or does not
    write the results of the pass ``loses``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[str]()
        self.fails, self.loses, self._n_passes = -1, -1, 0
        self.change: Callable[[Result], None] = lambda _: None

    def open(self, config: AcceleratorConfig, n_bytes: int) -> None:
        super().open(config, n_bytes)
        run = self.interpreter.run

        def counted() -> None:
            run()
            self._n_passes += 1
            if self._n_passes > self.fails >= 0:
                raise RunError(config, Failure(code=ErrorCode.WATCHDOG))

        def lost(address: int, pairs: bytes) -> None:
            if self._n_passes > self.loses >= 0:
                failure = Failure(
                    code=ErrorCode.BUS, purpose=_WRITE, response=Response.SLVERR, address=address
                )
                raise RunError(config, failure)

        self.interpreter.run, self.interpreter.write_results = counted, lost

    def write(self, address: int, data: bytes) -> None:
        self.calls["write"] += 1
        super().write(address, data)

    def ring(self, address: int) -> None:
        self.calls["ring"] += 1
        super().ring(address)

    def wait(self, timeout_s: float | None) -> int | None:
        self.calls["wait"] += 1
        self._n_passes = 0
        return super().wait(timeout_s)

    def read(self, address: int, n_bytes: int) -> bytes:
        self.calls["read"] += 1
        data = super().read(address, n_bytes)
        if data[:4] != b"LTRA":
            return data
        result = Result.decode(data)
        self.change(result)
        return result.encode().ljust(n_bytes, b"\0")


class ByRegisters(Counting):
    """Has no doorbell."""

    ring = cast("Any", None)


def begun(tiles: Tiles) -> Tiles:
    """All of the prompt but its last token is processed."""
    tiles.run_tile(PROMPT[:-1], 0, 2)
    return tiles


def on(find: Find, name: str = "grouped", transport: Counting | None = None) -> Tiles:
    return begun(on_transport(find(name), cast(Transport, transport or Counting())))


def made(tiles: Tiles, n: int, ends: Iterable[int] = ()) -> GreedyResult:
    return tiles.device.greedy(tiles.session, PROMPT[-1], n, frozenset(ends))


def single_steps(tiles: Tiles, n: int, ends: Sequence[int] = ()) -> list[int]:
    """The same by ``run``, and the arg-max of each."""
    tokens = PROMPT[-1:]
    while len(tokens) <= n and not (len(tokens) > 1 and tokens[-1] in ends):
        [result] = tiles.device.run([Step(session=tiles.session, tokens=tokens[-1:])])
        tokens += result.argmax.tolist()
    return tokens[1:]


def assert_same(a: Tiles, b: Tiles, last: int) -> None:
    """Lengths, keys and values, and what comes next."""
    assert a.session.length == b.session.length
    assert a.session.export().to_bytes() == b.session.export().to_bytes()
    x, y = (each.run_tile([last], each.session.length, 0) for each in (a, b))
    np.testing.assert_array_equal(x.logits, y.logits)
    np.testing.assert_array_equal(x.scale, y.scale)


# -- what is made


def test_one_descriptor_is_as_many_single_steps(found: Find) -> None:
    transport = Counting()
    tiles, steps = on(found, transport=transport), begun(golden(found("grouped").model))
    transport.calls.clear()
    result = made(tiles, 7)
    assert transport.calls == {"write": 1, "ring": 1, "wait": 1, "read": 1}
    assert list(result.tokens) == single_steps(steps, 7)
    assert len(set(result.tokens)) > 1
    assert (result.saturated, result.cycles, result.error) == (False, None, None)
    assert_same(tiles, steps, result.tokens[-1])


@pytest.mark.parametrize("name", ["golden", "registers"])
def test_a_device_without_descriptors_makes_them_one_by_one(name: str, found: Find) -> None:
    each, steps = found("grouped"), begun(golden(found("grouped").model))
    transport = ByRegisters()
    tiles = begun(golden(each.model)) if name == "golden" else on(found, transport=transport)
    assert tiles.device.greedy_tokens == 1
    result = made(tiles, 5)
    assert list(result.tokens) == single_steps(steps, 5)
    assert_same(tiles, steps, result.tokens[-1])
    if name == "registers":
        assert isinstance(driver(tiles).runs, RegisterRuns)


def test_more_tokens_than_results_fit_take_several_descriptors(found: Find) -> None:
    transport = Counting()
    tiles, steps = on(found, transport=transport), begun(golden(found("grouped").model))
    runs = driver(tiles).runs
    assert isinstance(runs, DescriptorRuns)
    assert driver(tiles).greedy_tokens == runs.greedy_tokens == 32
    runs.greedy_tokens = 3
    transport.calls.clear()
    result = made(tiles, 8)
    assert transport.calls["ring"] == 3
    assert list(result.tokens) == single_steps(steps, 8)
    assert_same(tiles, steps, result.tokens[-1])


def test_a_block_of_results_can_be_filled(found: Find) -> None:
    """Of a model whose context is as long."""
    transport = Counting()
    tiles = on_transport(found("least"), transport)
    reference = golden(found("least").model)
    transport.calls.clear()
    result, expected = (
        each.device.greedy(each.session, 5, tiles.device.greedy_tokens)
        for each in (tiles, reference)
    )
    assert transport.calls["ring"] == 1
    assert len(result.tokens) == tiles.session.length == 32
    assert list(result.tokens) == list(expected.tokens)


# -- where they end


@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_end_token_is_the_last(at: int, found: Find) -> None:
    tiles, steps = on(found), begun(golden(found("grouped").model))
    whole = list(made(tiles, 7).tokens)
    tiles.session.truncate(len(PROMPT) - 1)
    end = whole[at]
    result = made(tiles, 7, [900, end])
    assert list(result.tokens) == whole[: whole.index(end) + 1] == single_steps(steps, 7, [end])
    assert_same(tiles, steps, end)


def test_a_token_that_is_given_ends_nothing(found: Find) -> None:
    """Even if it is an end token."""
    assert len(made(on(found), 3, PROMPT[-1:]).tokens) == 3


def test_more_end_tokens_than_a_descriptor_holds(found: Find) -> None:
    """Each token is a run then; those that the model cannot make do not count."""
    whole = single_steps(begun(golden(found("grouped").model)), 7)
    others = [token for token in range(500, 520) if token not in whole]
    vocab_size = found("grouped").model.vocab_size
    beyond = range(vocab_size, vocab_size + 20)
    for ends, n_runs in (
        ([*others[:8], whole[4]], whole.index(whole[4]) + 1),
        ([*others[:7], whole[4], -1, *beyond, 1 << 40], 1),
    ):
        transport = Counting()
        tiles = on(found, transport=transport)
        transport.calls.clear()
        result = made(tiles, 7, ends)
        assert list(result.tokens) == whole[: whole.index(whole[4]) + 1]
        assert transport.calls["ring"] == n_runs


@pytest.mark.parametrize("name", ["interpreted", "golden"])
def test_the_context_cuts_them(name: str, found: Find) -> None:
    each = found("least")
    tiles = on_transport(each) if name == "interpreted" else golden(each.model)
    reference = golden(each.model)
    for one in (tiles, reference):
        one.run_tile(list(range(29)), 0, 29)
    result, expected = made(tiles, 10), single_steps(reference, 3)
    assert list(result.tokens) == expected
    assert tiles.session.length == each.model.context == 32
    with pytest.raises(LutraError, match=r"^positions 32\.\.32 exceed the context of 32: "):
        made(tiles, 1)


@pytest.mark.parametrize(
    ("n", "message"),
    [(0, "n must be 1 or more tokens, not 0"), (2.0, r"n must be a whole number, not 2\.0")],
)
def test_numbers_of_tokens_that_are_none(n: Any, message: str, found: Find) -> None:
    with pytest.raises(LutraError, match=f"^{message}$"):
        made(on(found), n)


def test_a_sequence_cut_among_them_goes_on(found: Find) -> None:
    """As behind a stop string, which is seen when the tokens have come."""
    tiles, steps = on(found), begun(golden(found("grouped").model))
    tokens = made(tiles, 8).tokens
    tiles.session.truncate(len(PROMPT) + 3)
    assert single_steps(steps, 4) == list(tokens[:4])
    assert_same(tiles, steps, 77)


def test_another_session_is_not_touched(found: Find) -> None:
    tiles, steps = on(found), begun(golden(found("grouped").model))
    other = tiles.device.session()
    tiles.device.run([Step(session=other, tokens=[7, 8])])
    held = other.export().to_bytes()
    made(tiles, 5)
    assert other.export().to_bytes() == held
    tokens = tiles.device.greedy(other, 9, 5).tokens
    assert list(tokens) == list(steps.device.greedy(_ahead(steps, [7, 8]), 9, 5).tokens)


def _ahead(tiles: Tiles, tokens: Sequence[int]) -> Any:
    session = tiles.device.session()
    tiles.device.run([Step(session=session, tokens=tokens)])
    return session


# -- runs that fail


@pytest.mark.parametrize("done", [1, 2, 4])
def test_a_pass_that_fails_leaves_the_tokens_before_it(done: int, found: Find) -> None:
    transport = Counting()
    tiles, steps = on(found, transport=transport), begun(golden(found("grouped").model))
    transport.fails = done
    result = made(tiles, 5)
    transport.fails = -1
    assert list(result.tokens) == single_steps(steps, done)
    assert isinstance(result.error, DeviceError)
    assert str(result.error).startswith("device interpreted: nothing moved for too long ")
    assert "\n" not in str(result.error)
    again = tiles.device.greedy(tiles.session, result.tokens[-1], 5 - done)
    whole = single_steps(begun(golden(found("grouped").model)), 5)
    assert [*result.tokens, *again.tokens] == whole
    assert again.error is None


def test_the_first_pass_that_fails_is_an_error(found: Find) -> None:
    transport = Counting()
    tiles = on(found, transport=transport)
    before, transport.fails = tiles.session.export().to_bytes(), 0
    with pytest.raises(DeviceError, match=r"^device interpreted: nothing moved for too long "):
        made(tiles, 5)
    transport.fails = -1
    assert tiles.session.export().to_bytes() == before
    assert len(made(tiles, 5).tokens) == 5


def test_a_later_descriptor_that_fails_is_like_a_later_pass(found: Find) -> None:
    transport = Counting()
    tiles, steps = on(found, transport=transport), begun(golden(found("grouped").model))
    runs = driver(tiles).runs
    assert isinstance(runs, DescriptorRuns)
    runs.greedy_tokens = 2
    transport.calls.clear()

    def third(result: Result) -> None:
        if transport.calls["ring"] == 3:
            result.status |= STATUS_REFUSED

    transport.change = third
    result = made(tiles, 7)
    assert list(result.tokens) == single_steps(steps, 4)
    assert str(result.error).startswith("device interpreted was written to during a run: ")
    transport.change = lambda _: None
    assert_same(tiles, steps, result.tokens[-1])


def _failed(result: Result) -> None:
    result.status |= STATUS_ERROR
    result.failure = Failure(code=ErrorCode.WATCHDOG)


@pytest.mark.parametrize("purpose", [Purpose.WRITE, Purpose.WEIGHTS])
@pytest.mark.parametrize("n_made", [1, 3])
def test_results_that_count_are_kept_whatever_failed(
    n_made: int, purpose: Purpose, found: Find
) -> None:
    """Also if it was a write: that was none of theirs."""
    transport = Counting()
    tiles, steps = on(found, transport=transport), begun(golden(found("grouped").model))

    def failed(result: Result) -> None:
        result.failure = Failure(code=ErrorCode.BUS, purpose=list(Purpose).index(purpose))

    transport.fails, transport.change = n_made, failed
    result = made(tiles, 6)
    assert list(result.tokens) == single_steps(steps, n_made)
    assert f"({purpose})" in str(result.error)
    transport.fails, transport.change = -1, lambda _: None
    assert_same(tiles, steps, result.tokens[-1])


@pytest.mark.parametrize("loses", [0, 2, 3])
def test_a_result_that_was_not_written_is_no_token(loses: int, found: Find) -> None:
    """Nor is it where it is the last one."""
    transport = Counting()
    tiles, steps = on(found, transport=transport), begun(golden(found("grouped").model))
    transport.loses = loses
    if not loses:
        with pytest.raises(DeviceError, match=r"^device interpreted: .* SLVERR to a write"):
            made(tiles, 4)
    else:
        result = made(tiles, 4)
        assert list(result.tokens) == single_steps(steps, loses)
        assert "SLVERR to a write of m_axi_1 (write)" in str(result.error)
    transport.loses = -1
    after = tiles.device.greedy(tiles.session, PROMPT[-1], 1).tokens
    steps.device.greedy(steps.session, PROMPT[-1], 1)
    assert_same(tiles, steps, after[-1])


def test_the_last_of_all_tokens_is_kept_if_the_run_failed_behind_it(found: Find) -> None:
    """Its result counts, as those before it."""
    transport = Counting()
    tiles, steps = on(found, transport=transport), begun(golden(found("grouped").model))
    transport.change = _failed
    result = made(tiles, 4)
    assert list(result.tokens) == single_steps(steps, 4)
    assert str(result.error).startswith("device interpreted: nothing moved for too long ")
    transport.change = lambda _: None
    assert_same(tiles, steps, result.tokens[-1])


def _refused(result: Result) -> None:
    result.status |= STATUS_REFUSED


def _none(result: Result) -> None:
    result.argmax, result.scale = [], []


def _more(result: Result) -> None:
    result.argmax.append(0)
    result.scale.append(1)


def _other(result: Result) -> None:
    result.tag += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_refused, "device interpreted was written to during a run: close the other program"),
        (_none, "device interpreted has results of 0 tokens, but 1 to 3 were to be made: load the"),
        (_more, "device interpreted has results of 4 tokens, but 1 to 3 were to be made: load the"),
        (_other, "device interpreted wrote no result of its run: its memory does not answer"),
    ],
)
def test_results_of_something_else_are_refused(
    change: Callable[[Result], None], message: str, found: Find
) -> None:
    transport = Counting()
    tiles, steps = on(found, transport=transport), begun(golden(found("grouped").model))
    transport.change = change
    with pytest.raises(DeviceError, match=f"^{message}"):
        made(tiles, 3)
    transport.change = lambda _: None
    assert_same(tiles, steps, PROMPT[-1])


def test_a_pass_that_saturates_is_told(found: Find) -> None:
    def saturated(result: Result) -> None:
        result.status |= STATUS_SATURATED

    transport = Counting()
    tiles = on(found, transport=transport)
    transport.change = saturated
    assert made(tiles, 3).saturated


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_after_an_interrupt_the_session_is_as_it_was(
    error: type[BaseException], found: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = Counting()
    tiles, steps = on(found, transport=transport), begun(golden(found("grouped").model))
    before = tiles.session.export().to_bytes()

    def interrupted(address: int, n_bytes: int) -> bytes:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(transport, "read", interrupted)
        with pytest.raises(error):
            made(tiles, 4)
    assert tiles.session.export().to_bytes() == before
    assert list(made(tiles, 4).tokens) == single_steps(steps, 4)


class Failing(GoldenDevice):
    """Raises in the pass that :attr:`left` counts down to; has a clock."""

    left = 0
    error: BaseException = KeyboardInterrupt()

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        result = super()._pass(chunks)
        self.left -= 1
        if not self.left:
            raise self.error
        return PassResult(
            logits=result.logits,
            scale=result.scale,
            argmax=result.argmax,
            saturated=self.left == -3,
            cycles=10,
        )


def failing(model: PackedModel) -> tuple[Failing, Tiles]:
    device = Failing()
    device.load(model)
    return device, begun(Tiles(device))


@pytest.mark.parametrize("at", [1, 3])
def test_one_by_one_an_interrupt_counts_none(at: int, packed: Packed) -> None:
    device, tiles = failing(packed("grouped"))
    before, device.left = tiles.session.export().to_bytes(), at
    with pytest.raises(KeyboardInterrupt):
        made(tiles, 5)
    assert tiles.session.export().to_bytes() == before


def test_one_by_one_a_fault_leaves_the_tokens_before_it(packed: Packed) -> None:
    device, tiles = failing(packed("grouped"))
    steps = begun(golden(packed("grouped")))
    device.left, device.error = 3, DeviceError("a fault")
    result = made(tiles, 5)
    assert (result.error, result.cycles) == (device.error, 20)
    assert list(result.tokens) == single_steps(steps, 2)
    device.left = 1
    with pytest.raises(DeviceError, match=r"^a fault$"):
        made(tiles, 5)
    device.left = 0
    assert_same(tiles, steps, result.tokens[-1])


def test_one_by_one_figures_are_those_of_all(packed: Packed) -> None:
    device, tiles = failing(packed("grouped"))
    device.left = 0
    result = made(tiles, 5)
    assert (result.cycles, result.saturated) == (50, True)
    device.left = 0
    assert not made(tiles, 2).saturated

"""Behaviour common to all devices: sessions and their memory, passes, refusals."""

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from lutra.devices.base import BaseDevice, Chunk, PassResult, Session, Step, available_memory
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.golden import GoldenDevice
from lutra.devices.sessions import BaseSession
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import LayerKv, SequenceKv
from lutra_golden.model.packed import PackedModel

Packed = Callable[[str], PackedModel]


class Recording(GoldenDevice):
    """Remembers the sizes of its passes; a pass can be made to fail."""

    def __init__(self, pass_tokens: int = 4, memory_limit: int | None = None) -> None:
        super().__init__(memory_limit=memory_limit)
        self.pass_tokens = pass_tokens
        self.passes: list[list[int]] = []
        self.error: BaseException | None = None

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        self.passes.append([len(chunk.tokens) for chunk in chunks])
        result = super()._pass(chunks)
        if self.error is not None and len(self.passes) > 1:
            raise self.error
        return result


class SaturatingFirst(Recording):
    """Says that a value saturated in its first pass."""

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        return replace(super()._pass(chunks), saturated=len(self.passes) == 1)


@pytest.fixture
def device(packed: Packed) -> Recording:
    found = Recording()
    found.load(packed("odd"))
    return found


def step(session: Session, *tokens: int, **options: object) -> Step:
    return Step(session=session, tokens=tokens, **options)  # pyright: ignore[reportArgumentType]


def test_a_device_cannot_leave_out_what_only_it_knows() -> None:
    needed = {"_load", "_unload", "_session", "_session_bytes", "_pass"}
    assert BaseDevice.__abstractmethods__ == needed
    assert BaseSession.__abstractmethods__ == {"_read", "_write", "_release"}


def test_tokens_of_several_sessions_fill_passes(device: Recording) -> None:
    a, b, c = (device.session() for _ in range(3))
    results = device.run([step(a, 1, 2, 3), step(b, 4, 5, 6, 7, 8, logits_from=4), step(c, 9)])
    assert device.passes == [[3, 1], [4], [1]]
    assert [len(result.logits) for result in results] == [3, 1, 1]
    assert [a.length, b.length, c.length] == [3, 5, 1]


def test_eight_decode_steps_are_one_pass(packed: Packed) -> None:
    device = Recording(pass_tokens=8)
    device.load(packed("odd"))
    device.run([step(device.session(), token) for token in range(8)])
    assert device.passes == [[1] * 8]


def test_different_layers_are_different_passes(device: Recording) -> None:
    a, b = device.session(), device.session()
    (first, _) = device.run([step(a, 1, layers=range(1)), step(b, 2)])
    assert device.passes == [[1], [1]]
    assert first.residual is not None
    with pytest.raises(LutraError, match=r"^layers 0\.\.2 of the session are filled unequally far"):
        device.run([step(a, 1)])
    device.run([step(a, 1, layers=range(1, 3), residual=first.residual)])
    assert a.length == 1


@pytest.mark.parametrize("pass_tokens", [1, 2, 4, 64])
def test_every_step_gets_its_rows_whatever_passes_hold(pass_tokens: int, packed: Packed) -> None:
    def steps(device: Recording) -> list[Step]:
        return [
            step(device.session(), 1, 2, 3, 4, 5, logits_from=2),
            step(device.session(), 6),
            step(device.session(), 7, 8, 9, layers=range(1)),
            step(device.session(), 3, 4, layers=range(1)),
        ]

    whole, device = Recording(64), SaturatingFirst(pass_tokens)
    for each in (whole, device):
        each.load(packed("odd"))
    results = device.run(steps(device))
    for found, alone in zip(results, steps(whole), strict=True):
        [expected] = whole.run([alone])
        for name in ("logits", "scale", "argmax", "residual"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    # the first pass holds tokens of the first step, and of others as it has room
    shared = [True, pass_tokens > 5, False, False]
    assert [result.saturated for result in results] == shared


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a fault")])
def test_after_an_exception_every_session_is_as_it_was(
    error: BaseException, device: Recording
) -> None:
    a, b = device.session(), device.session()
    expected = device.run([step(a, 1, 2)])[0]
    device.error = error
    with pytest.raises(type(error)):
        device.run([step(a, 3, 4, 5, 6), step(b, 1, 2)])
    device.error = None
    assert (a.length, b.length) == (2, 0)
    np.testing.assert_array_equal(device.run([step(b, 1, 2)])[0].logits, expected.logits)


def test_one_session_more_than_memory_holds(packed: Packed) -> None:
    device = Recording(memory_limit=1)
    device.load(packed("odd"))
    with pytest.raises(LutraError) as error:
        device.session()
    needed = int(str(error.value).partition(" bytes needed")[0].rpartition(" ")[2].replace(",", ""))
    device.memory_limit = 3 * needed + 1
    device.load(packed("odd"))
    held = [device.session() for _ in range(3)]
    message = (
        f"^no memory for another session on device golden: {needed:,} bytes needed, 1 free: close "
        "one of 3, or load the model with a smaller context$"
    )
    with pytest.raises(LutraError, match=message):
        device.session()
    with pytest.raises(LutraError, match=message):
        held[0].fork()
    held[0].close()
    held[0].close()
    held.append(device.session())
    # one that is dropped counts no longer either
    del held[1]
    gc.collect()
    device.session()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_full_session_takes_what_it_is_counted_for(bits: int, packed: Packed) -> None:
    model = replace(packed("odd"), key_bits=bits, value_bits=bits)
    device = GoldenDevice()
    device.load(model)
    session = device.session()
    device.run([step(session, *[1] * model.context, logits_from=model.context)])
    needed = device._session_bytes(model)  # pyright: ignore[reportPrivateUsage]
    assert sum(cache.n_bytes for cache in session.caches) == needed


def test_memory_of_this_machine() -> None:
    assert 1 << 20 < available_memory() < 1 << 50


def test_sessions_of_another_model_or_device(device: Recording, packed: Packed) -> None:
    session = device.session()
    device.load(packed("odd"))
    message = "^the session's model is no longer loaded: open a session of the one that is$"
    for use in (
        lambda: device.run([step(session, 1)]),
        lambda: session.export(),
        lambda: session.truncate(0),
        lambda: session.fork(),
    ):
        with pytest.raises(LutraError, match=message):
            use()
    session.close()
    other = Recording()
    other.load(packed("odd"))
    with pytest.raises(LutraError, match=r"^the session is not one of device golden: open one"):
        device.run([step(other.session(), 1)])


def test_what_is_refused(device: Recording) -> None:
    session = device.session()
    residual = np.zeros((1, device.model.hidden_size), np.int32)
    wide = np.zeros((2, device.model.hidden_size), np.int32)
    long = np.full((1, device.model.hidden_size), 1 << 40)
    for steps, message in (
        ([step(session, 1), step(session, 2)], "a session has several steps in one run: give it"),
        (step(session, 1), r"steps must be a list of Step, not Step: give \[Step\(\.\.\.\), "),
        ([step(session, 1), None], r"steps must be a list of Step, not NoneType: give \[Step"),
        (None, r"steps must be a list of Step, not NoneType: give \[Step"),
        ([step(session)], "a step has no tokens: give at least one"),
        (
            [replace(step(session), tokens=np.array(3))],
            r"tokens must be a list of token ids, not an array of shape \[\]: make them with the",
        ),
        (
            [replace(step(session), tokens=np.ones((1, 2), int))],
            r"tokens must be a list of token ids, not an array of shape \[1, 2\]: make them with",
        ),
        ([step(session, device.model.vocab_size)], r"token id \d+ is outside the vocabulary of"),
        (
            [replace(step(session), tokens=iter([1]))],
            "tokens must be a list of token ids, not list_iterator",
        ),
        ([step(session, 1, logits_from=0.5)], r"logits_from must be a whole number, not 0\.5"),
        ([step(session, 1, layers=(0, 1))], r"layers must be a range within 0\.\.3, not \(0, 1\)"),
        (
            [step(session, 1, layers=range(1, 2), residual=[[0]])],
            r"residual must be int32 \[1, \d+\], not list",
        ),
        ([step(session, 1, logits_from=2)], r"logits_from must be in 0\.\.1, not 2"),
        ([step(session, *[1] * 20)], r"positions 0\.\.19 exceed the context of 19: shorten the"),
        ([step(session, 1, layers=range(4))], r"layers must be a range within 0\.\.3, not range"),
        ([step(session, 1, layers=range(0))], r"layers must be a range within 0\.\.3, not range"),
        ([step(session, 1, residual=residual)], "a step from layer 0 on begins with tokens: leave"),
        ([step(session, 1, layers=range(1, 2))], "a step from layer 1 on needs the residual strea"),
        (
            [step(session, 1, layers=range(1, 2), residual=wide)],
            r"residual must be int32 \[1, \d+\], not int32 \[2, \d+\]",
        ),
        (
            [step(session, 1, layers=range(1, 2), residual=long)],
            r"residual must be int32 \[1, \d+\], not int64 \[1, \d+\]",
        ),
    ):
        with pytest.raises(LutraError, match=f"^{message}"):
            device.run(cast(list[Step], steps))
    assert (session.length, device.passes) == (0, [])
    for change in (lambda: session.truncate(1), lambda: session.truncate(-1)):
        with pytest.raises(LutraError, match=r"^a session of 0 positions cannot be cut to "):
            change()
    with pytest.raises(LutraError, match=r"^a session of 0 positions has no first 1$"):
        session.fork(1)
    for change in (lambda: session.truncate(cast(int, 0.0)), lambda: session.fork(cast(int, 0.0))):
        with pytest.raises(LutraError, match=r"^n must be a whole number, not 0\.0$"):
            change()
    with pytest.raises(LutraError, match=r"^layers must be a range within 0\.\.3, not \(0, 1\)$"):
        session.export(cast(range, (0, 1)))
    with pytest.raises(LutraError, match=r"^keys and values must be a SequenceKv, not bytes: "):
        session.restore(cast(SequenceKv, session.export().to_bytes()))


def test_keys_and_values_of_another_kind_are_refused(device: Recording, packed: Packed) -> None:
    four = GoldenDevice()
    four.load(replace(packed("odd"), key_bits=4, value_bits=4))
    session = device.session()
    with pytest.raises(LutraError, match=r"^keys and values have 4/4 bits, the model is packed f"):
        session.restore(four.session().export())
    other = GoldenDevice()
    other.load(packed("grouped"))
    filled = other.session()
    other.run([step(filled, 1)])
    with pytest.raises(LutraError, match=r"they are of another model$|, the model has "):
        session.restore(filled.export())
    assert session.length == 0


def test_some_layers_are_restored(device: Recording) -> None:
    a, b = device.session(), device.session()
    device.run([step(a, 1, 2, 3)])
    kv = a.export()
    b.restore(SequenceKv(key_bits=8, value_bits=8, layers={1: kv.layers[1].first(2)}))
    assert b.length == 2
    b.restore(kv)
    assert (b.length, b.export().to_bytes()) == (3, kv.to_bytes())


def test_an_interrupted_restore_leaves_no_mixture(
    device: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = device.session(), device.session()
    device.run([step(a, 1, 2, 3), step(b, 4, 5, 6)])
    kv, write = a.export(), b._write

    def interrupted(layer: int, kv: LayerKv) -> None:
        if layer == 1:
            raise KeyboardInterrupt
        write(layer, kv)

    monkeypatch.setattr(b, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        b.restore(kv)
    assert b.lengths == [0, 0, 0]
    monkeypatch.undo()
    b.restore(kv)
    assert b.export().to_bytes() == kv.to_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_told_to_load_again(device: Recording) -> None:
    session = device.session()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        answer = "no error"
        try:
            device.run([step(session, 1)])
        except LutraError as error:
            answer = str(error)
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        assert answers.read() == (
            "device golden was loaded before this process was forked: load the model again here"
        )
    os.waitpid(child, 0)
    device.run([step(session, 1)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("close", [False, True])
def test_a_forked_process_loads_again_though_a_thread_was_running(
    close: bool, device: Recording
) -> None:
    """The lock that another thread held is the parent's alone."""
    model, begun, over = device.model, threading.Event(), threading.Event()

    def hold() -> None:
        with device.held():
            begun.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(30)
        if close:
            device.close()
        device.load(model)
        result = device.run([step(device.session(), 1)])[0]
        os.write(write, bytes([len(result.logits)]))
        os._exit(0)
    os.close(write)
    over.set()
    thread.join()
    assert os.read(read, 1) == b"\1"
    os.waitpid(child, 0)


def test_an_interrupt_between_sessions_counts_none(
    device: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = device.session(), device.session()

    def interrupted(layers: range, n: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(b, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        device.run([step(a, 1), step(b, 2)])
    assert (a.length, b.length) == (0, 0)


def test_a_device_that_failed_to_load_is_empty(packed: Packed) -> None:
    class Failing(GoldenDevice):
        def _load(self, model: PackedModel) -> None:
            super()._load(model)
            raise LutraError("no room")

    device = Failing()
    with pytest.raises(LutraError, match=r"^no room$"):
        device.load(packed("odd"))
    with pytest.raises(LutraError, match=r"^no model is loaded"):
        device.session()


def test_nothing_is_left_of_a_device_that_is_dropped(packed: Packed) -> None:
    device = GoldenDevice()
    device.load(packed("odd"))
    session = device.session()
    device.run([step(session, 1)])
    watched = [weakref.ref(device), weakref.ref(session)]
    threads = threading.active_count()
    del device, session
    gc.collect()
    assert [ref() for ref in watched] == [None, None]
    assert threading.active_count() == threads


def test_a_device_closes_with_its_block(packed: Packed) -> None:
    with GoldenDevice() as device:
        device.load(packed("odd"))
        session = device.session()
    with pytest.raises(LutraError, match=r"^no model is loaded"):
        device.run([step(session, 1)])
    device.close()


@pytest.mark.parametrize("make", [GoldenDevice, lambda: CpuDevice(1)], ids=["golden", "cpu"])
@pytest.mark.parametrize(
    ("token", "message"),
    [
        (1.0, "a token id must be an integer, not 1.0: make tokens with the model's tokenizer"),
        (np.float32(2), r"a token id must be an integer, not .*2\.0.*: make tokens"),
        (True, "a token id must be an integer, not True"),
        ("3", "a token id must be an integer, not '3'"),
        (None, "a token id must be an integer, not None"),
        (-1, "token id -1 is outside the vocabulary of"),
        (np.int64(-1), "token id -1 is outside the vocabulary of"),
        (1 << 40, f"token id {1 << 40} is outside the vocabulary of"),
    ],
)
def test_tokens_that_are_none_are_refused(
    make: Callable[[], GoldenDevice | CpuDevice], token: int, message: str, packed: Packed
) -> None:
    with make() as device:
        device.load(packed("odd"))
        session = device.session()
        device.run([step(session, *np.array([1, 2], np.int32))])
        with pytest.raises(LutraError, match=f"^{message}"):
            device.run([step(session, 3, token)])
        assert session.length == 2

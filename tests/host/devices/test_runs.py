"""Runs by descriptors and by registers: the same results, and how often the host reaches over."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import cast

import numpy as np
import pytest
from tests.host.interrupt import Interrupt
from tests.host.mixtures import check_mixtures
from tests.host.random_model import SHAPES
from tests.host.tiles import Compiled, driver, golden, on_transport, with_code

from lutra.compile.program import Program, SegmentKind
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.programs import Placed
from lutra.devices.accelerator.runs import DescriptorRuns, RegisterRuns, Tile
from lutra.devices.accelerator.transport import DoorbellTransport, Transport
from lutra.devices.base import Device, DeviceError, Step, StepResult
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import QUEUE_DEPTH, Descriptor, line_bytes
from lutra_golden.control.registers import STATUS_REFUSED
from lutra_golden.control.result import Result, result_bytes
from lutra_golden.model.packed import PackedModel

Packed = Callable[[str], PackedModel]
Find = Callable[[str], Compiled]


@pytest.fixture(scope="session")
def found(packed: Packed, program: Callable[[str], Program]) -> Find:
    """A random model with its program."""
    return cache(lambda name: Compiled(packed(name), program(name)))


@pytest.mark.parametrize("described", [True, False], ids=["descriptors", "registers"])
def test_the_runs_after_an_interrupt_in_any_line_are_right(found: Find, described: bool) -> None:
    """Of the shape of the run that was interrupted, and of the one before."""
    each = found("grouped")
    transport = InterpretedTransport() if described else cast(Transport, Registers())
    device, reference = on_transport(each, transport).device, golden(each.model).device
    shapes = (
        ([5, 77, 3], 0, range(len(each.model.layers))),
        ([9], 0, range(len(each.model.layers))),
        ([4, 8], 2, range(1)),
    )

    def run(on: Device, tokens: list[int], logits_from: int, layers: range) -> StepResult:
        session = on.session()
        try:
            step = Step(session=session, tokens=tokens, logits_from=logits_from, layers=layers)
            return on.run([step])[0]
        finally:
            session.close()

    expected = [run(reference, *shape) for shape in shapes]
    trace = Interrupt("accelerator/runs.py", 0)
    for n in range(1, 400):
        run(device, *shapes[n % 3])
        trace = Interrupt("accelerator/runs.py", n)
        with suppress(KeyboardInterrupt), trace:
            run(device, *shapes[(n + 1) % 3])
        # the one before first: it is the one whose descriptor may still be there
        for i in (n, n + 1, n + 2):
            right, result = expected[i % 3], run(device, *shapes[i % 3])
            np.testing.assert_array_equal(result.logits, right.logits)
            assert (result.residual is None) == (right.residual is None)
            if right.residual is not None:
                np.testing.assert_array_equal(result.residual, right.residual)
        if trace.left > 0:
            break
    assert trace.left > 0  # every line was interrupted
    device.close()


class Counting:
    """The interpreter, whose calls are counted."""

    def __init__(self) -> None:
        self.inner, self.calls = InterpretedTransport(), Counter[str]()

    def __getattr__(self, name: str) -> object:
        value = getattr(self.inner, name)
        if not callable(value):
            return value

        def counted(*args: object) -> object:
            self.calls[name] += 1
            return value(*args)

        return counted


class Registers(Counting):
    """The interpreter without its doorbell."""

    def __getattr__(self, name: str) -> object:
        if name == "ring":
            raise AttributeError(name)
        return super().__getattr__(name)


def test_a_transport_with_a_doorbell_takes_descriptors(found: Find) -> None:
    assert isinstance(InterpretedTransport(), DoorbellTransport)
    assert not isinstance(Registers(), DoorbellTransport)
    for kind, runs in ((Counting, DescriptorRuns), (Registers, RegisterRuns)):
        tiles = on_transport(found("least"), cast(Transport, kind()))
        assert isinstance(driver(tiles).runs, runs)


@pytest.mark.parametrize("name", SHAPES)
def test_both_give_the_same_results_and_memory(name: str, found: Find) -> None:
    each = found(name)
    kinds = cast(Transport, Counting()), cast(Transport, Registers())
    devices = [on_transport(each, kind) for kind in kinds]
    position = 0
    for tokens, first in (([1, 2, 3], 1), ([4], 0), ([5, 6], 2), ([7], 0)):
        a, b = (tiles.run_tile(tokens, position, first) for tiles in devices)
        for x, y in ((a.logits, b.logits), (a.scale, b.scale), (a.argmax, b.argmax)):
            np.testing.assert_array_equal(x, y)
        assert a.saturated == b.saturated
        position += len(tokens)
    a, b = (tiles.session.export().to_bytes() for tiles in devices)
    assert a == b


@pytest.mark.parametrize("kind", [Counting, Registers])
def test_sequences_share_passes_either_way(kind: type[Counting], found: Find) -> None:
    each = found("least")
    tiles = on_transport(each, cast(Transport, kind()))
    texts = [[1, 2, 3, 4, 5], [9, 8], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7], [6]]
    check_mixtures(tiles.device, golden(each.model).device, texts)


def test_results_of_chunks_that_change_places(found: Find) -> None:
    """The one with more tokens in front of its first logits comes first."""
    each = found("grouped")
    device, model = driver(on_transport(each)), golden(each.model).device
    parts = (([1], 0), ([3, 4, 5], 2))
    results = [
        runner.run(
            [
                Step(session=runner.session(), tokens=tokens, logits_from=first)
                for tokens, first in parts
            ]
        )
        for runner in (device, model)
    ]
    largest = [[step.argmax.tolist() for step in result] for result in results]
    assert largest[0] == largest[1]
    assert len({row for rows in largest[0] for row in rows}) > 1


def test_a_run_is_one_transfer_one_doorbell_and_no_register(found: Find) -> None:
    transport = Counting()
    tiles = on_transport(found("least"), cast(Transport, transport))
    tiles.run_tile([1, 2], 0, 1)
    for n, first in ((1, 0), (3, 3), (4, 2)):
        transport.calls.clear()
        tiles.run_tile([5] * n, 2, first)
        # the result block, and the logits of each token that has some
        assert transport.calls == {"write": 1, "ring": 1, "wait": 1, "read": 1 + n - first}


def test_a_descriptor_like_the_one_before_is_packed_as_a_new_one(found: Find) -> None:
    """Of it only tag, chunks and tokens are written again."""
    each, written = found("grouped"), list[bytes]()

    class Keeping(InterpretedTransport):
        def write(self, address: int, data: bytes) -> None:
            written.append(data)
            super().write(address, data)

    tiles = on_transport(each, Keeping())
    config, room = (
        each.program.config,
        result_bytes(line_bytes(each.program.config), each.program.config.pass_tokens),
    )
    for tag, (tokens, position, first) in enumerate(
        (([1, 2, 3], 0, 1), ([4, 5, 6], 3, 1), ([7], 6, 0), ([8], 2, 0), ([9, 1, 2], 3, 1)), 1
    ):
        tiles.run_tile(tokens, position, first)
        descriptor = Descriptor.decode(written[-1][room:])
        assert written[-1] == bytes(room) + descriptor.encode(line_bytes(config))
        assert descriptor.tag == tag
        assert descriptor.logits_from == first
        assert list(descriptor.tokens) == tokens
        assert [(chunk.position, chunk.n_tokens) for chunk in descriptor.chunks] == [
            (position, len(tokens))
        ]


def test_without_a_doorbell_registers_that_changed_are_written(found: Find) -> None:
    transport = Registers()
    tiles = on_transport(found("least"), cast(Transport, transport))
    tiles.run_tile([1, 2], 0, 1)
    transport.calls.clear()
    tiles.run_tile([5, 6, 7], 2, 2)
    assert transport.calls["write_register"] == 3 + 4
    assert transport.calls["start"] == transport.calls["wait"] == 1


def test_what_a_reset_cleared_is_written_again(found: Find) -> None:
    transport = Registers()
    tiles = on_transport(found("least"), cast(Transport, transport))
    tiles.run_tile([1, 2], 0, 1)
    written = transport.calls["write_register"]
    transport.calls.clear()
    driver(tiles).runs.forget()
    tiles.run_tile([1, 2], 2, 1)
    assert transport.calls["write_register"] == written


class Torn(Registers):
    """An interrupt comes in the middle of a program's registers."""

    armed = False

    def write_register(self, name: str, value: int, index: int = 0) -> None:
        self.inner.write_register(name, value, index)
        if self.armed and name == "PROGRAM_BASE":
            self.armed = False
            raise KeyboardInterrupt


def test_a_program_whose_registers_were_interrupted_is_written_again(found: Find) -> None:
    transport = Torn()
    tiles = on_transport(found("least"), cast(Transport, transport))
    expected, device = tiles.run_tile([1, 2], 0, 0), driver(tiles)
    transport.armed = True
    tile, other = Tile(tokens=[1], chunks=[ChunkEntry()], logits_from=0), Placed(0x1000, 64)
    with pytest.raises(KeyboardInterrupt):
        device.runs.run(other, tile, None)
    np.testing.assert_array_equal(tiles.run_tile([1, 2], 0, 0).logits, expected.logits)


class Rewritten(InterpretedTransport):
    """Something else stands in the result block."""

    change: Callable[[Result], None]

    def read(self, address: int, n_bytes: int) -> bytes:
        data = super().read(address, n_bytes)
        if data[:4] != b"LTRA":
            return data
        result = Result.decode(data)
        self.change(result)
        return result.encode()


def _status(result: Result) -> None:
    result.status |= STATUS_REFUSED


def _tag(result: Result) -> None:
    result.tag += 1


def _not_done(result: Result) -> None:
    result.status = 0


_NOTHING = "device interpreted wrote no result of its run: its memory does not answer, or "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_status, "device interpreted was written to during a run: close the other program that "),
        (_tag, _NOTHING),
        (_not_done, _NOTHING),
    ],
)
def test_a_result_of_something_else_is_refused(
    change: Callable[[Result], None], message: str, found: Find
) -> None:
    transport = Rewritten()
    transport.change = change
    tiles = on_transport(found("least"), transport)
    with pytest.raises(DeviceError, match=f"^{message}"):
        tiles.run_tile([1], 0, 0)


def test_a_failed_run_is_told_by_registers_too(found: Find) -> None:
    each = with_code(found("least"), bytes([0x80]) * 64)
    tiles = on_transport(each, cast(Transport, Registers()))
    message = "^device interpreted: instruction 0 has an unknown opcode: load the model again$"
    with pytest.raises(DeviceError, match=message):
        tiles.run_tile([1], 0, 0)


def test_the_run_after_a_failed_one_is_right(found: Find) -> None:
    transport, each = Registers(), found("least")
    tiles, model = on_transport(each, cast(Transport, transport)), golden(each.model)
    for position in range(2):
        expected = model.run_tile([position], position, 0)
        transport.inner.write_register("PROGRAM_BYTES", 0)
        if position:
            with pytest.raises(DeviceError, match=r"^device interpreted: PROGRAM_BASE must be"):
                tiles.run_tile([position], position, 0)
        driver(tiles).runs.forget()
        found_here = tiles.run_tile([position], position, 0)
        np.testing.assert_array_equal(found_here.logits, expected.logits)


def test_doorbells_wait_in_order_and_an_abort_forgets_them(found: Find) -> None:
    transport = InterpretedTransport()
    tiles = on_transport(found("least"), transport)
    address = driver(tiles).memory.allocate(4096)
    transport.write(address, bytes(4096))
    for _ in range(QUEUE_DEPTH + 1):
        transport.ring(address)
    message = f"^{QUEUE_DEPTH} descriptors wait already: wait for one of them first$"
    with pytest.raises(DeviceError, match=message):
        transport.ring(address)
    transport.write_register("CONTROL", 2)
    with pytest.raises(DeviceError, match=r"^the interpreter waits for a start$"):
        transport.wait(None)
    expected = golden(found("least").model).run_tile([1, 2], 0, 0)
    np.testing.assert_array_equal(tiles.run_tile([1, 2], 0, 0).logits, expected.logits)


def test_tokens_that_are_made_are_those_of_single_steps(found: Find) -> None:
    """Greedy text in one descriptor, up to an end token."""
    each, prompt = found("grouped"), [3, 1, 4]
    steps = golden(each.model)
    result, made = steps.run_tile(prompt, 0, 2), list[int]()
    for i in range(6):
        made.append(int(result.argmax[-1]))
        result = steps.run_tile([made[-1]], 3 + i, 0)
    transport, config = InterpretedTransport(), each.program.config
    tiles = on_transport(each, transport)
    device, line = driver(tiles), line_bytes(config)
    block = device.memory.allocate(8192)

    def run(n_greedy: int, ends: tuple[int, ...]) -> Result:
        session = device.session()
        descriptor = Descriptor(
            fingerprint=config.fingerprint,
            result_base=block + 4096,
            program_base=device.addresses["PROGRAM_BASE"],
            program_bytes=each.program.n_bytes(SegmentKind.CODE),
            weight_base=device.addresses["WEIGHT_BASE"],
            logits_base=device.addresses["LOGITS_BASE"],
            logits_stride=each.program.logits_stride,
            logits_from=2,
            n_greedy=n_greedy,
            chunks=(ChunkEntry(0, 0, session.address),),
            tokens=tuple(prompt),
            ends=ends,
        )
        transport.write(block, descriptor.encode(line))
        transport.write(block + 4096, bytes(2 * line))
        transport.ring(block)
        transport.wait(None)
        return Result.decode(transport.read(block + 4096, 2 * line))

    result = run(6, ())
    assert (result.argmax, result.n_made) == (made, 6)
    assert len(set(made)) > 1
    ended = run(6, (made[2],))
    first = made.index(made[2])
    assert ended.argmax == made[: first + 1]

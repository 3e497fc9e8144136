"""Descriptors on the simulated accelerator: results and memory are the interpreter's."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.host.random_model import Shape, write_model
from tests.host.tiles import Compiled, compiled, driver, on_transport
from tests.hw.core.test_accelerator import SMALL

from lutra.compile.program import SegmentKind
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import DeviceError, GreedyResult
from lutra.models import load_model
from lutra.quantize.pack import pack_model
from lutra_golden.control.checksum import checksum
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import QUEUE_DEPTH, Descriptor, Kind, line_bytes
from lutra_golden.control.registers import (
    CONTROL_ABORT,
    COUNTERS,
    STATUS_BUSY,
    STATUS_DONE,
    STATUS_ERROR,
    ErrorCode,
)
from lutra_golden.control.result import Result, result_bytes
from lutra_golden.core.ports import Response

pytestmark = [pytest.mark.rtl, pytest.mark.usefixtures("no_coverage")]

LINE = line_bytes(SMALL)
ROOM = result_bytes(LINE, 8 * SMALL.pass_tokens)
N_BLOCKS = 6


class Board:
    """A small model on a transport, and room for descriptors and results."""

    def __init__(self, program: Compiled, transport: InterpretedTransport | RtlTransport) -> None:
        self.transport = transport
        self.tiles = on_transport(program, transport)
        self.device = driver(self.tiles)
        self.program, self.session = program.program, self.device.session()
        self.blocks = self.device.memory.allocate(N_BLOCKS * 4 * LINE)
        self.results = self.device.memory.allocate(N_BLOCKS * ROOM)

    def descriptor(self, number: int = 0, **changes: Any) -> Descriptor:
        """Two tokens at the beginning of a sequence, with logits of the last."""
        device = self.device
        sound = Descriptor(
            fingerprint=SMALL.fingerprint,
            result_base=self.results + number * ROOM,
            tag=100 + number,
            program_base=device.addresses["PROGRAM_BASE"],
            program_bytes=self.program.n_bytes(SegmentKind.CODE),
            weight_base=device.addresses["WEIGHT_BASE"],
            logits_base=device.addresses["LOGITS_BASE"],
            logits_stride=self.program.logits_stride,
            logits_from=1,
            chunks=(ChunkEntry(0, 0, self.session.address),),
            tokens=(3, 1),
        )
        return replace(sound, **changes)

    def ring(self, descriptor: Descriptor, number: int = 0) -> None:
        address = self.blocks + number * 4 * LINE
        self.transport.write(address, descriptor.encode(LINE))
        self.transport.write(descriptor.result_base, bytes(ROOM))
        self.transport.ring(address)

    def result(self, number: int = 0) -> Result:
        return Result.decode(self.transport.read(self.results + number * ROOM, ROOM))

    def run(self, *descriptors: Descriptor) -> Sequence[Result]:
        """Ring for all, then wait for each."""
        for number, each in enumerate(descriptors):
            self.ring(each, number)
        for _ in descriptors:
            self.transport.wait(None)
        return [self.result(number) for number in range(len(descriptors))]


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Board, Board]]:
    """The simulated accelerator and the interpreter, with everything at the same addresses."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, Shape(intermediate_size=48, num_hidden_layers=1))
    program = compiled(pack_model(load_model(folder)), SMALL)
    pair = Board(program, RtlTransport()), Board(program, InterpretedTransport())
    assert pair[0].results == pair[1].results
    for board in pair:
        board.run(board.descriptor())
    yield pair
    for board in pair:
        board.tiles.close()


def cache(board: Board) -> bytes:
    """Keys and values of the session, and the logits of its last token."""
    base = board.device.addresses["LOGITS_BASE"]
    logits = board.transport.read(base + board.program.logits_stride, 4 * board.program.vocab_size)
    return logits + board.transport.read(board.session.address, 2 * SMALL.kv_row_bytes)


def check(boards: tuple[Board, Board], *changes: dict[str, Any]) -> Sequence[Result]:
    """Both carry out the same descriptors; the interpreter's results."""
    found, expected = (
        board.run(*(board.descriptor(i, **change) for i, change in enumerate(changes)))
        for board in boards
    )
    for a, b in zip(found, expected, strict=True):
        assert b.status == 0 or a.counters["cycles"] > 0
        a.counters = dict.fromkeys(COUNTERS, 0)
        assert a == b
    a, b = map(cache, boards)
    assert a == b
    return expected


def test_a_pair_waits_for_its_turn(boards: tuple[Board, Board]) -> None:
    """The second one continues what the first one began."""
    base = boards[0].session.address
    first, second = check(
        boards, {}, {"chunks": (ChunkEntry(2, 1, base),), "tokens": (5,), "logits_from": 0}
    )
    assert (first.status, second.status) == (STATUS_DONE, STATUS_DONE)
    assert (first.tag, second.tag) == (100, 101)


def test_tokens_are_made_until_an_end(boards: tuple[Board, Board]) -> None:
    (whole,) = check(boards, {"n_greedy": 7})
    assert whole.n_made == 7 and len(set(whole.argmax)) > 1
    end = whole.argmax[3]
    (ended,) = check(boards, {"n_greedy": 7, "ends": (65535, end)})
    assert ended.argmax == whole.argmax[: whole.argmax.index(end) + 1]


def test_sums_of_what_was_loaded(boards: tuple[Board, Board]) -> None:
    rtl, _ = boards
    at = rtl.device.addresses["WEIGHT_BASE"]
    first = next(s for s in rtl.program.segments if s.kind is SegmentKind.WEIGHTS)
    at, size = at + first.offset, len(first.data) // 64 * 64
    (result,) = check(
        boards,
        {
            "kind": Kind.CHECKSUM,
            "program_base": at,
            "program_bytes": size,
            "chunks": (),
            "tokens": (),
        },
    )
    data = np.frombuffer(rtl.transport.read(at, size), np.uint8)
    assert result.checksum == checksum(data) != 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"fingerprint": 1}, ErrorCode.FINGERPRINT),
        ({"kind": 5}, ErrorCode.DESCRIPTOR),
        ({"tokens": ()}, ErrorCode.N_TOKENS),
        ({"chunks": (ChunkEntry(0, 1),)}, ErrorCode.DESCRIPTOR),
        ({"chunks": (ChunkEntry(15, 0),)}, ErrorCode.CHUNK),
        ({"n_greedy": 16}, ErrorCode.CHUNK),
        ({"n_greedy": 1, "logits_from": 2}, ErrorCode.LOGITS_FROM),
        ({"weight_base": 4}, ErrorCode.WEIGHT_BASE),
        ({"logits_base": 4}, ErrorCode.LOGITS),
        ({"program_bytes": 0}, ErrorCode.PROGRAM),
    ],
)
def test_what_does_not_fit_has_the_code(
    changes: dict[str, Any], code: ErrorCode, boards: tuple[Board, Board]
) -> None:
    (result,) = check(boards, changes)
    assert (result.status, result.failure.code) == (STATUS_DONE | STATUS_ERROR, code)


def test_where_there_is_none_nothing_is_written(boards: tuple[Board, Board]) -> None:
    for board in boards:
        address = board.blocks
        data = bytearray(board.descriptor().encode(LINE))
        data[0] ^= 1
        board.transport.write(address, bytes(data))
        board.transport.write(board.results, bytes(ROOM))
        board.transport.ring(address)
        board.transport.wait(None)
        assert board.transport.read_register("STATUS") == STATUS_DONE | STATUS_ERROR
        assert board.transport.read_register("ERROR") == ErrorCode.DESCRIPTOR
        assert not any(board.transport.read(board.results, ROOM))
    check(boards, {})


def test_an_abort_is_reported_and_drops_what_waits(boards: tuple[Board, Board]) -> None:
    rtl, _ = boards
    transport = rtl.transport
    assert isinstance(transport, RtlTransport)
    for cycles in (400, 900):
        for number in range(2):
            rtl.ring(rtl.descriptor(number, n_greedy=9), number)
        transport.simulator.run(cycles)
        transport.write_register("CONTROL", CONTROL_ABORT)
        while transport.read_register("STATUS") & STATUS_BUSY:
            pass
        first, second = rtl.result(0), rtl.result(1)
        assert (first.tag, first.failure.code) == (100, ErrorCode.ABORT)
        assert first.status == STATUS_DONE | STATUS_ERROR
        assert (second.tag, second.status) == (0, 0)
        check(boards, {"n_greedy": 2})


def test_one_doorbell_too_many_is_refused(boards: tuple[Board, Board]) -> None:
    rtl, _ = boards
    for number in range(QUEUE_DEPTH + 1):
        rtl.ring(rtl.descriptor(number), number)
    message = f"^{QUEUE_DEPTH} descriptors wait already: wait for one of them first$"
    with pytest.raises(DeviceError, match=message):
        rtl.transport.ring(rtl.blocks)
    for _ in range(QUEUE_DEPTH + 1):
        assert rtl.transport.wait(None)
    tags = [rtl.result(number).tag for number in range(QUEUE_DEPTH + 1)]
    assert tags == [100 + i for i in range(QUEUE_DEPTH + 1)]


def accesses(board: Board, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Accesses of registers from now on, as they come."""
    transport, calls = board.transport, list[str]()
    assert isinstance(transport, RtlTransport)
    simulator = transport.simulator
    for kind in ("write", "read"):
        access = getattr(simulator, f"{kind}_register")

        def counted(name: str, *rest: int, access: Any = access, kind: str = kind) -> Any:
            calls.append(f"{kind} {name}")
            return access(name, *rest)

        monkeypatch.setattr(simulator, f"{kind}_register", counted)
    return calls


def test_a_pass_starts_with_one_write_of_a_register(
    boards: tuple[Board, Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's; its end is an interrupt, which is cleared, and the count of what is left."""
    rtl, interpreted = boards
    calls = accesses(rtl, monkeypatch)
    rtl.tiles.run_tile([3, 1], 0, 1)
    calls.clear()
    found = rtl.tiles.run_tile([3, 1], 0, 1)
    assert calls == ["write DOORBELL", "write IRQ_STATUS", "read PENDING"]
    expected = interpreted.tiles.run_tile([3, 1], 0, 1)
    np.testing.assert_array_equal(found.logits, expected.logits)


# -- the driver's greedy tokens


def greedy(board: Board, token: int, n: int) -> GreedyResult:
    return board.device.greedy(board.tiles.session, token, n)


def held(board: Board) -> bytes:
    """Keys and values, at the beginning of the context and as far as tokens were processed."""
    return board.tiles.session.export().to_bytes()


def test_greedy_tokens_come_by_one_doorbell(
    boards: tuple[Board, Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host has nothing to do between the first and the last of them."""
    rtl, interpreted = boards
    for board in boards:
        board.tiles.session.truncate(0)
    calls = accesses(rtl, monkeypatch)
    found, expected = (greedy(board, 3, 9) for board in boards)
    assert calls == ["write DOORBELL", "write IRQ_STATUS", "read PENDING"]
    assert list(found.tokens) == list(expected.tokens) and len(found.tokens) == 9
    assert found.cycles and rtl.device.counters()["cycles"] > 0
    assert held(rtl) == held(interpreted)
    a, b = (board.tiles.run_tile([found.tokens[-1]], 9, 0) for board in boards)
    np.testing.assert_array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(a.scale, b.scale)


def test_a_fault_anywhere_among_greedy_tokens_keeps_those_before_it(
    boards: tuple[Board, Board],
) -> None:
    """In any burst that is written, and in some beats that are read, of three passes."""
    rtl, interpreted = boards
    transport, n = rtl.transport, 3
    assert isinstance(transport, RtlTransport)
    simulator, session = transport.simulator, rtl.tiles.session
    places = [(0, False), (1, False), (1, True)]
    for board in boards:
        board.tiles.session.truncate(0)
    for port, writes in places:
        simulator.disturb(port, None, writes=writes)
    expected = [list(greedy(board, 3, n).tokens) for board in boards]
    assert expected[0] == expected[1]
    sizes = [simulator.transfers(port, writes=writes) for port, writes in places]
    kept = Counter[int]()
    for (port, writes), size in zip(places, sizes, strict=True):
        for at in range(size) if writes else np.linspace(0, size - 1, 9).astype(int):
            session.truncate(0)
            simulator.disturb(port, int(at), Response.SLVERR, writes=writes)
            try:
                found = greedy(rtl, 3, n)
                tokens, error = list(found.tokens), found.error
            except DeviceError as failed:
                tokens, error = [], failed
            simulator.disturb(port, None, writes=writes)
            kept[len(tokens)] += 1
            assert "the memory answered SLVERR to a " in str(error)
            assert tokens == expected[0][: len(tokens)]
            assert session.length == len(tokens) < n
            tokens += greedy(rtl, [3, *tokens][-1], n - len(tokens)).tokens
            assert tokens == expected[0]
            assert held(rtl) == held(interpreted)
    assert kept.keys() == set(range(n))

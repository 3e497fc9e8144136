"""Descriptors in the interpreter: order, tokens that are fed back, results, refusals."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lutra_golden.arith.scale import unpack_scale
from lutra_golden.control.checksum import checksum
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import QUEUE_DEPTH, Descriptor, Kind, line_bytes
from lutra_golden.control.failure import Failure
from lutra_golden.control.interpreter import Interpreter, RunError
from lutra_golden.control.isa import Instruction, Opcode, encode
from lutra_golden.control.memory import Memory
from lutra_golden.control.registers import (
    STATUS_DONE,
    STATUS_ERROR,
    STATUS_SATURATED,
    ErrorCode,
)
from lutra_golden.control.result import RESULT_BYTES, Result
from lutra_golden.core.configs import NANO

LINE = line_bytes(NANO)
AT, RESULT, PROGRAM, WEIGHTS, KV = 0x4000, 0x5000, 0x1000, 0x2000, 0x3000
SIZE = 0x8000


class Recorder(Interpreter):
    """Notes each pass, and makes tokens by a rule: 10 * token + position.

    ``fails`` is the pass that has no END, ``loses`` the one whose results the memory does not take;
    in pass ``saturates`` the residual stream saturates.
    """

    fails = loses = saturates = -1

    def __init__(self) -> None:
        super().__init__(NANO, Memory(SIZE))
        self.passes: list[tuple[list[int], list[int], int]] = []
        self.memory.write(0, bytes(SIZE))
        self.memory.write(PROGRAM, encode(Instruction(Opcode.END)) + bytes(32))

    def run(self) -> None:
        super().run()
        tile, at = self._chunks(), len(self.passes)
        positions = [each.position + i for each in tile for i in range(each.n_tokens)]
        tokens = [int(t) for t in self.tokens[: self.registers["N_TOKENS"]]]
        self.passes.append((tokens, positions, self.registers["LOGITS_FROM"]))
        if at == self.fails:
            raise RunError(NANO, Failure(code=ErrorCode.NO_END))
        self._saturation.seen = at == self.saturates
        for m, (token, position) in enumerate(zip(tokens, positions, strict=True)):
            self.argmax[m] = 10 * token + position
            self.scale.m[m], self.scale.e[m] = (1 << 15) + at, m - 9

    def write_results(self, address: int, pairs: bytes) -> None:
        super().write_results(address, pairs)
        if len(self.passes) - 1 == self.loses:
            raise RunError(NANO, Failure(code=ErrorCode.BUS, response=2, address=address))

    def place(self, descriptor: Descriptor, at: int = AT) -> int:
        self.memory.write(at, descriptor.encode(LINE))
        return at

    def result(self, at: int = RESULT) -> Result:
        return Result.decode(self.memory.read(at, 0x1000).tobytes())


@pytest.fixture
def interpreter() -> Recorder:
    return Recorder()


SOUND = Descriptor(
    fingerprint=NANO.fingerprint,
    result_base=RESULT,
    tag=42,
    program_base=PROGRAM,
    program_bytes=64,
    weight_base=WEIGHTS,
    chunks=(ChunkEntry(5, 3, KV),),
    tokens=(1, 2, 3),
)


def test_a_pass_is_that_of_the_registers(interpreter: Recorder) -> None:
    interpreter.place(replace(SOUND, logits_from=1, logits_base=0x40, logits_stride=128))
    result = interpreter.run_descriptor(AT)
    assert interpreter.passes == [([1, 2, 3], [5, 6, 7], 1)]
    names = ("PROGRAM_BASE", "WEIGHT_BASE", "LOGITS_BASE", "LOGITS_STRIDE")
    values = [interpreter.registers[name] for name in names]
    assert values == [PROGRAM, WEIGHTS, 0x40, 128]
    assert interpreter.chunks[0] == SOUND.chunks[0]
    assert result == interpreter.result()
    assert (result.fingerprint, result.tag, result.n_made) == (NANO.fingerprint, 42, 0)
    assert (result.status, result.failure) == (STATUS_DONE, Failure())
    assert result.argmax == [26, 37]
    scale = unpack_scale(np.array(result.scale))
    assert (scale.m.tolist(), scale.e.tolist()) == ([1 << 15] * 2, [-8, -7])


def test_without_logits_there_are_no_results(interpreter: Recorder) -> None:
    interpreter.place(replace(SOUND, logits_from=3))
    assert interpreter.run_descriptor(AT).argmax == []


@pytest.mark.parametrize(
    ("n_greedy", "ends", "made"),
    [
        (1, (), [37]),
        (3, (), [37, 378, 3789]),
        (9, (5, 378), [37, 378]),
        (9, (37,), [37]),
        (2, (3789,), [37, 378]),
    ],
)
def test_tokens_that_are_made_are_fed_back(
    interpreter: Recorder, n_greedy: int, ends: Sequence[int], made: list[int]
) -> None:
    interpreter.place(replace(SOUND, n_greedy=n_greedy, ends=tuple(ends), logits_from=1))
    result = interpreter.run_descriptor(AT)
    assert result.argmax == [26, *made]
    assert result.n_made == len(made)
    later = [([token], [8 + i], 0) for i, token in enumerate(made[:-1])]
    assert interpreter.passes == [([1, 2, 3], [5, 6, 7], 1), *later]


@pytest.mark.parametrize(
    ("ends", "n_made"), [((), 3), ((160,), 1), ((267,), 2), ((1000, 26), 1), ((99,), 3)]
)
def test_sequences_make_tokens_together(
    interpreter: Recorder, ends: tuple[int, ...], n_made: int
) -> None:
    """Until one of them makes an end token."""
    table = (ChunkEntry(5, 2, KV), ChunkEntry(110, 1, 0), ChunkEntry(7, 0, KV + 0x1000))
    interpreter.place(
        replace(SOUND, chunks=table, tokens=(1, 2, 5, 4, 3), logits_from=1, n_greedy=3, ends=ends)
    )
    result = interpreter.run_descriptor(AT)
    made = [[26, 160, 38], [267, 1711, 389], [2678, 17222, 3900]][:n_made]
    assert result.argmax == [26, 160, 47, 38, *(token for each in made[1:] for token in each)]
    assert result.n_made == n_made
    positions = [[5, 6, 110, 7, 8], [7, 111, 9], [8, 112, 10]][:n_made]
    assert [each for _, each, _ in interpreter.passes] == positions
    assert [tokens for tokens, *_ in interpreter.passes[1:]] == made[:-1]
    caches = [entry.kv_base for entry in interpreter.chunks[:3]]
    assert caches == [KV, 0, KV + 0x1000]


def test_a_pass_that_saturates_is_told(interpreter: Recorder) -> None:
    interpreter.saturates = 1
    interpreter.place(replace(SOUND, n_greedy=3))
    assert interpreter.run_descriptor(AT).status == STATUS_DONE | STATUS_SATURATED


def test_a_later_pass_that_fails_leaves_the_results_of_those_before(interpreter: Recorder) -> None:
    interpreter.fails = 2
    interpreter.place(replace(SOUND, n_greedy=5, logits_from=2))
    result = interpreter.run_descriptor(AT)
    assert result == interpreter.result()
    assert result.status == STATUS_DONE | STATUS_ERROR
    assert result.failure.code == ErrorCode.NO_END
    assert (result.argmax, result.n_made) == ([37, 378], 2)


@pytest.mark.parametrize("loses", [0, 1, 2])
def test_results_that_are_not_written_do_not_count(interpreter: Recorder, loses: int) -> None:
    """Nor those of the last pass. Their tokens were made."""
    interpreter.loses = loses
    interpreter.place(replace(SOUND, n_greedy=3, logits_from=1))
    result = interpreter.run_descriptor(AT)
    assert result == interpreter.result()
    assert result.status == STATUS_DONE | STATUS_ERROR
    assert result.failure.code == ErrorCode.BUS
    assert result.argmax == [26, 37, 378, 3789][: loses + (loses > 0)]
    assert result.n_made == loses + 1


@pytest.mark.parametrize("logits_from", [0, 2])
def test_results_are_written_after_each_pass(interpreter: Recorder, logits_from: int) -> None:
    """Behind those of the passes before, while no later pass has begun."""
    seen = list[list[int]]()
    run = interpreter.run

    def watched() -> None:
        at = RESULT + RESULT_BYTES
        seen.append(interpreter.memory.read(at, 64).view("<u4")[::2].tolist())
        run()

    interpreter.run = watched
    interpreter.place(replace(SOUND, n_greedy=3, logits_from=logits_from))
    interpreter.memory.write(RESULT, bytes(0x400))
    interpreter.run_descriptor(AT)
    made = [15, 26, 37][logits_from:]
    expected = [[], made, [*made, 378]]
    assert seen == [[*each, *[0] * (8 - len(each))] for each in expected]


def test_checksum_of_a_range(interpreter: Recorder) -> None:
    data = np.random.default_rng(1).integers(0, 256, 0x400, np.uint8)
    interpreter.memory.write(WEIGHTS, data)
    sums = replace(SOUND, kind=Kind.CHECKSUM, program_base=WEIGHTS + 64, program_bytes=0x100)
    sums = replace(sums, chunks=(), tokens=())
    interpreter.place(sums)
    result = interpreter.run_descriptor(AT)
    assert result.checksum == checksum(data[64:0x140]) != 0
    assert result.status == STATUS_DONE
    assert not interpreter.passes


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kind": 3}, ErrorCode.DESCRIPTOR),
        ({"chunks": (ChunkEntry(5, 2, KV),)}, ErrorCode.DESCRIPTOR),
        (
            {
                "chunks": (ChunkEntry(5, 1, KV), ChunkEntry(5, 2, KV)),
                "n_greedy": 1,
                "logits_from": 1,
            },
            ErrorCode.LOGITS_FROM,
        ),
        ({"fingerprint": 3}, ErrorCode.FINGERPRINT),
        ({"tokens": (1,) * 9}, ErrorCode.N_TOKENS),
        ({"chunks": (ChunkEntry(254, 3, KV),)}, ErrorCode.CHUNK),
        ({"chunks": (ChunkEntry(250, 3, KV),), "n_greedy": 5}, ErrorCode.CHUNK),
        ({"weight_base": 64}, ErrorCode.WEIGHT_BASE),
        ({"kind": Kind.CHECKSUM, "program_bytes": 8}, ErrorCode.PROGRAM),
    ],
)
def test_what_does_not_fit_writes_its_result_and_nothing_else(
    interpreter: Recorder, changes: dict[str, int], code: ErrorCode
) -> None:
    interpreter.place(replace(SOUND, **changes))
    before = interpreter.memory.read(0, SIZE).copy()
    context, tokens = dict(interpreter.registers), interpreter.tokens.copy()
    result = interpreter.run_descriptor(AT)
    assert result == interpreter.result()
    assert (result.failure.code, result.status) == (code, STATUS_DONE | STATUS_ERROR)
    assert (result.tag, result.argmax) == (42, [])
    assert not interpreter.passes
    assert interpreter.registers == context
    np.testing.assert_array_equal(interpreter.tokens, tokens)
    before[RESULT : RESULT + RESULT_BYTES] = interpreter.memory.read(RESULT, RESULT_BYTES)
    np.testing.assert_array_equal(interpreter.memory.read(0, SIZE), before)


def test_where_there_is_no_descriptor_nothing_is_written(interpreter: Recorder) -> None:
    before = interpreter.memory.read(0, SIZE).copy()
    message = "^there is no descriptor of this version, or its kind, a count or an address does "
    with pytest.raises(RunError, match=message) as error:
        interpreter.run_descriptor(AT)
    assert error.value.failure.code is ErrorCode.DESCRIPTOR
    np.testing.assert_array_equal(interpreter.memory.read(0, SIZE), before)


def test_nothing_is_written_behind_the_last_token(interpreter: Recorder) -> None:
    interpreter.memory.write(RESULT, b"\xff" * 0x1000)
    interpreter.place(SOUND)
    result = interpreter.run_descriptor(AT)
    data = interpreter.memory.read(RESULT, RESULT_BYTES + 3 * 8 + 4).tobytes()
    assert data == result.encode() + b"\xff" * 4


def test_descriptors_wait_for_their_turn(interpreter: Recorder) -> None:
    for i in range(QUEUE_DEPTH + 1):
        tokens = () if i == 1 else (i,)
        chunks = (ChunkEntry(i, 1, KV),)
        each = replace(SOUND, tag=i, tokens=tokens, chunks=chunks, result_base=RESULT + 0x400 * i)
        assert interpreter.ring(interpreter.place(each, AT + 0x200 * i))
    assert not interpreter.ring(AT)
    assert not interpreter.passes
    assert [interpreter.run_next().tag for _ in range(QUEUE_DEPTH + 1)] == [0, 1, 2, 3, 4]
    assert [tokens for tokens, *_ in interpreter.passes] == [[0], [2], [3], [4]]
    results = [interpreter.result(RESULT + 0x400 * i) for i in range(QUEUE_DEPTH + 1)]
    assert [each.failure.code for each in results] == [0, ErrorCode.N_TOKENS, 0, 0, 0]
    assert [each.argmax for each in results] == [[0], [], [22], [33], [44]]
    assert interpreter.ring(AT)


def test_a_descriptor_is_read_when_its_turn_comes(interpreter: Recorder) -> None:
    """As a whole: the result block may lie upon it."""
    interpreter.ring(interpreter.place(SOUND))
    interpreter.place(replace(SOUND, tag=8, result_base=AT, n_greedy=2))
    assert interpreter.run_next().n_made == 2
    assert interpreter.result(AT).tag == 8

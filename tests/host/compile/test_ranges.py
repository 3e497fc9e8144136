"""Programs of ranges of layers: what they contain, and that their waits are sufficient."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from tests.host.compile.test_compiler import (
    PRIORITIES,
    Choose,
    Machine,
    at_random,
    by_priority,
    in_order,
    instructions_of,
    places,
)
from tests.host.random_model import LLAMAS, config_for

from lutra.compile.assembler import assemble
from lutra.compile.compiler import compile_model
from lutra.compile.program import Program, Segment, SegmentKind
from lutra.compile.ranges import EXTRA_OPERATIONS, range_code, stream_halves
from lutra_golden.control.isa import INSTRUCTION_BYTES, Opcode, Unit
from lutra_golden.core.ports import Purpose, two_ports
from lutra_golden.model.packed import PackedModel

RANGES = [range(a, b) for a in range(3) for b in range(a + 1, 4)]


@pytest.fixture(scope="module")
def models(
    program: Callable[[str], Program], packed_llama: Callable[[str, str], PackedModel]
) -> list[Program]:
    llama = compile_model(packed_llama("llama-odd", "W4A8"), config_for(LLAMAS["llama-odd"], "lut"))
    return [program("odd"), llama]


def of_range(program: Program, layers: range) -> Program:
    """The program with the instructions of a range."""
    code = Segment(kind=SegmentKind.CODE, offset=0, data=range_code(program, layers))
    return replace(program, segments=[code, *program.of(SegmentKind.WEIGHTS)])


def test_all_layers_are_the_whole_program(models: list[Program]) -> None:
    for program in models:
        assert range_code(program, range(program.n_layers)) == program.code


def test_embedding_head_and_streams_are_where_they_belong(models: list[Program]) -> None:
    for program in models:
        parts, beat = program.parts, program.config.alignment(Purpose.FETCH)
        high, low = program.halves
        assert high >= program.n_bytes(SegmentKind.WEIGHTS)
        assert low + 2 * program.hidden_size * program.config.pass_tokens <= program.weight_bytes
        for layers in RANGES:
            found = instructions_of(of_range(program, layers))
            operations = [o for i in layers for o in parts.layers[i]]
            opcodes = [i.opcode for i in found if i.opcode is not Opcode.END]
            expected = [o.opcode for o in operations]
            loads = 1 if layers.start == 0 else 2
            start = [Opcode.EMBED] * loads + [Opcode.LDROPE]
            end = [Opcode.LOGITS] if layers.stop < 3 else [o.opcode for o in parts.head]
            assert opcodes == start + expected + end
            embeds = [(i.args["address"], i.args["shift"], i.flags) for i in found[:loads]]
            if layers.start:
                assert embeds == [(high, 16, 0), (low, 0, 32)]
            else:
                assert embeds[0][0] == parts.embed[0].args["address"] < high
            longest = len(program.code) + EXTRA_OPERATIONS * INSTRUCTION_BYTES
            assert len(range_code(program, layers)) <= longest
        assert len(assemble([], beat)) == max(beat, INSTRUCTION_BYTES)


def test_halves_are_whole_beats(models: list[Program]) -> None:
    """Also where a beat holds more than a row's last word."""
    config = models[0].config.with_(ports=two_ports(weights=512, data=1024))
    program = replace(models[0], config=config)
    stream = np.arange(-2, 3 * program.hidden_size - 2, dtype=np.int32).reshape(3, -1)
    for n in (1, 3):
        high, low = stream_halves(program, stream[:n])
        assert len(high) == len(low) >= 2 * n * program.hidden_size
        assert len(high) % program.config.align_bytes == 0
        assert len(high) <= program.halves[1] - program.halves[0]
    halves = [np.frombuffer(half, "<u2")[: stream.size].astype(np.int64) for half in (high, low)]
    np.testing.assert_array_equal(halves[0] << 16 | halves[1], stream.reshape(-1).astype(np.uint32))


class RangeMachine(Machine):
    """Units that run ahead of each other in a range of layers, with a residual stream before it."""

    def __init__(self, program: Program, layers: range) -> None:
        super().__init__(of_range(program, layers))
        self._is_last = layers.stop == program.n_layers
        weights, *_ = places(self.program)
        n = program.config.pass_tokens
        stream = np.random.default_rng(7).integers(-(1 << 20), 1 << 20, (n, program.hidden_size))
        halves = stream_halves(program, stream.astype(np.int32))
        for offset, half in zip(program.halves, halves, strict=True):
            self.interpreter.memory.write(weights + offset, half)

    def _results(self, n: int) -> Iterator[bytes]:
        if self._is_last:
            yield from super()._results(n)
            return
        for m in range(n):
            address = self.logits + m * self.program.logits_stride
            yield self.interpreter.memory.read(address, 4 * self.program.hidden_size).tobytes()


@pytest.mark.parametrize("layers", RANGES)
def test_waits_order_every_hazard(layers: range, models: list[Program]) -> None:
    """Results of a range do not depend on which units run ahead, as far as their waits allow."""
    for program in models:
        machine = RangeMachine(program, layers)
        tokens = list(range(program.config.pass_tokens))
        expected = machine.run(in_order(machine.program), tokens, 0)
        chosen: list[Choose] = [*map(by_priority, PRIORITIES), *map(at_random, range(8))]
        for choose in chosen:
            assert machine.run(choose, tokens, 0) == expected


def test_a_missing_wait_is_seen(models: list[Program]) -> None:
    """The test above would fail where the stream enters and leaves."""
    machine = RangeMachine(models[0], range(1, 2))
    tokens = [0, 1, 2, 3]
    expected = machine.run(in_order(machine.program), tokens, 0)
    first = next(i for i in machine.instructions if i.opcode is Opcode.NORMQ)
    assert first.waits[Unit.LOAD] >= 3
    broken = [
        replace(i, waits=(0, *i.waits[1:])) if i is first else i for i in machine.instructions
    ]
    results = [machine.run(by_priority(order), tokens, 0, broken) for order in permutations(Unit)]
    assert any(result != expected for result in results)

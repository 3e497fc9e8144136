"""cocotb bench of :class:`lutra_hw.control.sequencer.Sequencer` with units of random latency."""

from collections import deque
from random import Random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from lutra_golden.control.descriptor import DOORBELL_BYTES, line_bytes
from lutra_golden.control.isa import (
    FIELDS,
    FLAG_LOGITS,
    INSTRUCTION_BYTES,
    Instruction,
    Opcode,
    Unit,
    encode,
)
from lutra_golden.control.memory import Memory
from lutra_golden.control.registers import ErrorCode, UnitState
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.control.registers import UNIT_STATE_LAYOUT
from lutra_hw.control.sequencer import QUEUE_DEPTH
from lutra_sim.bench.control.responder import COMMAND, ReadResponder
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import StreamMonitor, StreamSink, reset, unpack

__all__ = [
    "dispatches_without_delay",
    "ends",
    "fetches_weights_ahead",
    "hands_over_words",
    "obeys",
    "shows_states",
]

CONFIG = bench_params(AcceleratorConfig)
WEIGHT_BASE = 0x12_3456_7800
PROGRAM_BASE = 0x1000
END = Instruction(Opcode.END)
N_TOKENS, LOGITS_FROM = 5, 2


def _instruction(rng: Random, opcode: Opcode, waits: tuple[int, ...] = (0,) * 4) -> Instruction:
    args = {
        name: field.unit * rng.getrandbits(field.width) for name, field in FIELDS[opcode].items()
    }
    if opcode is Opcode.LMMA:
        args["n_words"] = rng.choice([0, 1, rng.getrandbits(24)])
    return Instruction(opcode, rng.choice([0, FLAG_LOGITS]), waits, args)  # type: ignore[arg-type]


def _program(rng: Random, length: int) -> list[Instruction]:
    """Random instructions whose waits reach from nothing to all that came before."""
    program, count = [], [0] * len(Unit)
    codes = [(code, unit) for code in Opcode if (unit := code.unit) is not None]
    while len(program) < length:
        code, unit = rng.choice(codes)
        for _ in range(rng.choice([1, 1, 1, 7])):
            waits = tuple(rng.choice([0, max(0, n - rng.randrange(3)), n]) for n in count)
            program.append(_instruction(rng, code, waits))
            count[unit] += 1
    return program


def _bytes(program: list[Instruction]) -> bytes:
    """The program in whole beats; what fills the last one is no instruction."""
    content = b"".join(map(encode, program))
    return content + b"\xee" * (-len(content) % CONFIG.word_bytes)


class _Units:
    """The units: take instructions, work for a while, say done; check every wait."""

    def __init__(self, dut: Any, rng: Random, longest: int, p_ready: float) -> None:
        self.taken: list[list[int]] = [[] for _ in Unit]
        self.taken_cycles: list[list[int]] = [[] for _ in Unit]
        self.completed = [0] * len(Unit)
        self.done_cycles: list[list[int]] = [[] for _ in Unit]
        self.finished: list[int] = []
        self.errors: list[tuple[int, ErrorCode]] = []
        self.states: list[list[UnitState]] = []
        self.cycle = 0
        self.blocked: set[Unit] = set()
        self._dut, self._rng, self._longest, self._p_ready = dut, rng, longest, p_ready
        streams = [f"{unit.name.lower()}_cmd" for unit in Unit]
        parts = ("payload", "valid", "ready")
        self._cmd = [[getattr(dut, f"{name}__{part}") for part in parts] for name in streams]
        for _, _, ready in self._cmd:
            ready.value = 0
        for port in (dut.done, dut.busy, dut.stall, dut.start, dut.raw, dut.block, dut.enough):
            port.value = 0
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        rng, dut = self._rng, self._dut
        # cycles that are left of each instruction in a unit; a unit holds up to two
        working = [deque[int]() for _ in Unit]
        while True:
            await RisingEdge(dut.clk)
            self.cycle += 1
            done = 0
            for unit in Unit:
                if working[unit] and unit not in self.blocked:
                    working[unit][0] -= 1
                    if working[unit][0] == 0:
                        working[unit].popleft()
                        done |= 1 << unit
                ready = len(working[unit]) < 2 and rng.random() < self._p_ready
                self._cmd[unit][2].value = int(ready)
            dut.done.value = done
            dut.busy.value = sum(bool(work) << unit for unit, work in enumerate(working))
            await ReadOnly()
            if dut.rst.value == 1:
                continue
            self._sample(working)
            for unit in Unit:
                if done >> unit & 1:
                    self.completed[unit] += 1
                    self.done_cycles[unit].append(self.cycle)

    def _sample(self, working: list[deque[int]]) -> None:
        dut = self._dut
        for unit in Unit:
            payload, valid, ready = self._cmd[unit]
            if valid.value == 1 and ready.value == 1:
                word = int(payload.value)
                waits = [word >> 16 * (i + 1) & 0xFFFF for i in range(len(Unit))]
                assert all(c >= w for c, w in zip(self.completed, waits, strict=True)), (
                    f"{unit.name} starts with {self.completed} completed, but waits for {waits}"
                )
                self.taken[unit].append(word)
                self.taken_cycles[unit].append(self.cycle)
                working[unit].append(self._rng.randint(1, self._longest))
        if dut.finished.value == 1:
            assert not any(working), "finished while a unit works"
            self.finished.append(self.cycle)
        if dut.error.value != 0:
            self.errors.append((self.cycle, ErrorCode(int(dut.error.value))))
        states = unpack(UNIT_STATE_LAYOUT, int(dut.unit_state.value))
        self.states.append([UnitState(state) for state in states])


class _Bench:
    def __init__(
        self,
        dut: Any,
        *,
        longest: int = 1,
        p_ready: float = 1.0,
        p_stall: float = 0.0,
        n_tokens: int = N_TOKENS,
        logits_from: int = LOGITS_FROM,
    ) -> None:
        self.dut, self.memory = dut, Memory(1 << 20)
        self.fetch = ReadResponder(
            dut, "rd_cmd", "rd_data", self.memory, p_stall=p_stall, rng=Random(1)
        )
        self.units = _Units(dut, Random(2), longest, p_ready)
        StreamSink(dut, "weight_cmd", p_stall=p_stall, rng=Random(3))
        self.weights = StreamMonitor(dut, "weight_cmd")
        StreamSink(dut, "word", p_stall=p_stall, rng=Random(4))
        self.words = StreamMonitor(dut, "word")
        dut.context__weight_base.value = WEIGHT_BASE
        dut.context__program_base.value = PROGRAM_BASE
        dut.context__n_tokens.value = n_tokens
        dut.context__logits_from.value = logits_from

    async def start(self, program: list[Instruction], behind: bytes = b"") -> None:
        content = _bytes(program) + behind
        self.memory.write(PROGRAM_BASE, content)
        self.dut.context__program_bytes.value = len(content)
        for lists in (self.units.taken, self.units.taken_cycles, self.units.done_cycles):
            for entries in lists:
                entries.clear()
        self.units.completed[:] = [0] * len(Unit)
        self.units.finished.clear()
        self.units.errors.clear()
        self.units.states.clear()
        self.fetch.n_beats = 0
        self.weights.payloads.clear()
        self.dut.start.value = 1
        await RisingEdge(self.dut.clk)
        self.dut.start.value = 0

    async def finished(self, max_cycles: int = 20_000) -> None:
        for _ in range(max_cycles):
            await RisingEdge(self.dut.clk)
            if self.units.finished:
                break
        else:
            raise AssertionError(f"not finished after {max_cycles} cycles")
        await ClockCycles(self.dut.clk, 10)
        assert len(self.units.finished) == 1
        assert self.fetch.n_beats == self.fetch.commands[-1][1]

    def check(self, program: list[Instruction], n_tokens: int, logits_from: int) -> None:
        """Each unit got its instructions, all of them and in order; so did the weight loader."""
        words = [int.from_bytes(encode(i), "little") for i in program]
        expected: list[list[int]] = [[] for _ in Unit]
        weights = []
        for instruction, word in zip(program, words, strict=True):
            unit = instruction.opcode.unit
            if unit is None:
                continue
            expected[unit].append(word)
            args = instruction.args
            empty = bool(instruction.flags & FLAG_LOGITS) and logits_from >= n_tokens
            if unit is Unit.MATMUL and args["n_words"] and not empty:
                weights.append({"addr": WEIGHT_BASE + args["address"], "beats": args["n_words"]})
        assert self.units.taken == expected
        assert self.units.completed == [len(words) for words in expected]
        assert [unpack(COMMAND, payload) for payload in self.weights.payloads] == weights
        assert not self.words.payloads


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(
    longest=[1, 30], p_ready=[1.0, 0.3], p_stall=[0.0, 0.7], logits_from=[LOGITS_FROM, N_TOKENS]
)
async def obeys(dut: Any, longest: int, p_ready: float, p_stall: float, logits_from: int) -> None:
    """Programs run to their end, one after the other: order kept, waits met, nothing lost."""
    bench = _Bench(dut, longest=longest, p_ready=p_ready, p_stall=p_stall, logits_from=logits_from)
    await reset(dut)
    rng = Random(cocotb.RANDOM_SEED)
    for length in (0, 1, 2, 3, 40, 63, 64):
        program = [*_program(rng, length), END]
        await bench.start(program)
        await bench.finished()
        bench.check(program, N_TOKENS, logits_from)
        assert bench.units.errors == []


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.5])
async def hands_over_words(dut: Any, p_stall: float) -> None:
    """All but a program leaves word by word, all of it or as far as it is wanted; then programs
    run as before."""
    bench, rng = _Bench(dut, p_stall=p_stall), Random(cocotb.RANDOM_SEED)
    await reset(dut)
    line, size = PROGRAM_BASE // DOORBELL_BYTES + 77, line_bytes(CONFIG)
    bench.memory.write(line * DOORBELL_BYTES, rng.randbytes(size))

    async def enough(n: int) -> None:
        while True:
            await RisingEdge(dut.clk)
            dut.enough.value = int(len(bench.words.payloads) >= n - 1)

    for is_block, most in ((0, None), (1, None), (1, 1), (1, 9), (0, 8), (1, size // 4), (0, None)):
        content = rng.randbytes(rng.randint(1, 5) * CONFIG.word_bytes)
        dut.raw.value, dut.block.value, dut.line.value = 1, is_block, line
        limit = None if most is None else cocotb.start_soon(enough(most))
        bench.words.payloads.clear()
        await bench.start([], content)
        await bench.finished()
        if is_block:
            content = bench.memory.read(line * DOORBELL_BYTES, size).tobytes()
        words = [int.from_bytes(content[i : i + 4], "little") for i in range(0, len(content), 4)]
        # all beats are fetched
        assert bench.words.payloads == words[:most]
        assert bench.fetch.n_beats == len(content) // CONFIG.word_bytes
        if most is None and not p_stall:
            cycles = bench.words.cycles
            assert cycles[-1] - cycles[-len(words)] == len(words) - 1
        if limit is not None:
            limit.cancel()
        dut.raw.value = dut.block.value = dut.enough.value = 0
        bench.words.payloads.clear()
        program = [*_program(rng, 5), END]
        await bench.start(program)
        await bench.finished()
        bench.check(program, N_TOKENS, LOGITS_FROM)
        assert bench.units.errors == []


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.5], lead=[0, 1, 5, 6])
async def ends(dut: Any, p_stall: float, lead: int) -> None:
    """END drops what follows; an unknown opcode and a missing END are errors; all of them end."""
    bench = _Bench(dut, longest=20, p_stall=p_stall)
    await reset(dut)
    rng = Random(cocotb.RANDOM_SEED)
    before = _program(rng, lead)[:lead]
    garbage = rng.randbytes(5 * CONFIG.word_bytes)

    await bench.start([*before, END], garbage)
    await bench.finished()
    bench.check(before, N_TOKENS, LOGITS_FROM)
    assert bench.units.errors == []

    for opcode in (max(Opcode) + 1, 0x80, 0xFF):
        unknown = bytes([opcode]) + bytes(INSTRUCTION_BYTES - 1)
        content = b"".join(map(encode, before)) + unknown
        content += b"\x05" * (-len(content) % CONFIG.word_bytes) + garbage
        await bench.start([], content)
        await bench.finished()
        bench.check(before, N_TOKENS, LOGITS_FROM)
        ((cycle, code),) = bench.units.errors
        assert code is ErrorCode.OPCODE and cycle <= bench.units.finished[0]

    per_beat = CONFIG.word_bytes // INSTRUCTION_BYTES
    whole = before[: lead // per_beat * per_beat]
    await bench.start(whole)
    await bench.finished()
    bench.check(whole, N_TOKENS, LOGITS_FROM)
    assert [code for _, code in bench.units.errors] == [ErrorCode.NO_END]

    await bench.start([*before, END])
    await bench.finished()
    bench.check(before, N_TOKENS, LOGITS_FROM)
    assert bench.units.errors == []


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def fetches_weights_ahead(dut: Any) -> None:
    """Weights of later LMMAs are asked for while the first one still waits."""
    bench = _Bench(dut)
    bench.units.blocked = {Unit.LOAD}
    await reset(dut)
    rng = Random(1)
    program = [_instruction(rng, Opcode.LDPARAM)]
    for _ in range(QUEUE_DEPTH + 2):
        args = {name: field.unit for name, field in FIELDS[Opcode.LMMA].items()}
        program.append(Instruction(Opcode.LMMA, 0, (1, 0, 0, 0), args))
    program.append(END)
    await bench.start(program)
    await ClockCycles(dut.clk, 50)
    assert bench.units.taken[Unit.MATMUL] == []
    assert len(bench.weights.payloads) == QUEUE_DEPTH
    assert bench.units.finished == []
    bench.units.blocked = set()
    await bench.finished()
    bench.check(program, N_TOKENS, LOGITS_FROM)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def dispatches_without_delay(dut: Any) -> None:
    """An instruction starts 2 cycles after the last ``done`` that it waits for."""
    bench = _Bench(dut)
    await reset(dut)
    rng = Random(1)
    program = [_instruction(rng, Opcode.LDPARAM)]
    for i in range(1, 8):
        program.append(_instruction(rng, Opcode.NORMQ, (i, 0, i - 1, 0)))
        program.append(_instruction(rng, Opcode.LDROPE, (i, 0, i, 0)))
    await bench.start([*program, END])
    await bench.finished()
    units = bench.units
    # load and vector instructions take turns
    done, taken = (
        sorted(cycles[Unit.LOAD] + cycles[Unit.VECTOR])
        for cycles in (units.done_cycles, units.taken_cycles)
    )
    assert {start - end for start, end in zip(taken[1:], done[:-1], strict=True)} == {2}


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def shows_states(dut: Any) -> None:
    """State registers of a hanging program name the waiting unit and what it waits for."""
    bench = _Bench(dut)
    bench.units.blocked = {Unit.LOAD}
    await reset(dut)
    await ClockCycles(dut.clk, 5)
    assert bench.units.states[-1] == [UnitState.IDLE] * 5
    rng = Random(1)
    program = [_instruction(rng, Opcode.LDPARAM), _instruction(rng, Opcode.NORMQ, (1, 0, 0, 0))]
    await bench.start([*program, END])
    await ClockCycles(dut.clk, 50)
    running, waiting = UnitState.RUNNING, UnitState.WAIT_DEPENDENCY
    expected = [running, UnitState.IDLE, waiting, UnitState.IDLE, waiting]
    assert bench.units.states[-1] == expected
    dut.stall.value = 1
    await ClockCycles(dut.clk, 3)
    expected[0] = UnitState.WAIT_READ
    assert bench.units.states[-1] == expected
    dut.stall.value = 0
    bench.units.blocked = set()
    await bench.finished()
    assert bench.units.states[-1] == [UnitState.IDLE] * 5

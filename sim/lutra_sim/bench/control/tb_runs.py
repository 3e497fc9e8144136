"""cocotb bench of :class:`lutra_hw.control.runs.RunUnit`, among what it is connected to.

The units are the bench: a pass makes tokens by a rule.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotb.utils import get_sim_time
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from lutra_golden.control.chunks import ChunkEntry, chunks
from lutra_golden.control.descriptor import (
    DOORBELL_BYTES,
    ENDS_MAX,
    QUEUE_DEPTH,
    Descriptor,
    Kind,
    line_bytes,
)
from lutra_golden.control.failure import Failure
from lutra_golden.control.interpreter import Interpreter, RunError
from lutra_golden.control.isa import Instruction, Opcode, Unit, encode
from lutra_golden.control.memory import Memory
from lutra_golden.control.registers import (
    CONTROL_ABORT,
    CONTROL_START,
    COUNTERS,
    REGISTERS,
    STATUS_BUSY,
    STATUS_DONE,
    STATUS_ERROR,
    STATUS_REFUSED,
    ErrorCode,
)
from lutra_golden.control.result import RESULT_BYTES, Result, result_bytes
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import BOUNDARY_BYTES, Purpose
from lutra_hw.buffers import ArgmaxReadPort, ChunkReadPort, ScaleReadPort
from lutra_hw.control.failure import PORT_ERROR_LAYOUT
from lutra_sim.bench.control.responder import ReadResponder, WriteResponder
from lutra_sim.bench.ports import PortMemory, read_word
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import pack, reset, unpack

__all__ = [
    "aborts",
    "carries_out_what_golden_does",
    "counts_what_is_in_memory",
    "ends_with_bus_errors",
    "gives_up",
    "keeps_its_cycles",
    "keeps_its_queue",
    "reports_again",
    "starts_by_registers_too",
]

CONFIG = bench_params(AcceleratorConfig)
LINE = line_bytes(CONFIG)
ROOM = result_bytes(LINE, 16 * CONFIG.pass_tokens)
N_SLOTS = 6
PROGRAM, NO_END, BAD, DATA = 0, 0x400, 0x800, 0x1000
DESCRIPTORS, RESULTS = 0x4000, 0x10000
SIZE = RESULTS + N_SLOTS * ROOM
VOCABULARY = 23
WRITE = list(Purpose).index(Purpose.WRITE)
_LOAD = encode(Instruction(Opcode.LDPARAM, args={"address": 0, "n_words": 0, "param_word": 0}))
_END = encode(Instruction(Opcode.END))
_BAD = bytes([0x80]) + bytes(31)


def _rule(token: int, position: int) -> tuple[int, int, int]:
    """Arg-max and scale of a token."""
    return (7 * token + 3 * position + 1) % VOCABULARY, 0x8000 + token, position - 40


def _error(failure: Failure) -> int:
    """The port ``transfers`` with a bus error."""
    error = {"error": 1, "response": failure.response, "address": failure.address}
    return pack(PORT_ERROR_LAYOUT, error) << PORT_ERROR_LAYOUT.size * failure.purpose


class _Golden(Interpreter):
    """Makes tokens by the rule; ``breaks`` is the pass in which a bus error comes, and which.

    ``loses`` is the pass whose results the memory does not take, and the error.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__(CONFIG, memory)
        self.n_passes = 0
        self.breaks: tuple[int, Failure] = (-1, Failure())
        self.loses: tuple[int, Failure] = (-1, Failure())

    def write_results(self, address: int, pairs: bytes) -> None:
        super().write_results(address, pairs)
        if self.n_passes - 1 == self.loses[0]:
            raise RunError(CONFIG, self.loses[1])

    def run(self) -> None:
        self.n_passes += 1
        if self.n_passes - 1 == self.breaks[0]:
            raise RunError(CONFIG, self.breaks[1])
        super().run()
        n = self.registers["N_TOKENS"]
        for chunk in chunks(self.chunks, n):
            for i in range(chunk.n_tokens):
                m = chunk.tokens.start + i
                result = _rule(int(self.tokens[m]), chunk.position + i)
                self.argmax[m], self.scale.m[m], self.scale.e[m] = result


def _image() -> Memory:
    memory = Memory(SIZE)
    words = max(CONFIG.word_bytes // 32, 2)
    memory.write(PROGRAM, (_LOAD + _END * (words - 1)) * (256 // 32 // words))
    memory.write(NO_END, _LOAD * 8)
    memory.write(BAD, (_LOAD + _BAD) * 4)
    rng = np.random.default_rng(1)
    memory.write(DATA, rng.integers(0, 256, 0x1000, np.uint8))
    # what is left of a block that was there before
    memory.write(RESULTS, b"\x5a" * (SIZE - RESULTS))
    return memory


class _Bench:
    def __init__(self, dut: Any, p_stall: float = 0.0, latency: int = 3) -> None:
        self.dut, self.rng = dut, Random(cocotb.RANDOM_SEED)
        bus = AxiLiteBus.from_prefix(dut, "s_axi", bus_separator="__")
        self._host: Any = AxiLiteMaster(bus, dut.clk, dut.rst)
        self.memory, self.golden = _image(), _Golden(_image())
        common: dict[str, Any] = {"p_stall": p_stall, "latency": latency}
        self.reads = ReadResponder(
            dut, "rd_cmd", "rd_data", self.memory, clear="clear", rng=Random(1), **common
        )
        self.writes = WriteResponder(
            dut, "wr_cmd", "wr_data", "wr_idle", self.memory, rng=Random(2),
            on_answer=self._answered, **common,
        )  # fmt: skip
        zeros = ("expired", "done", "transfers", "saturated", "events")
        for name in (*zeros, "tokens__addr", "load_chunks__addr"):
            getattr(dut, name).value = 0
        self.argmax = PortMemory(ArgmaxReadPort(CONFIG))
        self.argmax.serve(dut, "argmax")
        self.scales = PortMemory(ScaleReadPort(CONFIG))
        self.scales.serve(dut, "scales")
        dut.idle.value = dut.load_cmd__ready.value = 1
        self.breaks: tuple[int, Failure] = (-1, Failure())
        self.loses: tuple[int, int, Failure] = (-1, 0, Failure())
        """Pass, which of the answers to the writes of its results is an error, and the error."""
        self.n_passes = self.pause = self.n_cycles = self._n_answers = 0
        cocotb.start_soon(self._units())
        if p_stall:
            cocotb.start_soon(self._drain())

    async def set_up(self) -> None:
        await reset(self.dut)
        await RisingEdge(self.dut.clk)
        first = get_sim_time("step")
        await RisingEdge(self.dut.clk)
        self.period = get_sim_time("step") - first
        await self.write("IRQ_ENABLE", 1)

    async def _drain(self) -> None:
        """The memory owes something for a while."""
        while True:
            await RisingEdge(self.dut.clk)
            self.dut.idle.value = int(self.rng.random() < 0.3)

    async def _units(self) -> None:
        """Carry out the pass of every instruction, and say that it is done."""
        dut, layout = self.dut, ChunkReadPort(CONFIG).payload_layout
        while True:
            await RisingEdge(dut.clk)
            dut.done.value = 0
            await ReadOnly()
            if dut.load_cmd__valid.value == 0 or dut.rst.value == 1:
                continue
            n = int(dut.context__n_tokens.value)
            began = get_sim_time("step")
            await RisingEdge(dut.clk)
            self.n_passes += 1
            self._n_answers = 0
            if self.n_passes - 1 == self.breaks[0]:
                cocotb.start_soon(self.fail(self.breaks[1]))
                continue
            tokens = [await read_word(dut, "tokens", i) for i in range(n)]
            table = list[ChunkEntry]()
            for i in range(n):
                entry = unpack(layout, await read_word(dut, "load_chunks", i))
                base = entry["page"] * BOUNDARY_BYTES
                table.append(ChunkEntry(entry["position"], entry["n_tokens"], base))
            argmax, scales = [0] * n, [{"m": 0, "e": 0}] * n
            for chunk in chunks(table, n):
                for i in range(chunk.n_tokens):
                    m = chunk.tokens.start + i
                    argmax[m], mantissa, exponent = _rule(tokens[m], chunk.position + i)
                    scales[m] = {"m": mantissa, "e": exponent}
            self.argmax.load(argmax)
            self.scales.load(scales)
            if self.pause:
                await ClockCycles(dut.clk, self.pause)
            dut.done.value = 1 << Unit.LOAD
            self.n_cycles += round((get_sim_time("step") - began) / self.period)

    async def fail(self, failure: Failure) -> None:
        """Say for a cycle that a transfer had this error."""
        self.dut.transfers.value = _error(failure)
        await RisingEdge(self.dut.clk)
        self.dut.transfers.value = 0

    def _answered(self, address: int) -> None:
        """Fail with the answer that was asked for: in its cycle the writer is idle, if all came."""
        number, at, failure = self.loses
        is_pair = (address - RESULTS) % ROOM >= RESULT_BYTES
        if is_pair and self.n_passes - 1 == number:
            if self._n_answers == at:
                cocotb.start_soon(self.fail(failure))
            self._n_answers += 1

    async def write(self, name: str, value: int, word: int = 0) -> None:
        await self._host.write_dword(REGISTERS[name].address + 4 * word, value)

    async def read(self, name: str, word: int = 0) -> int:
        return await self._host.read_dword(REGISTERS[name].address + 4 * word)

    async def failure(self) -> Failure:
        low, high = await self.read("ERROR_ADDRESS"), await self.read("ERROR_ADDRESS", 1)
        return Failure.of(await self.read("ERROR"), low | high << 32)

    def place(self, slot: int, data: bytes) -> int:
        """Put a descriptor into both memories."""
        address = DESCRIPTORS + slot * 4 * LINE
        for memory in (self.memory, self.golden.memory):
            memory.write(address, data)
        return address

    async def ring(self, address: int) -> None:
        await self.write("DOORBELL", address // DOORBELL_BYTES)

    async def over(self, n_cycles: int = 20_000) -> None:
        """Wait until no descriptor is left."""
        for _ in range(n_cycles // 20):
            if await self.read("PENDING") == 0:
                await self.write("IRQ_STATUS", 1)
                return
            await ClockCycles(self.dut.clk, 20)
        raise AssertionError(f"not over after {n_cycles} cycles")

    def expect(self, address: int) -> Result | Failure:
        """Carry a descriptor out on the golden device; its result, or why there is none."""
        try:
            return self.golden.run_descriptor(address)
        except RunError as error:
            return error.failure

    def result(self, slot: int) -> Result:
        base = RESULTS + slot * ROOM
        return Result.decode(self.memory.read(base, ROOM).tobytes())

    def check(self, slot: int, expected: Result | Failure) -> None:
        """A result is golden but for counters and states; these are put right then."""
        if isinstance(expected, Failure):
            return
        found = self.result(slot)
        assert min(found.counters["cycles"], 1), "no cycles were counted"
        found.counters = dict.fromkeys(COUNTERS, 0)
        if expected.failure.code >= ErrorCode.BUS and expected.failure.code < ErrorCode.DESCRIPTOR:
            found.unit_state = 0
        assert found == expected, f"{found} instead of {expected}"
        base, block = RESULTS + slot * ROOM, found.encode()
        self.memory.write(base, block)
        if found.failure.code == ErrorCode.BUS and found.failure.purpose == WRITE:
            # what lies behind its results means nothing
            rest = base + len(block), ROOM - len(block)
            self.memory.write(rest[0], self.golden.memory.read(*rest))

    def check_memory(self) -> None:
        found, expected = (
            each.read(RESULTS, SIZE - RESULTS) for each in (self.memory, self.golden.memory)
        )
        at = np.flatnonzero(found != expected)
        assert not len(at), f"{len(at)} bytes differ, the first at {RESULTS + at[0]:#x}"


def _descriptor(rng: Random, slot: int) -> Descriptor:
    """A sound descriptor of any tile."""
    n = rng.randint(1, CONFIG.pass_tokens)
    table, left = list[ChunkEntry](), n
    while left:
        count = rng.randint(1, left)
        left -= count
        stated = count if left else rng.choice([0, count, 255])
        position = rng.randrange(CONFIG.max_context - count - 14)
        table.append(ChunkEntry(position, stated, BOUNDARY_BYTES * rng.getrandbits(28)))
    first = table[0].n_tokens if len(table) > 1 else n
    n_greedy = rng.choice([0, 0, 1, 2, 5, 13])
    return Descriptor(
        fingerprint=CONFIG.fingerprint,
        result_base=RESULTS + slot * ROOM,
        tag=rng.getrandbits(32),
        program_base=PROGRAM,
        program_bytes=max(CONFIG.alignment(Purpose.FETCH), 64),
        weight_base=CONFIG.align_bytes * rng.randrange(64),
        logits_base=CONFIG.align_bytes * rng.randrange(1 << 20),
        logits_stride=CONFIG.align_bytes * rng.randrange(1 << 10),
        logits_from=rng.randrange(min(first, n) if n_greedy else n + 1),
        n_greedy=n_greedy,
        chunks=tuple(table),
        tokens=tuple(rng.randrange(VOCABULARY) for _ in range(n)),
        ends=tuple(rng.randrange(VOCABULARY) for _ in range(rng.choice([0, 0, 1, 2, ENDS_MAX]))),
    )


def _changes(sound: Descriptor) -> list[dict[str, Any]]:
    """Changes after which a descriptor, or its run, is wrong; or another kind."""
    n, top, word = len(sound.tokens), CONFIG.max_context, CONFIG.word_bytes
    fetch = CONFIG.alignment(Purpose.FETCH)
    whole = {"chunks": (ChunkEntry(0, 0),), "n_greedy": 0, "logits_from": 0}
    sums = {"kind": Kind.CHECKSUM, "program_base": DATA, "chunks": (), "tokens": ()}
    return [
        *(sums | {"program_bytes": size} for size in (fetch, 3 * fetch, 0x1000)),
        sums | {"program_base": DATA + 32, "program_bytes": fetch},
        sums | {"program_bytes": fetch + 8},
        sums | {"program_bytes": 0},
        sums | {"program_bytes": fetch, "fingerprint": 1},
        {"kind": 2},
        {"chunks": ()},
        {"chunks": (ChunkEntry(0, 1),) * (CONFIG.pass_tokens + 1)},
        {"chunks": (ChunkEntry(0, n), ChunkEntry(0, 1))},
        {"chunks": (*sound.chunks[:-1], ChunkEntry(3, 0), ChunkEntry(3, 0))},
        {"ends": (99,) * (ENDS_MAX + 1)},
        {"fingerprint": sound.fingerprint ^ 1},
        {"fingerprint": sound.fingerprint ^ 1 << 63},
        {"tokens": ()},
        {"tokens": (1,) * (CONFIG.pass_tokens + 1)},
        whole | {"logits_from": n + 1},
        whole | {"n_greedy": 1, "logits_from": n},
        whole | {"chunks": (ChunkEntry(top - n, 0),)},
        whole | {"chunks": (ChunkEntry(top - n, 0),), "n_greedy": 1},
        whole | {"chunks": (ChunkEntry(top - n, 0),), "n_greedy": 2},
        whole | {"chunks": (ChunkEntry(top - n - 4, 0),), "n_greedy": 5, "ends": ()},
        whole | {"chunks": (ChunkEntry(0, 0),), "n_greedy": 65535},
        {"program_bytes": 32 if word > 32 else 16},
        {"program_base": 16},
        {"weight_base": 4},
        {"logits_base": 4},
        {"logits_stride": 4},
        {"program_base": NO_END},
        {"program_base": BAD},
    ]


def _foreign(sound: bytes) -> list[bytes]:
    """No descriptors: magic, version, bits that mean nothing, an address that is no line's."""
    bits = (0, 31, 32, 63, 8 * 16 + 3, 8 * 22, 8 * 28 + 8, 8 * 72 + 31, 8 * 82, 8 * 84, 8 * 127 + 7)
    found = list[bytes]()
    for bit in bits:
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        found.append(bytes(data))
    return found


async def _carry_out(bench: _Bench, descriptors: Sequence[bytes]) -> None:
    """Ring for all at once, or soon after each other; whatever they are, results are golden."""
    addresses = [bench.place(slot, data) for slot, data in enumerate(descriptors)]
    for address in addresses:
        await bench.ring(address)
        await ClockCycles(bench.dut.clk, bench.rng.choice([0, 0, 50]))
    await bench.over()
    assert bench.dut.irq.value == 0
    failure = Failure()
    for slot, address in enumerate(addresses):
        expected = bench.expect(address)
        bench.check(slot, expected)
        failure = expected if isinstance(expected, Failure) else expected.failure
    assert await bench.failure() == failure
    status = STATUS_DONE | STATUS_ERROR * bool(failure.code)
    assert await bench.read("STATUS") == status
    bench.check_memory()


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize((("p_stall", "latency"), [(0.0, 2), (0.3, 20)]))
async def carries_out_what_golden_does(dut: Any, p_stall: float, latency: int) -> None:
    """Random descriptors, all that is wrong with some, and sums; alone and in queues."""
    bench = _Bench(dut, p_stall, latency)
    rng = bench.rng
    await bench.set_up()
    first = _descriptor(rng, 0)
    cases = [first.encode(LINE)]
    cases += _foreign(first.encode(LINE))
    cases += [_descriptor(rng, 0).encode(LINE) for _ in range(12)]
    for change in _changes(first):
        cases.append(replace(first, **change).encode(LINE))
    rng.shuffle(cases)
    while cases:
        batch = [cases.pop() for _ in range(min(len(cases), rng.choice([1, 1, 2, 5])))]
        moved = list[bytes]()
        for slot, data in enumerate(batch):
            changed = bytearray(data)
            low = int.from_bytes(data[16:20], "little") + slot * ROOM
            changed[16:20] = low.to_bytes(4, "little")
            moved.append(bytes(changed))
        await _carry_out(bench, moved)
    assert bench.n_passes == bench.golden.n_passes


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def keeps_its_queue(dut: Any) -> None:
    """Four descriptors wait beside the one that runs; one more is refused, an abort drops them."""
    bench = _Bench(dut)
    await bench.set_up()
    sound = replace(_descriptor(bench.rng, 0), n_greedy=0, logits_from=0)
    addresses = list[int]()
    for slot in range(N_SLOTS):
        each = replace(sound, result_base=RESULTS + slot * ROOM, tag=slot)
        addresses.append(bench.place(slot, each.encode(LINE)))
    bench.pause = 200
    for n, address in enumerate(addresses[: QUEUE_DEPTH + 1]):
        await bench.ring(address)
        await ClockCycles(dut.clk, 3)
        assert await bench.read("PENDING") == n + 1
        assert await bench.read("STATUS") == STATUS_BUSY
    await bench.ring(addresses[-1])
    assert await bench.read("PENDING") == QUEUE_DEPTH + 1
    assert await bench.read("STATUS") == STATUS_BUSY | STATUS_REFUSED
    await bench.over()
    assert [bench.result(slot).tag for slot in range(QUEUE_DEPTH + 1)] == [0, 1, 2, 3, 4]
    assert bench.result(0).status == STATUS_DONE | STATUS_REFUSED
    assert bench.result(4).status == STATUS_DONE
    assert bench.memory.read(RESULTS + 5 * ROOM, 1)[0] == 0x5A
    for address in addresses[:3]:
        await bench.ring(address)
    assert await bench.read("PENDING") == 3
    await bench.write("CONTROL", CONTROL_ABORT)
    await bench.over(1000)
    assert (await bench.failure()).code == ErrorCode.ABORT
    bench.pause = 0
    await bench.ring(addresses[5])
    await bench.over()
    assert bench.result(5).tag == 5 and await bench.read("STATUS") == STATUS_DONE


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def ends_with_bus_errors(dut: Any) -> None:
    """An error in a pass is reported with the results of those before; one in a fetch as well,
    unless it is that of the first block: then nothing is written."""
    bench = _Bench(dut)
    await bench.set_up()
    sound = replace(
        _descriptor(bench.rng, 0),
        chunks=(ChunkEntry(5, 0, 0x1000),),
        tokens=(3,),
        logits_from=0,
        n_greedy=4,
        ends=(),
    )
    failure = Failure(code=ErrorCode.BUS, purpose=1, response=3, address=0x12_3456_7890)
    for broken in range(4):
        bench.breaks = bench.n_passes + broken, failure
        bench.golden.breaks = bench.golden.n_passes + broken, failure
        await _carry_out(bench, [sound.encode(LINE)])
        assert bench.result(0).n_made == broken
    bench.breaks = bench.golden.breaks = -1, Failure()

    address = bench.place(0, replace(sound, tag=77).encode(LINE))
    fetch = Failure(code=ErrorCode.BUS, purpose=0, response=2, address=address)
    before = bench.memory.read(RESULTS, ROOM).tobytes()
    n = CONFIG.pass_tokens
    full = replace(
        sound, chunks=(ChunkEntry(5, 1, 0),) * n, tokens=(1,) * n, ends=(99,) * ENDS_MAX, tag=77
    )
    # the last one comes behind the header
    for n_cycles in (2, 12, 30, 40):
        bench.place(0, full.encode(LINE))
        await bench.ring(address)
        await ClockCycles(dut.clk, n_cycles)
        await bench.fail(fetch)
        await bench.over(1000)
        assert await bench.failure() == fetch
        assert await bench.read("STATUS") == STATUS_DONE | STATUS_ERROR
        assert bench.memory.read(RESULTS, ROOM).tobytes() == before
    await _carry_out(bench, [sound.encode(LINE)])
    long = replace(sound, chunks=(ChunkEntry(5, 1, 0),) * n, tokens=(1,) * n, n_greedy=0, tag=78)
    if len(long.encode(LINE)) > LINE:
        await bench.ring(bench.place(0, long.encode(LINE)))
        await ClockCycles(dut.clk, LINE // 4 + 25)
        await bench.fail(fetch)
        await bench.over(1000)
        found = bench.result(0)
        assert (found.tag, found.failure, found.argmax) == (78, fetch, [])
        await _carry_out(bench, [long.encode(LINE)])


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize((("p_stall", "latency"), [(0.0, 1), (0.0, 40), (0.3, 20)]))
async def counts_what_is_in_memory(dut: Any, p_stall: float, latency: int) -> None:
    """A pass counts unless a write of its results failed, be it the last write of the last pass."""
    bench = _Bench(dut, p_stall, latency)
    await bench.set_up()
    n = min(CONFIG.pass_tokens, 3)
    sound = replace(
        _descriptor(bench.rng, 0),
        chunks=tuple(ChunkEntry(5 + i, 1, 0x1000 * i) for i in range(n)),
        tokens=(3,) * n,
        logits_from=0,
        n_greedy=3,
        ends=(),
    )
    failure = Failure(code=ErrorCode.BUS, purpose=WRITE, response=2, address=0x12_3456_7890)
    for n_greedy, number in ((3, 0), (3, 1), (3, 2), (0, 0)):
        for at in range(n):
            bench.loses = bench.n_passes + number, at, failure
            bench.golden.loses = bench.golden.n_passes + number, failure
            await _carry_out(bench, [replace(sound, n_greedy=n_greedy).encode(LINE)])
            found = bench.result(0)
            assert len(found.argmax) == n * number
            assert found.n_made == (number + 1 if n_greedy else 0)
            assert found.failure == failure
    bench.loses, bench.golden.loses = (-1, 0, Failure()), (-1, Failure())
    await _carry_out(bench, [sound.encode(LINE)])


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def reports_again(dut: Any) -> None:
    """A failure in the report is reported, without loss of what is in memory; one that comes when
    the status is on its way, or in the second report, is not."""
    n_beats = max(RESULT_BYTES // CONFIG.word_bytes, 1)
    bench = _Bench(dut, latency=1)
    await bench.set_up()
    sound = replace(
        _descriptor(bench.rng, 0),
        chunks=(ChunkEntry(5, 1, 0x1000),),
        tokens=(3,),
        logits_from=0,
        n_greedy=2,
        ends=(),
    )
    address = bench.place(0, sound.encode(LINE))
    expected = bench.golden.run_descriptor(address)

    async def end_at(*beats: int) -> Result:
        """The block, if the run is ended when so many beats of it were written, and so on."""
        bench.memory.write(RESULTS, bytes(ROOM))
        await bench.ring(address)
        at = bench.writes.n_beats + 2  # one for each token
        for n in beats:
            at += n
            while bench.writes.n_beats < at:
                await RisingEdge(dut.clk)
            dut.expired.value = 1
            await RisingEdge(dut.clk)
            dut.expired.value = 0
        await bench.over(1000)
        assert (await bench.failure()).code == ErrorCode.WATCHDOG
        return bench.result(0)

    found = await end_at(1)
    assert found.failure.code == ErrorCode.WATCHDOG
    assert found.status == STATUS_DONE | STATUS_ERROR
    assert (found.argmax, found.n_made) == (expected.argmax, 2)
    late = await end_at(n_beats + 1)
    # whether the status is written depends on the memory
    assert late.status in (0, STATUS_DONE)
    assert (late.failure, late.argmax) == (Failure(), expected.argmax)
    assert (await end_at(1, 1)).status == 0
    for memory in (bench.memory, bench.golden.memory):
        memory.write(RESULTS, bytes(ROOM))
    await _carry_out(bench, [sound.encode(LINE)])


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.3])
async def aborts(dut: Any, p_stall: float) -> None:
    """An abort at any time: the block says so, or was not begun, or the run was over; and the next
    run is right."""
    bench = _Bench(dut, p_stall, 5)
    await bench.set_up()
    seen = set[int]()
    for number in range(16):
        sound = replace(_descriptor(bench.rng, 0), n_greedy=2, logits_from=0)
        address = bench.place(0, sound.encode(LINE))
        bench.memory.write(RESULTS, bytes(ROOM))
        bench.golden.memory.write(RESULTS, bytes(ROOM))
        await bench.ring(address)
        bench.pause = 300
        await ClockCycles(dut.clk, bench.rng.randrange(30 if number % 2 else 900))
        await bench.write("CONTROL", CONTROL_ABORT)
        await bench.over(2000)
        found, failure = bench.result(0), await bench.failure()
        assert failure.code in (ErrorCode.NONE, ErrorCode.ABORT)
        if found.status:
            assert found.status & STATUS_DONE and found.tag == sound.tag
            assert found.failure.code in (ErrorCode.NONE, failure.code)
        seen.add(2 * bool(found.status) + bool(failure.code))
        bench.n_passes, bench.pause = bench.golden.n_passes, 0
        await ClockCycles(dut.clk, 300)
        bench.memory.write(RESULTS, bytes(ROOM))
        await _carry_out(bench, [_descriptor(bench.rng, 0).encode(LINE)])
    assert seen >= {1, 3}, "no abort before the header was read, or none after it"


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def gives_up(dut: Any) -> None:
    """The watchdog ends a run with a report; if the memory owes for ever, without one, and then
    what waits."""
    bench = _Bench(dut)
    await bench.set_up()
    sound = replace(_descriptor(bench.rng, 0), n_greedy=0, logits_from=0)
    address = bench.place(0, sound.encode(LINE))
    bench.pause = 1000

    async def expire() -> None:
        dut.expired.value = 1
        await RisingEdge(dut.clk)
        dut.expired.value = 0
        await ClockCycles(dut.clk, 3)

    await bench.ring(address)
    await ClockCycles(dut.clk, 300)
    await expire()
    await bench.over(1000)
    assert bench.result(0).failure.code == ErrorCode.WATCHDOG
    assert bench.result(0).status == STATUS_DONE | STATUS_ERROR
    bench.memory.write(RESULTS, bytes(ROOM))
    for _ in range(2):
        await bench.ring(address)
    await ClockCycles(dut.clk, 300)
    dut.idle.value = 0
    await expire()
    assert await bench.read("PENDING") == 2 and dut.clear.value == 1
    await expire()
    assert await bench.read("PENDING") == 1 and dut.clear.value == 1
    await expire()
    assert await bench.read("PENDING") == 0
    assert (await bench.failure()).code == ErrorCode.WATCHDOG
    assert not bench.memory.read(RESULTS, ROOM).any()
    dut.idle.value, bench.pause = 1, 0
    await ClockCycles(dut.clk, 1100)
    await bench.ring(address)
    await bench.over()
    assert bench.result(0).status == STATUS_DONE


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def starts_by_registers_too(dut: Any) -> None:
    """A START between descriptors runs, and waits for no check; in a run it is refused."""
    bench = _Bench(dut)
    await bench.set_up()
    sound = _descriptor(bench.rng, 0)
    await _carry_out(bench, [sound.encode(LINE)])
    for name, value in (sound.registers | {"PROGRAM_BASE": PROGRAM}).items():
        for word in range(REGISTERS[name].count):
            await bench.write(name, value >> 32 * word & 0xFFFFFFFF, word)
    await bench.write("N_TOKENS", 1)
    await bench.write("LOGITS_FROM", 0)
    await bench.write("TOKEN", 5)
    await bench.write("CHUNK", 9)
    before, bench.pause = bench.n_passes, 100
    await bench.write("CONTROL", CONTROL_START)
    assert await bench.read("STATUS") == STATUS_BUSY
    # it waits for the end
    await bench.ring(DESCRIPTORS)
    await bench.write("CONTROL", CONTROL_START)
    assert await bench.read("STATUS") == STATUS_BUSY | STATUS_REFUSED
    assert await bench.read("PENDING") == 1 and bench.n_passes == before + 1
    bench.pause = 0
    await bench.over()
    bench.check(0, bench.expect(DESCRIPTORS))
    bench.check_memory()
    assert await bench.read("STATUS") == STATUS_DONE
    await bench.write("N_TOKENS", 0)
    await bench.write("CONTROL", CONTROL_START)
    assert await bench.read("STATUS") == STATUS_DONE | STATUS_ERROR
    assert (await bench.failure()).code == ErrorCode.N_TOKENS


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def keeps_its_cycles(dut: Any) -> None:
    """Cycles of a run beside its passes and the memory, and of each token and sequence more."""
    bench = _Bench(dut, latency=1)
    await bench.set_up()
    sound = replace(_descriptor(bench.rng, 0), n_greedy=0, logits_from=0, ends=())

    async def cycles(n: int, n_greedy: int = 0) -> int:
        """Cycles of a run of ``n`` chunks of a token, less those of passes."""
        table = tuple(ChunkEntry(3, 1, i << 12) for i in range(n))
        tile = replace(sound, chunks=table, tokens=(1,) * n, n_greedy=n_greedy)
        address, before = bench.place(0, tile.encode(LINE)), bench.n_cycles
        await bench.ring(address)
        passed = 0
        while dut.irq.value == 0:
            await RisingEdge(dut.clk)
            passed += 1
        await bench.over()
        return passed - (bench.n_cycles - before)

    one, two = await cycles(1), await cycles(2)
    greedy = await cycles(1, 1), await cycles(1, 2)
    dut._log.info(f"one {one}, a chunk more {two - one}, a token more {greedy[1] - greedy[0]}")
    assert greedy[0] == one <= 137
    # two words of the table, a step of the check, a result
    assert two - one <= 13
    assert greedy[1] - greedy[0] <= 24

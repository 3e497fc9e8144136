"""cocotb bench of :class:`lutra_hw.control.registers.RegisterFile`."""

from dataclasses import asdict
from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from lutra_golden.arith.scale import Scale, pack_scale
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import QUEUE_DEPTH
from lutra_golden.control.failure import Failure
from lutra_golden.control.registers import (
    CONTEXT,
    CONTROL_ABORT,
    CONTROL_START,
    COUNTERS,
    IDENT,
    REGISTERS,
    STATUS_BUSY,
    STATUS_DONE,
    STATUS_DRAINING,
    STATUS_ERROR,
    STATUS_REFUSED,
    STATUS_SATURATED,
    TILE_ARRAYS,
    VERSION,
    ErrorCode,
    UnitState,
)
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.buffers import ArgmaxReadPort, ChunkReadPort, ScaleReadPort
from lutra_hw.control.failure import FAILURE_LAYOUT
from lutra_hw.control.registers import UNIT_STATE_LAYOUT, event_counts
from lutra_sim.bench.control.chunks import entry_fields
from lutra_sim.bench.ports import PortMemory
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import pack, reset, unpack

__all__ = [
    "arrays",
    "byte_strobes",
    "chunks",
    "counts",
    "ends",
    "identifies",
    "keeps",
    "locks",
    "refuses",
    "rings",
    "runs",
    "shares_its_bus",
]

CONFIG = bench_params(AcceleratorConfig)
WIDTHS = {
    name: register.width
    for name, register in REGISTERS.items()
    if register.access == "rw" and name not in TILE_ARRAYS
}
CHUNK_PORTS = ("load_chunks", "vector_chunks", "attention_chunks")
INPUTS = (
    "refusal",
    "expired",
    "done",
    "failure",
    "saturated",
    "unit_state",
    "events",
)
EVENTS = event_counts(CONFIG)
FAILURE = Failure(
    code=ErrorCode.BUS, purpose=4, response=3, instruction=0xF00D, address=0x98_7654_3210
)


class _Host:
    """The host's side: registers by name, and the answer of every access."""

    def __init__(self, dut: Any, p_stall: float = 0.0) -> None:
        bus = AxiLiteBus.from_prefix(dut, "s_axi", bus_separator="__")
        self._master: Any = AxiLiteMaster(bus, dut.clk, dut.rst)  # the package has no types
        rng = Random(1)
        write, read = self._master.write_if, self._master.read_if
        if p_stall:
            channels = (write.aw_channel, write.w_channel, write.b_channel)
            for channel in (*channels, read.ar_channel, read.r_channel):
                channel.set_pause_generator(iter(lambda: rng.random() < p_stall, None))
        for name in INPUTS:
            getattr(dut, name).value = 0
        self.argmax = PortMemory(ArgmaxReadPort(CONFIG))
        self.argmax.serve(dut, "argmax")
        self.scales = PortMemory(ScaleReadPort(CONFIG))
        self.scales.serve(dut, "scales")
        for name in ("tokens", *CHUNK_PORTS):
            getattr(dut, f"{name}__addr").value = 0
        for name in ("begin", "engaged", "keeps", "frozen", "refusal", "over"):
            getattr(dut, f"control__{name}").value = 0
        for name in ("write_en", "write_addr", "write_data", "write_strb", "read_en", "read_addr"):
            getattr(dut, f"control__bus__{name}").value = 0
        dut.idle.value = dut.checked.value = 1

    async def write(self, name: str, value: int, word: int = 0) -> AxiResp:
        address = REGISTERS[name].address + 4 * word
        return await self.write_bytes(address, value.to_bytes(4, "little"))

    async def write_bytes(self, address: int, content: bytes) -> AxiResp:
        return (await self._master.write(address, content)).resp

    async def read_word(self, address: int) -> tuple[int, AxiResp]:
        answer = await self._master.read(address, 4)
        return int.from_bytes(answer.data, "little"), answer.resp

    async def read(self, name: str, word: int = 0) -> int:
        value, answer = await self.read_word(REGISTERS[name].address + 4 * word)
        assert answer == AxiResp.OKAY, f"{name} answers {answer.name}"
        return value

    async def read_long(self, name: str, index: int = 0) -> int:
        low = await self.read(name, 2 * index)
        return low | await self.read(name, 2 * index + 1) << 32


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def identifies(dut: Any) -> None:
    """Identification registers, and the value of every register after reset."""
    host = _Host(dut)
    await reset(dut)
    assert await host.read("IDENT") == IDENT
    assert await host.read("VERSION") == VERSION
    assert await host.read_long("FINGERPRINT") == CONFIG.fingerprint
    for name in ("CONTROL", "STATUS", "ERROR", "IRQ_STATUS", "UNIT_STATE", *WIDTHS):
        assert await host.read(name) == 0
    assert [await host.read("COUNTER", i) for i in range(2 * len(COUNTERS))] == [0] * 24
    assert dut.irq.value == 0 and dut.start.value == 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.5])
async def keeps(dut: Any, p_stall: float) -> None:
    """Writable registers keep the bits they have, read them back and put them out."""
    rng, host = Random(cocotb.RANDOM_SEED), _Host(dut, p_stall)
    await reset(dut)
    for pattern in (lambda: 0xFFFFFFFF, lambda: rng.getrandbits(32), lambda: 0):
        written = {}
        for name in WIDTHS:
            words = [pattern() for _ in range(REGISTERS[name].count)]
            for index, word in enumerate(words):
                assert await host.write(name, word, index) == AxiResp.OKAY
            written[name] = sum(word << 32 * i for i, word in enumerate(words))
        for name, width in WIDTHS.items():
            kept = written[name] & ((1 << width) - 1)
            assert await host.read(name) == kept & 0xFFFFFFFF
            if REGISTERS[name].count == 2:
                assert await host.read_long(name) == kept
            if name == "WATCHDOG":
                assert int(dut.watchdog.value) == kept
            elif name != "IRQ_ENABLE":
                assert int(getattr(dut, f"context__{name.lower()}").value) == kept


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def byte_strobes(dut: Any) -> None:
    """Single bytes can be written, of registers and of arrays; each has the bits that it has."""
    host = _Host(dut)
    await reset(dut)
    places = [(name, word) for name in TILE_ARRAYS for word in (0, 1)]
    for name, word in (("WEIGHT_BASE", 0), ("LOGITS_STRIDE", 0), *places):
        await host.write(name, 0x11223344, word)
        kept = (1 << min(32, REGISTERS[name].width)) - 1
        address = REGISTERS[name].address + 4 * word
        for lane in range(4):
            await host.write_bytes(address + lane, bytes([0xA0 + lane]))
            expected = bytearray((0x11223344).to_bytes(4, "little"))
            expected[: lane + 1] = bytes(0xA0 + i for i in range(lane + 1))
            assert await host.read(name, word) == int.from_bytes(expected, "little") & kept
    # no byte of the control register that holds the start bit
    await host.write_bytes(REGISTERS["CONTROL"].address + 1, b"\x01")
    assert await host.read("STATUS") == 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def refuses(dut: Any) -> None:
    """Reads of unused addresses give zero and an error; so do writes to read-only registers."""
    host = _Host(dut)
    await reset(dut)
    limits = dict.fromkeys((*TILE_ARRAYS, "ARGMAX", "SCALE"), CONFIG.pass_tokens)
    known = {
        register.address + 4 * word: register.access
        for name, register in REGISTERS.items()
        for word in range(min(register.count, limits.get(name, register.count)))
    }
    for address in range(0, 0x800, 4):
        value, answer = await host.read_word(address)
        assert answer == (AxiResp.OKAY if address in known else AxiResp.SLVERR), hex(address)
        if address not in known:
            assert value == 0
        if known.get(address, "ro") == "ro":
            assert await host.write_bytes(address, b"\xff" * 4) == AxiResp.SLVERR, hex(address)
    assert await host.read_word(0xFFC) == (0, AxiResp.SLVERR)
    assert await host.read("IDENT") == IDENT


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def arrays(dut: Any) -> None:
    """Token ids for the units; arg-max, scales and unit states for the host."""
    rng, host = Random(cocotb.RANDOM_SEED), _Host(dut)
    await reset(dut)
    tokens = [rng.getrandbits(32) for _ in range(CONFIG.pass_tokens)]
    rows = [rng.getrandbits(32) for _ in range(CONFIG.pass_tokens)]
    scales = [(0x8000 + i, -512 + 73 * i % 1023) for i in range(CONFIG.pass_tokens - 1)] + [(0, 0)]
    states = [UnitState.WAIT_WEIGHTS, 0, 4, 2, 1]
    host.argmax.load(rows)
    host.scales.load([{"m": m, "e": e} for m, e in scales])
    dut.unit_state.value = pack(UNIT_STATE_LAYOUT, states)
    for index, token in enumerate(tokens):
        await host.write("TOKEN", token, index)
    for index in range(CONFIG.pass_tokens):
        assert await host.read("TOKEN", index) == tokens[index]
        assert await host.read("ARGMAX", index) == rows[index]
        expected = int(pack_scale(Scale(*map(np.array, scales[index]))))
        assert await host.read("SCALE", index) == expected
    assert await host.read("UNIT_STATE") == sum(s << 4 * i for i, s in enumerate(states))
    for index in [*range(CONFIG.pass_tokens), 0]:
        dut.tokens__addr.value = index
        await RisingEdge(dut.clk)
        await ReadOnly()
        assert int(dut.tokens__data.value) == tokens[index]
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def chunks(dut: Any) -> None:
    """Three units read the table of chunks, each where it is."""
    rng, host, layout = Random(cocotb.RANDOM_SEED), _Host(dut), ChunkReadPort(CONFIG).payload_layout
    await reset(dut)
    entries = [
        ChunkEntry(rng.getrandbits(16), rng.getrandbits(8), rng.getrandbits(28) << 12)
        for _ in range(CONFIG.pass_tokens)
    ]
    for index, entry in enumerate(entries):
        for name, word in zip(("CHUNK", "CHUNK_KV"), entry.words, strict=True):
            await host.write(name, word, index)
    for index in range(CONFIG.pass_tokens):
        found = [await host.read(name, index) for name in ("CHUNK", "CHUNK_KV")]
        assert tuple(found) == entries[index].words
    for first in range(CONFIG.pass_tokens):
        places = [(first + i) % CONFIG.pass_tokens for i in range(len(CHUNK_PORTS))]
        for name, place in zip(CHUNK_PORTS, places, strict=True):
            getattr(dut, f"{name}__addr").value = place
        await RisingEdge(dut.clk)
        await ReadOnly()
        for name, place in zip(CHUNK_PORTS, places, strict=True):
            data = int(getattr(dut, f"{name}__data").value)
            assert unpack(layout, data) == entry_fields(entries[place])
        await RisingEdge(dut.clk)


async def _pulse(dut: Any, name: str, value: int = 1) -> None:
    getattr(dut, name).value = value
    await RisingEdge(dut.clk)
    getattr(dut, name).value = 0


def _count_starts(dut: Any) -> list[int]:
    """Number of starts from now on, in a list of one."""
    starts = [0]

    async def count() -> None:
        while True:
            await RisingEdge(dut.clk)
            starts[0] += int(dut.start.value)

    cocotb.start_soon(count())
    return starts


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def runs(dut: Any) -> None:
    """Start, busy, done and the interrupt; the first error of a run is kept until the next."""
    host = _Host(dut)
    await reset(dut)
    starts = _count_starts(dut)
    # neither a start, nor an abort where nothing runs
    await host.write("CONTROL", 0xFFFFFFFE)
    assert await host.read("STATUS") == 0 and dut.clear.value == 0
    for number in range(1, 4):
        expected = STATUS_BUSY | STATUS_SATURATED
        await host.write("IRQ_ENABLE", number % 2)
        await host.write("CONTROL", CONTROL_START)
        assert starts == [number]
        assert await host.read("STATUS") == STATUS_BUSY
        if number == 2:
            await _pulse(dut, "saturated")
            assert await host.read("STATUS") == expected
        assert dut.irq.value == 0 and await host.read("IRQ_STATUS") == 0
        if number == 2:
            # the run has ended when memory owes nothing; until then the units are held
            dut.idle.value = 0
            dut.unit_state.value = 0x54321
            await RisingEdge(dut.clk)
            await _pulse(dut, "failure", pack(FAILURE_LAYOUT, asdict(FAILURE)))
            dut.unit_state.value = 0
            await _pulse(dut, "failure", ErrorCode.OPCODE)
            await _pulse(dut, "done")
            assert dut.clear.value == 1
            assert await host.read("STATUS") == expected | STATUS_ERROR | STATUS_DRAINING
            await host.write("CONTROL", CONTROL_ABORT)
            dut.idle.value = 1
        else:
            await _pulse(dut, "done")
        await ClockCycles(dut.clk, 2)
        assert dut.irq.value == number % 2 and dut.clear.value == 0
        bad = STATUS_ERROR | STATUS_SATURATED if number == 2 else 0
        assert await host.read("STATUS") == STATUS_DONE | bad
        failure = FAILURE if number == 2 else Failure()
        assert await host.read("ERROR") == failure.word
        assert await host.read_long("ERROR_ADDRESS") == failure.address
        assert await host.read("UNIT_STATE") == (0x54321 if number == 2 else 0)
        assert await host.read("IRQ_STATUS") == 1
        await host.write("IRQ_STATUS", 0)
        assert await host.read("IRQ_STATUS") == 1
        await host.write("IRQ_STATUS", 1)
        assert await host.read("IRQ_STATUS") == 0 and dut.irq.value == 0
    # nothing counts that comes after the end
    await _pulse(dut, "failure", ErrorCode.BUS)
    await _pulse(dut, "saturated")
    assert await host.read("STATUS") == STATUS_DONE and await host.read("ERROR") == 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def ends(dut: Any) -> None:
    """Runs that an abort ends, that are refused, and that wait for check or memory to begin."""
    host = _Host(dut)
    await reset(dut)
    starts = _count_starts(dut)

    async def ended(code: ErrorCode, instruction: int = 0, more: int = 0) -> None:
        assert await host.read("STATUS") == STATUS_DONE | STATUS_ERROR | more
        assert dut.running.value == 0
        assert await host.read("ERROR") == Failure(code=code, instruction=instruction).word
        assert await host.read("IRQ_STATUS") == 1
        await host.write("IRQ_STATUS", 1)

    dut.failure.value = pack(FAILURE_LAYOUT, asdict(Failure(instruction=17)))
    await host.write("CONTROL", CONTROL_START)
    await host.write("CONTROL", CONTROL_ABORT)
    await ended(ErrorCode.ABORT, 17)
    before = starts[0]
    dut.refusal.value = ErrorCode.CHUNK
    await host.write("CONTROL", CONTROL_START)
    assert dut.clear.value == 0
    await ended(ErrorCode.CHUNK)
    assert starts[0] == before
    dut.refusal.value = ErrorCode.NONE

    # a start waits for its check, and may be given up
    dut.checked.value = 0
    await host.write("CONTROL", CONTROL_START)
    await ClockCycles(dut.clk, 20)
    assert starts[0] == before and dut.running.value == 1
    assert await host.read("STATUS") == STATUS_BUSY
    await host.write("CONTROL", CONTROL_ABORT)
    await ended(ErrorCode.ABORT)
    dut.checked.value = 1

    # so does one after a reset, for the memory
    dut.idle.value = 0
    await reset(dut)
    await host.write("CONTROL", CONTROL_START)
    assert await host.read("STATUS") == STATUS_BUSY | STATUS_DRAINING
    assert dut.running.value == 1
    await host.write("CONTROL", CONTROL_ABORT)
    await ended(ErrorCode.ABORT, 0, STATUS_DRAINING)
    await host.write("CONTROL", CONTROL_START)
    await _pulse(dut, "expired")
    await ended(ErrorCode.WATCHDOG, 0, STATUS_DRAINING)
    await host.write("CONTROL", CONTROL_START)
    assert starts[0] == before and dut.clear.value == 1
    dut.idle.value = 1
    await ClockCycles(dut.clk, 3)
    assert starts[0] == before + 1 and await host.read("STATUS") == STATUS_BUSY

    # the watchdog ends a run, and its wait for a memory that never answers
    dut.failure.value = pack(FAILURE_LAYOUT, asdict(Failure(instruction=5)))
    dut.idle.value = 0
    await _pulse(dut, "expired")
    assert await host.read("STATUS") == STATUS_BUSY | STATUS_ERROR | STATUS_DRAINING
    await _pulse(dut, "expired")
    await ended(ErrorCode.WATCHDOG, 5, STATUS_DRAINING)
    dut.idle.value = 1
    await ClockCycles(dut.clk, 3)
    await host.write("CONTROL", CONTROL_START)
    await _pulse(dut, "done")
    assert await host.read("STATUS") == STATUS_DONE and await host.read("ERROR") == 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def locks(dut: Any) -> None:
    """Nothing that shapes a run changes during it, nor does a second start; both leave a mark."""
    host = _Host(dut)
    await reset(dut)
    starts = _count_starts(dut)
    places = [(name, word) for name in CONTEXT for word in range(REGISTERS[name].count)]
    places += [(name, word) for name in TILE_ARRAYS for word in range(CONFIG.pass_tokens)]
    for name, word in places:
        await host.write(name, 0x55555555, word)
    kept = [await host.read(name, word) for name, word in places]
    for name, word in (*places, ("CONTROL", 0)):
        await host.write("CONTROL", CONTROL_START)
        assert await host.read("STATUS") == STATUS_BUSY
        value = CONTROL_START if name == "CONTROL" else 0xAAAAAAAA
        assert await host.write(name, value, word) == AxiResp.OKAY
        assert await host.read("STATUS") == STATUS_BUSY | STATUS_REFUSED
        await host.write("IRQ_ENABLE", 1)
        assert await host.read("IRQ_ENABLE") == 1
        await _pulse(dut, "done")
        assert await host.read("STATUS") == STATUS_DONE | STATUS_REFUSED
    assert [await host.read(name, word) for name, word in places] == kept
    assert starts == [len(places) + 1]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def rings(dut: Any) -> None:
    """Doorbells wait in order; a run of a descriptor begins, is refused, or fails, and ends."""
    host, rng = _Host(dut), Random(cocotb.RANDOM_SEED)
    await reset(dut)
    bells = [rng.getrandbits(32) for _ in range(QUEUE_DEPTH + 2)]
    for n, bell in enumerate(bells[:QUEUE_DEPTH]):
        assert await host.read("PENDING") == n
        assert await host.write("DOORBELL", bell) == AxiResp.OKAY
        assert dut.control__ready.value == 1 and int(dut.control__bell.value) == bells[0]
    assert await host.read("STATUS") == STATUS_BUSY and dut.running.value == 1
    await host.write("DOORBELL", 7)
    assert await host.read("STATUS") == STATUS_BUSY | STATUS_REFUSED
    assert await host.read("PENDING") == QUEUE_DEPTH
    await _pulse(dut, "control__begin")
    dut.control__engaged.value = 1
    await host.write("DOORBELL", bells[QUEUE_DEPTH])
    assert await host.read("PENDING") == QUEUE_DEPTH + 1
    assert await host.read("STATUS") == STATUS_BUSY
    assert dut.control__busy.value == 1 and dut.control__ready.value == 0
    await host.write("CONTROL", CONTROL_START)
    assert await host.read("STATUS") == STATUS_BUSY | STATUS_REFUSED
    # neither the sequencer's end nor a refusal is that of the run
    await _pulse(dut, "done")
    await _pulse(dut, "control__refusal", ErrorCode.CHUNK)
    assert await host.read("STATUS") == STATUS_BUSY | STATUS_ERROR | STATUS_REFUSED
    assert await host.read("ERROR") == ErrorCode.CHUNK and dut.clear.value == 0
    dut.control__frozen.value = 1
    await ClockCycles(dut.clk, 2)
    cycles = await host.read("COUNTER")
    await ClockCycles(dut.clk, 20)
    assert await host.read("COUNTER") == cycles > 0
    dut.control__frozen.value = 0
    await _pulse(dut, "control__over")
    dut.control__engaged.value = 0
    await ClockCycles(dut.clk, 2)
    assert dut.control__busy.value == 0 and int(dut.control__bell.value) == bells[1]
    assert await host.read("IRQ_STATUS") == 1
    await host.write("IRQ_STATUS", 1)
    # what fails goes on after the clear, if it is to be reported
    for keeps in (1, 0):
        await _pulse(dut, "control__begin")
        dut.control__engaged.value, dut.control__keeps.value, dut.idle.value = 1, keeps, 0
        assert await host.read("ERROR") == 0
        await _pulse(dut, "failure", pack(FAILURE_LAYOUT, asdict(FAILURE)))
        await ClockCycles(dut.clk, 5)
        assert dut.clear.value == 1
        dut.idle.value = 1
        await ClockCycles(dut.clk, 3)
        assert dut.clear.value == 0 and dut.control__busy.value == keeps
        # the first failure stays
        await _pulse(dut, "failure", ErrorCode.OPCODE)
        dut.control__keeps.value = 0
        await ClockCycles(dut.clk, 3)
        assert await host.read("ERROR") == FAILURE.word
        assert dut.control__busy.value == 0 and await host.read("IRQ_STATUS") == 1
        dut.control__engaged.value = 0
    assert await host.read("PENDING") == QUEUE_DEPTH - 2
    await host.write("CONTROL", CONTROL_ABORT)
    assert await host.read("PENDING") == 0
    assert await host.read("STATUS") == STATUS_DONE | STATUS_ERROR
    assert await host.read("ERROR") == ErrorCode.ABORT


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.5])
async def shares_its_bus(dut: Any, p_stall: float) -> None:
    """Runs of descriptors read and write registers in any cycle, also in a run; so does the host,
    between them."""
    host, rng = _Host(dut, p_stall), Random(cocotb.RANDOM_SEED)
    await reset(dut)
    values = {"WEIGHT_BASE": 0, "LOGITS_STRIDE": 0, "N_TOKENS": 0}
    own = [("TOKEN", i) for i in range(CONFIG.pass_tokens)]
    argmax = [rng.getrandbits(32) for _ in range(CONFIG.pass_tokens)]
    host.argmax.load(argmax)
    written = dict[tuple[str, int], int]()
    n_reads = [0]

    async def inner() -> None:
        asked = list[int | None]([None, None])
        while True:
            await RisingEdge(dut.clk)
            kind = rng.choice(["none", "none", "read", "write"])
            dut.control__bus__write_en.value = int(kind == "write")
            dut.control__bus__read_en.value = int(kind == "read")
            index = rng.randrange(CONFIG.pass_tokens)
            if kind == "write":
                word = rng.getrandbits(32)
                written[own[index]] = word
                dut.control__bus__write_addr.value = REGISTERS["TOKEN"].address // 4 + index
                dut.control__bus__write_data.value = word
                dut.control__bus__write_strb.value = 15
            dut.control__bus__read_addr.value = REGISTERS["ARGMAX"].address // 4 + index
            await ReadOnly()
            asked.append(index if kind == "read" else None)
            due = asked.pop(0)
            if due is not None:
                assert int(dut.control__bus__read_data.value) == argmax[due]
                n_reads[0] += 1

    other = cocotb.start_soon(inner())
    for _ in range(20):
        for name in values:
            values[name] = rng.getrandbits(min(32, REGISTERS[name].width))
            assert await host.write(name, values[name]) == AxiResp.OKAY
        for name, value in values.items():
            assert await host.read(name) == value
    await host.write("CONTROL", CONTROL_START)
    await ClockCycles(dut.clk, 100)
    other.cancel()
    for name in ("write_en", "read_en"):
        getattr(dut, f"control__bus__{name}").value = 0
    await _pulse(dut, "done")
    for (name, index), word in written.items():
        assert await host.read(name, index) == word
    assert await host.read("STATUS") == STATUS_DONE
    assert n_reads[0] > 100 and len(written) == CONFIG.pass_tokens


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def counts(dut: Any) -> None:
    """Each counter counts its event, only while busy, and starts anew with a run."""
    rng, host = Random(cocotb.RANDOM_SEED), _Host(dut)
    await reset(dut)
    dut.events.value = (1 << EVENTS.size) - 1
    await ClockCycles(dut.clk, 10)
    for _ in range(2):
        expected = dict.fromkeys(COUNTERS, 0)
        dut.events.value = 0
        await host.write("CONTROL", CONTROL_START)
        while dut.start.value == 1:
            await RisingEdge(dut.clk)
        for _ in range(100):
            events = rng.getrandbits(EVENTS.size)
            dut.events.value = events
            await RisingEdge(dut.clk)
            for name, count in unpack(EVENTS, events).items():
                expected[name] += count
        dut.events.value = 0
        await _pulse(dut, "done")
        dut.events.value = (1 << EVENTS.size) - 1
        await ClockCycles(dut.clk, 5)
        counted = {name: await host.read_long("COUNTER", i) for i, name in enumerate(COUNTERS)}
        cycles = counted.pop("cycles")
        expected.pop("cycles")
        assert counted == expected
        assert 101 <= cycles <= 115

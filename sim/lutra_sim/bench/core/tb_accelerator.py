"""cocotb bench of :class:`lutra_hw.core.accelerator.Accelerator` against the golden interpreter."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, First, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from lutra_golden.arith.scale import Scale, pack_scale
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.failure import Failure
from lutra_golden.control.isa import FLAG_LOGITS, INSTRUCTION_BYTES, Opcode
from lutra_golden.control.registers import (
    CONTROL_ABORT,
    CONTROL_START,
    COUNTERS,
    REGISTERS,
    STATUS_DONE,
    STATUS_DRAINING,
    STATUS_ERROR,
    STATUS_SATURATED,
    ErrorCode,
    UnitState,
)
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import port_name
from lutra_hw.axi.signatures import RESP_SLVERR
from lutra_sim.bench.axi.memory import AxiReadMemory, AxiWriteMemory
from lutra_sim.bench.core.story import Story, StorySizes
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import reset

__all__ = [
    "AcceleratorBenchParams",
    "recovers",
    "refuses",
    "shares_passes",
    "tells_the_golden_story",
    "watches",
]


@dataclass(frozen=True, kw_only=True)
class AcceleratorBenchParams:
    """Configuration and the random model that runs on it."""

    config: AcceleratorConfig
    sizes: StorySizes


class _Bench:
    def __init__(self, dut: Any, params: AcceleratorBenchParams, p_stall: float, latency: int):
        self.dut, self.config = dut, params.config
        self.story = Story(params.config, params.sizes, Random(cocotb.RANDOM_SEED))
        self.memory = bytearray(self.story.bytes())
        bus = AxiLiteBus.from_prefix(dut, "s_axi", bus_separator="__")
        self._host = AxiLiteMaster(bus, dut.clk, dut.rst)
        common = {"latency": latency, "p_stall": p_stall}
        self.reads, self.writes = list[AxiReadMemory](), list[AxiWriteMemory]()
        for number, port in enumerate(self.config.ports):
            name, rng = port_name(number), Random(number)
            if port.reads:
                reorder = bool(p_stall) and len(port.reads) > 1
                self.reads.append(
                    AxiReadMemory(dut, name, self.memory, rng=rng, reorder=reorder, **common)
                )
            if port.writes:
                self.writes.append(AxiWriteMemory(dut, name, self.memory, rng=rng, **common))

    async def write(self, name: str, value: int, word: int = 0) -> None:
        await self._host.write_dword(REGISTERS[name].address + 4 * word, value)

    async def read(self, name: str, word: int = 0) -> int:
        return await self._host.read_dword(REGISTERS[name].address + 4 * word)

    async def set_up(self, n_cycles: int = 2, *, clock: bool = True) -> None:
        if clock:
            await reset(self.dut)
        else:
            self.dut.rst.value = 1
            await ClockCycles(self.dut.clk, n_cycles)
            self.dut.rst.value = 0
            await ClockCycles(self.dut.clk, 2)
        for name, value in self.story.registers.items():
            for word in range(REGISTERS[name].count):
                await self.write(name, value >> 32 * word & 0xFFFFFFFF, word)
        await self.write("IRQ_ENABLE", 1)

    def chunk(self, position: int = 0, n_tokens: int = 0, sequence: int = 0) -> ChunkEntry:
        return ChunkEntry(position, n_tokens, self.story.kv_bases[sequence])

    async def run(self, tokens: list[int], chunks: Sequence[ChunkEntry], logits_from: int) -> None:
        for index, token in enumerate(tokens):
            await self.write("TOKEN", token, index)
        for index, entry in enumerate(chunks):
            for name, word in zip(("CHUNK", "CHUNK_KV"), entry.words, strict=True):
                await self.write(name, word, index)
        await self.write("N_TOKENS", len(tokens))
        await self.write("LOGITS_FROM", logits_from)
        await self.write("CONTROL", CONTROL_START)
        if self.dut.irq.value != 1:
            await First(RisingEdge(self.dut.irq), ClockCycles(self.dut.clk, 100_000))
        if self.dut.irq.value != 1:
            states = await self.read("UNIT_STATE")
            names = [UnitState(states >> 4 * i & 15).name for i in range(5)]
            raise AssertionError(f"no end after 100000 cycles: units are {names}")
        await self.write("IRQ_STATUS", 1)

    async def check_token(self) -> None:
        """Run token 1 at position 0, which the golden device has run before."""
        await self.run([1], [self.chunk()], 0)
        assert await self.read("STATUS") & ~STATUS_SATURATED == STATUS_DONE
        difference = _difference(self.config, self.story, self.memory)
        assert not difference, difference
        assert await self.read("ARGMAX") == self.story.golden.argmax[0]

    async def failure(self) -> Failure:
        low, high = await self.read("ERROR_ADDRESS"), await self.read("ERROR_ADDRESS", 1)
        return Failure.of(await self.read("ERROR"), low | high << 32)

    async def counters(self) -> dict[str, int]:
        return {name: await self.read("COUNTER", 2 * i) for i, name in enumerate(COUNTERS)}

    async def check(
        self, tokens: list[int], chunks: Sequence[ChunkEntry], logits_from: int
    ) -> None:
        """Run a tile; memory, arg-max and scales are golden."""
        golden = self.story.golden
        self.story.run(tokens, chunks, logits_from)
        await self.run(tokens, chunks, logits_from)
        what = f"{len(tokens)} tokens, {chunks}"
        status = await self.read("STATUS")
        expected = STATUS_DONE | STATUS_SATURATED * golden.saturated
        assert status == expected, f"status is {status:#x} after {what}"
        difference = _difference(self.config, self.story, self.memory)
        assert not difference, f"{what}: {difference}"
        for t in range(logits_from, len(tokens)):
            assert await self.read("ARGMAX", t) == golden.argmax[t]
            expected = int(pack_scale(Scale(golden.scale.m[t], golden.scale.e[t])))
            assert await self.read("SCALE", t) == expected
        counters = await self.counters()
        self.dut._log.info(f"{what}: {counters}")
        fetched = sum(
            self.config.weight_image_bytes(each.args["n_words"])
            for each in golden.program()
            if each.opcode is Opcode.LMMA
            and (logits_from < len(tokens) or not each.flags & FLAG_LOGITS)
        )
        beat_bytes = self.config.weight_stripe.beat_bytes
        assert counters["weight_read_beats"] * beat_bytes == fetched


def _difference(config: AcceleratorConfig, story: Story, memory: bytearray) -> str:
    """First difference between the memories, with the name of the region."""
    golden = story.bytes()
    at = next((i for i, (a, b) in enumerate(zip(golden, memory, strict=True)) if a != b), None)
    if at is None:
        return ""
    count = sum(a != b for a, b in zip(golden, memory, strict=True))
    registers = story.registers | {"keys and values": story.kv_bases[0]}
    bases = ("LOGITS_BASE", "keys and values", "WEIGHT_BASE", "PROGRAM_BASE")
    name = next(name for name in bases if at >= registers[name])
    offset = at - registers[name]
    return f"{count} bytes differ, the first at {name} + {offset:#x}"


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize((("p_stall", "latency"), [(0.0, 2), (0.0, 40), (0.3, 10)]))
async def tells_the_golden_story(dut: Any, p_stall: float, latency: int) -> None:
    """Prefill, decode, and a chunk without logits: memory, arg-max and scales are golden."""
    params = bench_params(AcceleratorBenchParams)
    config, bench = params.config, _Bench(dut, params, p_stall, latency)
    rng = Random(cocotb.RANDOM_SEED)
    await bench.set_up()
    m, position = config.pass_tokens, 0
    tiles = [(m, m - 1), (1, 0), (1, 0), (m - 1, m - 1), (2, 0), (m, 1)]
    for n_tokens, logits_from in tiles:
        if position + n_tokens > config.max_context:
            break
        tokens = [rng.randrange(params.sizes.vocab) for _ in range(n_tokens)]
        await bench.check(tokens, [bench.chunk(position)], logits_from)
        position += n_tokens
    assert sum(slave.n_refused for slave in bench.reads) == 0
    assert sum(slave.n_waits for slave in bench.writes) == 0


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize((("p_stall", "latency"), [(0.0, 2), (0.3, 10)]))
async def shares_passes(dut: Any, p_stall: float, latency: int) -> None:
    """Tiles of several sequences, each at its own position: memory and results are golden."""
    params = bench_params(AcceleratorBenchParams)
    config, bench = params.config, _Bench(dut, params, p_stall, latency)
    rng, lengths = Random(cocotb.RANDOM_SEED), [0] * len(bench.story.kv_bases)
    await bench.set_up()
    for _ in range(5):
        chunks, left = list[ChunkEntry](), config.pass_tokens
        for sequence in rng.sample(range(len(lengths)), len(lengths)):
            n = rng.randint(1, max(1, left - 1))
            if left < n or lengths[sequence] + n > config.max_context:
                continue
            chunks.append(bench.chunk(lengths[sequence], n, sequence))
            lengths[sequence] += n
            left -= n
        tokens = [
            rng.randrange(params.sizes.vocab) for _ in range(sum(each.n_tokens for each in chunks))
        ]
        await bench.check(tokens, chunks, rng.randrange(len(tokens)))
    assert min(lengths) > 1


@cocotb.test(timeout_time=50, timeout_unit="ms")
@cocotb.parametrize((("p_stall", "latency"), [(0.0, 2), (0.3, 40)]))
async def recovers(dut: Any, p_stall: float, latency: int) -> None:
    """After bus errors, aborts and resets at random times the next run is right.

    The memory is not reset, answers what it owes, and answers errors with random data.
    """
    params, rng = bench_params(AcceleratorBenchParams), Random(cocotb.RANDOM_SEED)
    bench = _Bench(dut, params, p_stall, latency)
    story = bench.story
    await bench.set_up()
    story.run([1], [bench.chunk()], 0)
    await bench.check_token()
    cycles = (await bench.counters())["cycles"]
    failed = STATUS_DONE | STATUS_ERROR
    for slave in (*bench.reads, *bench.writes):
        asked = sorted({burst.address for burst in slave.bursts})
        for address in (*asked[:2], *rng.sample(asked, 3)):
            slave.errors = {address}
            await bench.run([1], [bench.chunk()], 0)
            assert await bench.read("STATUS") & ~STATUS_SATURATED == failed, hex(address)
            failure = await bench.failure()
            assert failure.code == ErrorCode.BUS and failure.response == RESP_SLVERR
            assert any(
                burst.address == failure.address
                and 0 <= address - burst.address < burst.beats * slave.n_bytes
                for burst in slave.bursts
            ), hex(failure.address)
            slave.errors = set()
        await bench.check_token()
    for number in range(8):
        await bench.write("CONTROL", CONTROL_START)
        await ClockCycles(dut.clk, rng.randrange(cycles // 2))
        if number % 2:
            await bench.write("CONTROL", CONTROL_ABORT)
            await ClockCycles(dut.clk, 40 * latency + 400)
            assert await bench.read("STATUS") & ~STATUS_SATURATED == failed
            assert (await bench.failure()).code == ErrorCode.ABORT
            await bench.write("IRQ_STATUS", 1)
        else:
            await bench.set_up(n_cycles=rng.choice((1, 4, 16)), clock=False)
        await bench.check_token()


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def refuses(dut: Any) -> None:
    """Registers that do not fit are an error, and no port is touched; no END is an error, too."""
    params = bench_params(AcceleratorBenchParams)
    bench = _Bench(dut, params, 0.0, 2)
    config, registers = params.config, bench.story.registers
    await bench.set_up()
    for name, value in (
        ("N_TOKENS", 0),
        ("N_TOKENS", config.pass_tokens + 1),
        ("N_TOKENS", 255),
        ("LOGITS_FROM", 2),
        ("CHUNK", config.max_context),
        ("WEIGHT_BASE", registers["WEIGHT_BASE"] + 4),
    ):
        await bench.write("CHUNK", 0)
        await bench.write("N_TOKENS", 1)
        await bench.write("LOGITS_FROM", 0)
        await bench.write(name, value)
        await bench.write("CONTROL", CONTROL_START)
        # one chunk is checked
        await ClockCycles(dut.clk, 8)
        assert await bench.read("STATUS") == STATUS_DONE | STATUS_ERROR
        assert await bench.failure() == Failure(code=ErrorCode[name])
        assert dut.irq.value == 1
        await bench.write("IRQ_STATUS", 1)
        await bench.write(name, registers.get(name, 0))
    assert not any(slave.bursts for slave in (*bench.reads, *bench.writes))
    await bench.write("N_TOKENS", 1)
    await bench.write("PROGRAM_BYTES", config.word_bytes)
    await bench.write("CONTROL", CONTROL_START)
    await ClockCycles(dut.clk, 100)
    assert await bench.read("STATUS") == STATUS_DONE | STATUS_ERROR
    n = config.word_bytes // INSTRUCTION_BYTES
    assert await bench.failure() == Failure(code=ErrorCode.NO_END, instruction=n)


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def watches(dut: Any) -> None:
    """A port that answers no more ends the run by the watchdog; the next one is right."""
    params, rng = bench_params(AcceleratorBenchParams), Random(cocotb.RANDOM_SEED)
    bench = _Bench(dut, params, 0.0, 2)
    await bench.set_up()
    bench.story.run([1], [bench.chunk()], 0)
    await bench.write("WATCHDOG", 1000)
    await bench.check_token()
    cycles = (await bench.counters())["cycles"]
    for slave in (*bench.reads, *bench.writes) * 2:
        await bench.write("CONTROL", CONTROL_START)
        await ClockCycles(dut.clk, rng.randrange(cycles // 4))
        slave.blocked = True
        if dut.irq.value != 1:
            await First(RisingEdge(dut.irq), ClockCycles(dut.clk, cycles + 4000))
        assert dut.irq.value == 1
        assert (await bench.failure()).code == ErrorCode.WATCHDOG
        assert await bench.read("UNIT_STATE")
        slave.blocked = False
        await bench.write("IRQ_STATUS", 1)
        await ClockCycles(dut.clk, 400)
        assert not await bench.read("STATUS") & STATUS_DRAINING
        await bench.check_token()

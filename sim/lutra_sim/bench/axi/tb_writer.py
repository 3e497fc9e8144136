"""cocotb bench of :class:`lutra_hw.axi.writer.DmaWriter`."""

from random import Random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotbext.axi import AxiRamWrite, AxiWriteBus

from lutra_hw.axi.signatures import RESP_SLVERR
from lutra_hw.ports import dma_command, dma_write_data
from lutra_sim.bench.axi.memory import AxiWriteMemory
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import StreamMonitor, StreamSource, pack, reset

__all__ = ["errors", "idle_covers_everything", "writes", "writes_to_cocotbext"]

PARAMS = bench_params(dict)
N_BYTES = PARAMS["data_width"] // 8
COMMAND = dma_command(PARAMS["addr_width"]).members["payload"].shape
DATA = dma_write_data(PARAMS["data_width"]).members["payload"].shape
SIZE = 1 << 18


class _Job:
    """Commands that do not overlap, their beats, and what the memory must hold afterwards."""

    def __init__(self, rng: Random, lengths: list[int]) -> None:
        self.memory = bytearray(rng.randbytes(SIZE))
        self.expected = bytearray(self.memory)
        self.commands, self.beats = list[int](), list[int]()
        self.n_bursts = 0
        address = 4096 - 3 * N_BYTES
        for length in lengths:
            self.commands.append(pack(COMMAND, {"addr": address, "beats": length}))
            first = address // N_BYTES % PARAMS["burst_beats"]
            self.n_bursts += -(-(first + length) // PARAMS["burst_beats"]) if length else 0
            for _ in range(length):
                content = rng.randbytes(N_BYTES)
                strobe = rng.choice([0, (1 << N_BYTES) - 1, rng.getrandbits(N_BYTES)])
                value = {"data": int.from_bytes(content, "little"), "strb": strobe}
                self.beats.append(pack(DATA, value))
                for index in range(N_BYTES):
                    if strobe >> index & 1:
                        self.expected[address + index] = content[index]
                address += N_BYTES
            address += rng.randrange(20) * N_BYTES


LENGTHS = [1, 2, 0, 16, 17, 3, 1, 1, 1, 100]


async def _idle(dut: Any, max_cycles: int) -> None:
    for _ in range(max_cycles):
        await RisingEdge(dut.clk)
        await ReadOnly()
        if dut.idle.value == 1:
            return
    raise AssertionError(f"not idle after {max_cycles} cycles")


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(p_memory=[0.0, 0.4], p_source=[0.0, 0.6], latency=[1, 25])
async def writes(dut: Any, p_memory: float, p_source: float, latency: int) -> None:
    """Every byte arrives where it belongs, and no burst breaks a rule or holds the bus."""
    rng = Random(cocotb.RANDOM_SEED)
    job = _Job(rng, LENGTHS + [rng.choice(LENGTHS) for _ in range(10)])
    memory = AxiWriteMemory(
        dut, "axi", job.memory, latency=latency, p_stall=p_memory, rng=Random(1)
    )
    commands = StreamSource(dut, "cmd", p_stall=p_source / 2, rng=Random(2))
    beats = StreamSource(dut, "data", p_stall=p_source, rng=Random(3))
    await reset(dut)

    beats.send_all(job.beats)
    commands.send_all(job.commands)
    await beats.drained()
    await commands.drained()
    await _idle(dut, 20 * PARAMS["fifo_depth"] * (latency + 10))
    assert job.memory == job.expected
    assert len(memory.bursts) == memory.answered == job.n_bursts
    assert memory.most_pending <= PARAMS["max_outstanding"]
    assert max(burst.beats for burst in memory.bursts) <= PARAMS["burst_beats"]
    assert memory.n_waits == 0
    assert dut.error.value == 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(latency=[1, 40])
async def sustains_one_beat_per_cycle(dut: Any, latency: int) -> None:
    """1000 beats in as many cycles, where the FIFO holds two bursts; latencies as stated."""
    job = _Job(Random(cocotb.RANDOM_SEED), [1000])
    memory = AxiWriteMemory(dut, "axi", job.memory, latency=latency)
    commands, beats = StreamSource(dut, "cmd"), StreamSource(dut, "data")
    accepted = StreamMonitor(dut, "data")
    await reset(dut)

    beats.send_all(job.beats)
    commands.send_all(job.commands)
    await beats.drained()
    await _idle(dut, 20 * PARAMS["fifo_depth"] * (latency + 10))
    assert job.memory == job.expected
    first = memory.bursts[0]
    assert first.cycle - accepted.cycles[first.beats - 1] == 2
    cycles = memory.beat_cycles[-1] - memory.beat_cycles[0] + 1
    dut._log.info(f"1000 beats in {cycles} cycles")
    enough = (PARAMS["max_outstanding"] - 1) * PARAMS["burst_beats"] >= latency + 2
    if enough and PARAMS["fifo_depth"] > 2 * PARAMS["burst_beats"]:
        assert cycles <= 1000 + PARAMS["burst_beats"]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def idle_covers_everything(dut: Any) -> None:
    """``idle`` falls with the first beat or command, and rises when the last answer has come."""
    job = _Job(Random(1), [2])
    memory = AxiWriteMemory(dut, "axi", job.memory, latency=10)
    commands, beats = StreamSource(dut, "cmd"), StreamSource(dut, "data")
    accepted = StreamMonitor(dut, "data")
    await reset(dut)

    await ClockCycles(dut.clk, 5)
    assert dut.idle.value == 1
    beats.send(job.beats[0])
    await accepted.wait_for(1)
    await RisingEdge(dut.clk)
    await ReadOnly()
    assert dut.idle.value == 0
    await ClockCycles(dut.clk, 20)
    assert dut.idle.value == 0
    commands.send_all(job.commands)
    await ClockCycles(dut.clk, 20)
    assert dut.idle.value == 0
    assert PARAMS["burst_beats"] == 1 or memory.bursts == []
    beats.send(job.beats[1])
    while memory.answered < job.n_bursts:
        assert dut.idle.value == 0
        await RisingEdge(dut.clk)
        await ReadOnly()
    await RisingEdge(dut.clk)
    await ReadOnly()
    assert dut.idle.value == 1
    assert job.memory == job.expected


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def errors(dut: Any) -> None:
    """Each burst with an error gives one cycle of ``error``, with its address."""
    job = _Job(Random(1), [1, 1, 1, 1])
    memory = AxiWriteMemory(dut, "axi", job.memory)
    commands, beats = StreamSource(dut, "cmd"), StreamSource(dut, "data")
    memory.errors = {4096 - 3 * N_BYTES}
    await reset(dut)

    beats.send_all(job.beats)
    commands.send_all(job.commands)
    found = list[tuple[int, int]]()
    for _ in range(100):
        await RisingEdge(dut.clk)
        if dut.error.value == 1:
            found.append((int(dut.address.value), int(dut.response.value)))
    assert found == [(address, RESP_SLVERR) for address in memory.errors]
    assert memory.answered == job.n_bursts


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def writes_to_cocotbext(dut: Any) -> None:
    """The same into a slave that others wrote, with pauses."""
    rng = Random(cocotb.RANDOM_SEED)
    job = _Job(rng, LENGTHS)
    bus = AxiWriteBus.from_prefix(dut, "axi", bus_separator="__")
    ram = AxiRamWrite(bus, dut.clk, dut.rst, size=SIZE)
    ram.write(0, bytes(job.memory))
    for channel in (ram.aw_channel, ram.w_channel, ram.b_channel):
        channel.set_pause_generator(iter(lambda: rng.random() < 0.3, None))
    commands, beats = StreamSource(dut, "cmd"), StreamSource(dut, "data")
    await reset(dut)

    beats.send_all(job.beats)
    commands.send_all(job.commands)
    await beats.drained()
    await commands.drained()
    await _idle(dut, 100 * PARAMS["fifo_depth"])
    assert ram.read(0, SIZE) == job.expected

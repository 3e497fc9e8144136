"""cocotb bench of :class:`lutra_hw.axi.reader.DmaReader`."""

from random import Random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiRamRead, AxiReadBus

from lutra_hw.axi.signatures import RESP_SLVERR
from lutra_hw.ports import dma_command
from lutra_sim.bench.axi.memory import AxiReadMemory
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import StreamMonitor, StreamSink, StreamSource, pack, reset

__all__ = ["clears", "errors", "reads", "reads_from_cocotbext", "sustains_one_beat_per_cycle"]

PARAMS = bench_params(dict)
N_BYTES = PARAMS["data_width"] // 8
COMMAND = dma_command(PARAMS["addr_width"]).members["payload"].shape
SIZE = 1 << 18


def _content(rng: Random) -> bytearray:
    return bytearray(rng.randbytes(SIZE))


def _commands(rng: Random) -> list[tuple[int, int]]:
    """Address and beats: short and long ones, and ones that meet 4 KB boundaries."""
    corners = [(0, 1), (N_BYTES, 2), (4096 - N_BYTES, 2), (4096 - 3 * N_BYTES, 16), (8192, 17)]
    corners += [(4096 - N_BYTES, 1), (0, 0), (4096, 4096 // N_BYTES), (5 * N_BYTES, 100)]
    lengths = [1, 2, 3, 7, 16, 17, 33]
    beats = [rng.choice(lengths) for _ in range(30)]
    return corners + [(rng.randrange(SIZE // N_BYTES - n) * N_BYTES, n) for n in beats]


def _expected(data: bytearray, commands: list[tuple[int, int]]) -> list[int]:
    return [
        int.from_bytes(data[address + i * N_BYTES :][:N_BYTES], "little")
        for address, beats in commands
        for i in range(beats)
    ]


def _pack(commands: list[tuple[int, int]]) -> list[int]:
    return [pack(COMMAND, {"addr": address, "beats": beats}) for address, beats in commands]


def _fewest_bursts(commands: list[tuple[int, int]]) -> int:
    limit = PARAMS["burst_beats"]
    first = [address // N_BYTES % limit for address, _ in commands]
    return sum(
        -(-(f + beats) // limit) for f, (_, beats) in zip(first, commands, strict=True) if beats
    )


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(p_memory=[0.0, 0.4], p_sink=[0.0, 0.6], latency=[1, 25])
async def reads(dut: Any, p_memory: float, p_sink: float, latency: int) -> None:
    """All beats of all commands arrive in order, and no burst breaks a rule."""
    rng = Random(cocotb.RANDOM_SEED)
    data, commands = _content(rng), _commands(rng)
    memory = AxiReadMemory(dut, "axi", data, latency=latency, p_stall=p_memory, rng=Random(1))
    source = StreamSource(dut, "cmd", p_stall=p_sink / 2, rng=Random(2))
    StreamSink(dut, "o", p_stall=p_sink, rng=Random(3))
    results = StreamMonitor(dut, "o")
    await reset(dut)

    expected = _expected(data, commands)
    source.send_all(_pack(commands))
    await results.wait_for(len(expected), max_cycles=40 * len(expected) + 1000)
    await ClockCycles(dut.clk, 2 * latency + 10)
    assert results.payloads == expected
    assert memory.n_refused == 0
    assert memory.most_pending <= PARAMS["max_outstanding"]
    assert max(burst.beats for burst in memory.bursts) <= PARAMS["burst_beats"]
    assert len(memory.bursts) == _fewest_bursts(commands)
    assert dut.error.value == 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def holds_what_nobody_takes(dut: Any) -> None:
    """With ``o`` blocked, no more is asked for than the FIFO holds; nothing is lost."""
    rng = Random(cocotb.RANDOM_SEED)
    data, n_beats = _content(rng), 3 * PARAMS["fifo_depth"]
    memory = AxiReadMemory(dut, "axi", data)
    source = StreamSource(dut, "cmd")
    dut.o__ready.value = 0
    results = StreamMonitor(dut, "o")
    await reset(dut)

    source.send_all(_pack([(0, n_beats)]))
    await ClockCycles(dut.clk, 2 * PARAMS["fifo_depth"] + 50)
    asked = sum(burst.beats for burst in memory.bursts)
    assert PARAMS["fifo_depth"] - PARAMS["burst_beats"] < asked <= PARAMS["fifo_depth"]
    assert memory.n_beats == asked and memory.n_refused == 0
    StreamSink(dut, "o")
    await results.wait_for(n_beats)
    assert results.payloads == _expected(data, [(0, n_beats)])


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(latency=[1, 40])
async def sustains_one_beat_per_cycle(dut: Any, latency: int) -> None:
    """Two commands, one right after the other: 1000 and 200 beats in as many cycles.

    The latencies that the component states are checked on the way.
    """
    rng = Random(cocotb.RANDOM_SEED)
    beat_limit = (SIZE - 4096) // N_BYTES
    first, second = min(1000, beat_limit), min(200, beat_limit)
    data, commands = _content(rng), [(N_BYTES * 3, first), (4096, second)]
    memory = AxiReadMemory(dut, "axi", data, latency=latency)
    source = StreamSource(dut, "cmd")
    StreamSink(dut, "o")
    accepted, results = StreamMonitor(dut, "cmd"), StreamMonitor(dut, "o")
    await reset(dut)

    source.send_all(_pack(commands))
    await results.wait_for(first + second)
    assert results.payloads == _expected(data, commands)
    assert memory.bursts[0].cycle - accepted.cycles[0] == 2
    assert results.cycles[0] - memory.first == 2
    in_flight = min(
        PARAMS["max_outstanding"] * PARAMS["burst_beats"],
        PARAMS["fifo_depth"] - PARAMS["burst_beats"],
    )
    cycles = results.cycles[-1] - results.cycles[0] + 1
    dut._log.info(f"{first + second} beats in {cycles} cycles")
    if in_flight >= latency + PARAMS["burst_beats"]:
        # the short first burst leaves the memory idle until the following one's latency is over
        assert cycles <= first + second + 2
        assert results.cycles[first - 1] - results.cycles[PARAMS["burst_beats"]] == (
            first - 1 - PARAMS["burst_beats"]
        )


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def next_command_starts_before_data_arrive(dut: Any) -> None:
    """Commands queue: both addresses are out before the first one's data come."""
    memory = AxiReadMemory(dut, "axi", _content(Random(1)), latency=60)
    source = StreamSource(dut, "cmd")
    StreamSink(dut, "o")
    results = StreamMonitor(dut, "o")
    await reset(dut)

    source.send_all(_pack([(0, 2), (8 * N_BYTES, 1)]))
    await results.wait_for(3)
    if PARAMS["max_outstanding"] > 1:
        assert memory.bursts[1].cycle - memory.bursts[0].cycle == 2


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def errors(dut: Any) -> None:
    """Each beat with an error gives one cycle of ``error``, with its burst's address.

    All beats are delivered.
    """
    data = _content(Random(1))
    memory = AxiReadMemory(dut, "axi", data, p_stall=0.3, rng=Random(2))
    memory.errors = {N_BYTES * i for i in (0, 5, 6, 9)}
    source = StreamSource(dut, "cmd")
    StreamSink(dut, "o")
    results = StreamMonitor(dut, "o")
    await reset(dut)

    source.send_all(_pack([(0, 10)]))
    found = list[tuple[int, int]]()
    for _ in range(200):
        await RisingEdge(dut.clk)
        if dut.error.value == 1:
            found.append((int(dut.address.value), int(dut.response.value)))
    starts = [burst.address for burst in memory.bursts]
    expected = [max(a for a in starts if a <= address) for address in sorted(memory.errors)]
    assert found == [(address, RESP_SLVERR) for address in expected]
    assert len(results.payloads) == 10
    for index, pair in enumerate(zip(results.payloads, _expected(data, [(0, 10)]), strict=True)):
        assert (pair[0] == pair[1]) != (N_BYTES * index in memory.errors)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def clears(dut: Any) -> None:
    """After a clear in mid-transfer only what is asked for then comes out."""
    rng = Random(cocotb.RANDOM_SEED)
    data = _content(rng)
    memory = AxiReadMemory(dut, "axi", data, latency=20, p_stall=0.3, rng=Random(1))
    source = StreamSource(dut, "cmd")
    dut.clear.value = 0
    StreamSink(dut, "o")
    results = StreamMonitor(dut, "o")
    await reset(dut)
    for number in range(40):
        source.send_all(_pack([(4096, 64)]))
        await ClockCycles(dut.clk, rng.randrange(1, 120))
        dut.clear.value = 1
        for _ in range(600):
            await RisingEdge(dut.clk)
            if dut.idle.value == 1:
                break
        owed = sum(burst.beats for burst in memory.bursts) - memory.n_beats
        assert owed == 0 and dut.axi__arvalid.value == 0
        # a command that nobody took before goes now
        await ClockCycles(dut.clk, 2)
        dut.clear.value = 0
        await ClockCycles(dut.clk, 400)
        results.payloads.clear()
        command = (128 * N_BYTES * (number % 8 + 1), 7)
        source.send_all(_pack([command]))
        await results.wait_for(7)
        assert results.payloads == _expected(data, [command])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reads_from_cocotbext(dut: Any) -> None:
    """The same from a slave that others wrote, with pauses."""
    rng = Random(cocotb.RANDOM_SEED)
    data, commands = _content(rng), _commands(rng)
    bus = AxiReadBus.from_prefix(dut, "axi", bus_separator="__")
    ram = AxiRamRead(bus, dut.clk, dut.rst, size=SIZE)
    ram.write(0, bytes(data))
    ram.ar_channel.set_pause_generator(iter(lambda: rng.random() < 0.3, None))
    ram.r_channel.set_pause_generator(iter(lambda: rng.random() < 0.3, None))
    source = StreamSource(dut, "cmd")
    StreamSink(dut, "o")
    results = StreamMonitor(dut, "o")
    await reset(dut)

    expected = _expected(data, commands)
    source.send_all(_pack(commands))
    await results.wait_for(len(expected))
    assert results.payloads == expected

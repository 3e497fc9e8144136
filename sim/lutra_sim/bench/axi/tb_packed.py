"""cocotb bench of :class:`lutra_hw.axi.packed.ReadPacked`."""

from random import Random
from typing import Any

import cocotb

from lutra_golden.axi.packed import PackedParams, words_of
from lutra_hw.ports import dma_command
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import StreamMonitor, StreamSink, StreamSource, pack, reset, unpack

__all__ = ["begins_anew_after_a_reset", "sustains_a_beat_per_cycle", "unpacks"]

PARAMS = bench_params(PackedParams)
COMMAND = dma_command().members["payload"].shape
PERIOD = PARAMS.period_words
LENGTHS = [1, 2, 0, PERIOD, 1, 1, 0, PERIOD + 1, 3, 2 * PERIOD - 1, 0, 0, 5]


class _Bench:
    def __init__(self, dut: Any, p_stall: float, p_sink: float) -> None:
        self.rng = rng = Random(cocotb.RANDOM_SEED)
        stall = {"p_stall": p_stall, "rng": rng}
        self.cmd, self.i = StreamSource(dut, "cmd", **stall), StreamSource(dut, "i", **stall)
        StreamSink(dut, "o_cmd", p_stall=p_sink, rng=rng)
        StreamSink(dut, "o", p_stall=p_sink, rng=rng)
        self.o_cmd, self.o = StreamMonitor(dut, "o_cmd"), StreamMonitor(dut, "o")
        self.beats = StreamMonitor(dut, "i")

    async def run(self, lengths: list[int]) -> None:
        """Send commands and the beats for them, and compare what comes out."""
        size = PARAMS.beat_bytes
        commands = [{"addr": size * self.rng.randrange(1 << 16), "beats": n} for n in lengths]
        n_beats = sum(map(PARAMS.beats, lengths))
        beats = [self.rng.getrandbits(8 * size) for _ in range(n_beats)]
        expected = list(words_of(PARAMS, lengths, beats))
        self.cmd.send_all(pack(COMMAND, each) for each in commands)
        self.i.send_all(beats)
        await self.o.wait_for(len(expected), max_cycles=200 * len(expected) + 1000)
        await self.o_cmd.wait_for(len(commands))
        await self.i.drained()
        assert self.o.payloads == expected
        found = [unpack(COMMAND, payload) for payload in self.o_cmd.payloads]
        assert found == [each | {"beats": PARAMS.beats(each["beats"])} for each in commands]


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.5], p_sink=[0.0, 0.5])
async def unpacks(dut: Any, p_stall: float, p_sink: float) -> None:
    """Commands and words come out as in the model, with stalls on either side."""
    rng = Random(cocotb.RANDOM_SEED)
    bench = _Bench(dut, p_stall, p_sink)
    await reset(dut)
    await bench.run(LENGTHS + [rng.choice(LENGTHS) for _ in range(20)])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def begins_anew_after_a_reset(dut: Any) -> None:
    """In the midst of a transfer, of which nothing is left."""
    bench = _Bench(dut, 0.0, 0.0)
    await reset(dut)
    bench.cmd.send(pack(COMMAND, {"addr": 0, "beats": 3 * PERIOD}))
    bench.i.send_all(range(PARAMS.beats(PERIOD + 1)))
    await bench.o.wait_for(PERIOD)
    await bench.i.drained()
    await reset(dut)
    for monitor in (bench.o, bench.o_cmd):
        monitor.payloads.clear()
    await bench.run([2, PERIOD + 1])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def sustains_a_beat_per_cycle(dut: Any) -> None:
    """Over the ends of commands, too, whether or not they end with a beat."""
    bench = _Bench(dut, 0.0, 0.0)
    await reset(dut)
    await bench.run([PERIOD, PERIOD + 1, 2 * PERIOD, 3 * PERIOD - 1] * 3)
    cycles = bench.beats.cycles
    assert cycles[-1] - cycles[0] + 1 == len(cycles)

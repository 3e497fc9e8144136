"""cocotb bench of :class:`lutra_hw.axi.stripe.Stripe`."""

from random import Random
from typing import Any

import cocotb
import numpy as np

from lutra_golden.axi.stripe import StripeParams, joined, lanes_of
from lutra_golden.axi.width import Transfer
from lutra_hw.ports import dma_command
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import (
    StreamMonitor,
    StreamSink,
    StreamSource,
    pack,
    reset,
    unpack,
)

__all__ = ["a_lane_that_is_late_holds_no_other", "joins", "sustains_a_beat_per_cycle"]

PARAMS = bench_params(StripeParams)
LANES = range(PARAMS.n_lanes)
COMMAND = dma_command().members["payload"].shape
LENGTHS = [1, 2, 0, 5, 1, 1, 0, 17, 3, 1, 1, 4]


class _Bench:
    """A stripe, the lanes that it reads, and stalls of everything that is beside it.

    ``p_lanes`` are those of the lanes, one each.
    """

    def __init__(self, dut: Any, p_stall: float, p_sink: float, p_lanes: list[float]) -> None:
        self.rng = rng = Random(cocotb.RANDOM_SEED)
        self.cmd = StreamSource(dut, "cmd", p_stall=p_stall, rng=rng)
        self.i = [
            StreamSource(dut, f"i__{lane}", p_stall=p, rng=rng) for lane, p in enumerate(p_lanes)
        ]
        for lane in LANES:
            StreamSink(dut, f"o_cmd__{lane}", p_stall=p_sink, rng=rng)
        StreamSink(dut, "o", p_stall=p_sink, rng=rng)
        self.o_cmd = [StreamMonitor(dut, f"o_cmd__{lane}") for lane in LANES]
        self.o, self.taken = StreamMonitor(dut, "o"), StreamMonitor(dut, "cmd")

    async def run(self, lengths: list[int]) -> None:
        """Send commands and all beats for them, and wait for what comes out."""
        size = PARAMS.beat_bytes
        self.commands = [Transfer(size * self.rng.randrange(1 << 16), n) for n in lengths]
        memory = [
            np.frombuffer(self.rng.randbytes(each.count * PARAMS.whole_bytes), np.uint8)
            for each in self.commands
        ]
        self.expected = [
            int.from_bytes(beat.tobytes(), "little")
            for part in memory
            for beat in joined(PARAMS, part).reshape(-1, PARAMS.whole_bytes)
        ]
        for part in memory:
            beats = part.reshape(PARAMS.n_lanes, -1, size)
            for source, lane in zip(self.i, beats, strict=True):
                source.send_all(int.from_bytes(beat.tobytes(), "little") for beat in lane)
        self.cmd.send_all(
            pack(COMMAND, {"addr": each.addr, "beats": each.count}) for each in self.commands
        )
        most = 100 * PARAMS.n_lanes * len(self.expected) + 1000
        await self.o.wait_for(len(self.expected), max_cycles=most)
        await self.o_cmd[-1].wait_for(len(self.commands))

    def check(self) -> None:
        """Compare what came out with the model."""
        for lane, monitor in enumerate(self.o_cmd):
            found = [unpack(COMMAND, payload) for payload in monitor.payloads]
            expected = [lanes_of(PARAMS, each)[lane] for each in self.commands]
            assert [Transfer(each["addr"], each["beats"]) for each in found] == expected
        assert self.o.payloads == self.expected


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.5], p_sink=[0.0, 0.5])
async def joins(dut: Any, p_stall: float, p_sink: float) -> None:
    """Commands and beats come out as in the model, with stalls on either side."""
    rng = Random(cocotb.RANDOM_SEED)
    bench = _Bench(dut, p_stall, p_sink, [p_stall] * PARAMS.n_lanes)
    await reset(dut)
    await bench.run(LENGTHS + [rng.choice(LENGTHS) for _ in range(20)])
    bench.check()


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(late=[0, PARAMS.n_lanes - 1])
async def a_lane_that_is_late_holds_no_other(dut: Any, late: int) -> None:
    """Commands of all lanes are given, whichever lane has no beats yet."""
    bench = _Bench(dut, 0.0, 0.0, [0.9 if lane == late else 0.0 for lane in LANES])
    await reset(dut)
    await bench.run([8] * 6)
    bench.check()
    last = max(monitor.cycles[-1] for monitor in bench.o_cmd)
    assert last < bench.o.cycles[-1]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def sustains_a_beat_per_cycle(dut: Any) -> None:
    """A beat leaves in every cycle; a command reaches lane after lane, a cycle each."""
    bench = _Bench(dut, 0.0, 0.0, [0.0] * PARAMS.n_lanes)
    await reset(dut)
    await bench.run([4 * PARAMS.n_lanes] * 6)
    bench.check()
    assert bench.o.cycles[-1] - bench.o.cycles[0] + 1 == len(bench.expected)
    for lane, monitor in enumerate(bench.o_cmd):
        first = [cycle + 1 - PARAMS.n_lanes for cycle in bench.taken.cycles]
        assert monitor.cycles == [cycle + lane for cycle in first]

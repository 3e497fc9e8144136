"""cocotb bench of the component in ``test_simulate.py``."""

from random import Random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles
from test_simulate import IncrementParams

from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import (
    StreamMonitor,
    StreamSink,
    StreamSource,
    pack,
    reset,
    unpack,
)

PARAMS = bench_params(IncrementParams)


@cocotb.test(timeout_time=100, timeout_unit="us")
@cocotb.parametrize(p_stall_i=[0.0, 0.5], p_stall_o=[0.0, 0.5], wait_for_valid=[False, True])
async def adds(dut: Any, p_stall_i: float, p_stall_o: float, wait_for_valid: bool) -> None:
    """Sums arrive complete and in order."""
    source = StreamSource(dut, "i", p_stall=p_stall_i, rng=Random(1))
    StreamSink(dut, "o", p_stall=p_stall_o, rng=Random(2), wait_for_valid=wait_for_valid)
    accepted, results = StreamMonitor(dut, "i"), StreamMonitor(dut, "o")
    await reset(dut)

    terms = [(a, b) for a in (-8, -1, 0, 7) for b in (-8, 0, 7)]
    source.send_all(pack(PARAMS.i_layout, {"a": a, "b": [b, 1]}) for a, b in terms)
    await results.wait_for(len(terms), max_cycles=500)
    await ClockCycles(dut.clk, 10)

    sums = [unpack(PARAMS.o_shape, bits) for bits in results.payloads]
    assert sums == [a + b + 1 + PARAMS.increment for a, b in terms]
    if not (p_stall_i or p_stall_o or wait_for_valid):
        latencies = {o - i for i, o in zip(accepted.cycles, results.cycles, strict=True)}
        assert latencies == {1}
        assert results.cycles[-1] - results.cycles[0] == len(terms) - 1

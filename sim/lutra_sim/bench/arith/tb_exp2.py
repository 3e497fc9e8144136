"""cocotb bench of several :class:`lutra_hw.arith.exp2.Exp2Neg` side by side."""

from random import Random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from lutra_golden.arith.exp2 import Exp2Params, exp2_neg
from lutra_hw.arith.exp2 import Exp2Neg
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import reset

__all__ = ["follows_golden"]

PARAMS = bench_params(Exp2Params)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def follows_golden(dut: Any) -> None:
    """Every argument below 16, where the result is not zero, and a sample of the rest."""
    rng = Random(cocotb.RANDOM_SEED)
    limit = 1 << PARAMS.d_width
    arguments = [*range(16 << PARAMS.d_frac), limit - 1, 31 << PARAMS.d_frac, 32 << PARAMS.d_frac]
    arguments += [1 << bit for bit in range(PARAMS.d_width)]
    arguments += [rng.randrange(limit) for _ in range(500)]
    lanes = len(dut.d) // PARAMS.d_width
    arguments += [0] * (-len(arguments) % lanes)
    dut.d.value = 0
    await reset(dut)

    results: list[int] = []
    for first in range(0, len(arguments) + lanes * Exp2Neg.latency, lanes):
        await RisingEdge(dut.clk)
        dut.d.value = sum(
            d << PARAMS.d_width * lane for lane, d in enumerate(arguments[first : first + lanes])
        )
        await ReadOnly()
        y = dut.y.value.to_unsigned()
        results += [y >> PARAMS.y_width * lane & (1 << PARAMS.y_width) - 1 for lane in range(lanes)]

    assert results[lanes * Exp2Neg.latency :] == exp2_neg(arguments, PARAMS).tolist()

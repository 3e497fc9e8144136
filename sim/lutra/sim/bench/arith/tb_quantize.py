"""cocotb bench of :class:`lutra.hw.arith.quantize.Quantizer`."""

from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge

from lutra.hw.arith.quantize import Quantizer
from lutra.hw.ports import SCALE_LAYOUT
from lutra.sim.bench.simulate import bench_params
from lutra.sim.bench.stream import pack, reset, unpack
from lutra.sim.golden.arith.quantize import quantize_factor, quantize_int8
from lutra.sim.golden.arith.scale import Scale

__all__ = ["QuantizerSize", "follows_golden"]


@dataclass(frozen=True, kw_only=True)
class QuantizerSize:
    """Arguments of the quantiser."""

    lanes: int
    y_width: int


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def follows_golden(dut: Any) -> None:
    """A vector per cycle, each with the factor of its own maximum."""
    size = bench_params(QuantizerSize)
    ports = Quantizer(size.lanes, size.y_width).signature.members
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    limit = 1 << (size.y_width - 1)
    # maxima: zero, one, powers of two with their neighbours, random of every magnitude
    powers = 1 << np.arange(size.y_width - 1)
    maxima = np.concatenate(
        [
            [0, 1, limit - 1, limit],
            powers,
            powers - 1,
            rng.integers(0, limit, 1500) >> rng.integers(0, size.y_width - 1, 1500),
        ]
    )
    shape = (len(maxima), size.lanes)
    y = rng.integers(-maxima[:, None], maxima[:, None] + 1, shape)
    # the maximum itself, with either sign, and what lies on a tie or next to it
    ties = (2 * rng.integers(-127, 127, shape) + 1) * maxima[:, None] // 254
    kind = rng.integers(0, 5, shape)
    y = np.where(kind == 1, maxima[:, None], np.where(kind == 2, -maxima[:, None], y))
    y = np.where(kind == 3, ties, y)
    y = np.clip(y, -limit, limit - 1)
    factor = quantize_factor(maxima)
    expected = quantize_int8(y, Scale(factor.m[:, None], factor.e[:, None]))
    dut.y.value = dut.factor.value = 0
    await reset(dut)

    results = []
    for k in range(len(maxima) + Quantizer.latency):
        await RisingEdge(dut.clk)
        if k < len(maxima):
            dut.y.value = pack(ports["y"].shape, y[k])
            dut.factor.value = pack(SCALE_LAYOUT, {"m": factor.m[k], "e": factor.e[k]})
        await ReadOnly()
        results.append(unpack(ports["q"].shape, dut.q.value.to_unsigned()))
    assert results[Quantizer.latency :] == expected.tolist()

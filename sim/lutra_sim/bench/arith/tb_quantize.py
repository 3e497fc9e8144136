"""cocotb bench of :class:`lutra_hw.arith.quantize.Quantizer`."""

from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge

from lutra_golden.arith.fixed import Int
from lutra_golden.arith.quantize import q_max_of, quantize, quantize_factor
from lutra_golden.arith.scale import Scale
from lutra_hw.arith.quantize import Quantizer
from lutra_hw.ports import SCALE_LAYOUT
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import pack, reset, unpack

__all__ = ["QuantizerSize", "follows_golden", "largest_products"]


@dataclass(frozen=True, kw_only=True)
class QuantizerSize:
    """Arguments of the quantiser."""

    lanes: int
    y_width: int
    q_width: int = 8


def largest_products(y_width: int, q_max: int) -> Int:
    """Maxima of the most bits whose products with their factors pass ``q_max`` the farthest."""
    rest = y_width - 17
    if rest < 1:
        return np.zeros(0, np.int64)
    maxima = (np.arange(1 << 15, 1 << 16) << rest) + (1 << (rest - 1)) - 1
    factor = quantize_factor(maxima, q_max)
    return maxima[np.argsort(maxima * factor.m * 2.0**factor.e)[-40:]]


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def follows_golden(dut: Any) -> None:
    """A vector per cycle, each with the factor of its own maximum."""
    size = bench_params(QuantizerSize)
    ports = Quantizer(size.lanes, size.y_width, size.q_width).signature.members
    q_max = q_max_of(size.q_width)
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    limit = 1 << (size.y_width - 1)
    # maxima: zero, one, powers of two with their neighbours, random of every magnitude
    powers = 1 << np.arange(size.y_width - 1)
    maxima = np.concatenate(
        [
            [0, 1, limit - 1, limit],
            powers,
            powers - 1,
            largest_products(size.y_width, q_max),
            rng.integers(0, limit, 1500) >> rng.integers(0, size.y_width - 1, 1500),
        ]
    )
    shape = (len(maxima), size.lanes)
    y = rng.integers(-maxima[:, None], maxima[:, None] + 1, shape)
    # the maximum itself, with either sign, and what lies on a tie or next to it
    ties = (2 * rng.integers(-q_max, q_max, shape) + 1) * maxima[:, None] // (2 * q_max)
    kind = rng.integers(0, 5, shape)
    y = np.where(kind == 1, maxima[:, None], np.where(kind == 2, -maxima[:, None], y))
    y = np.where(kind == 3, ties, y)
    y = np.clip(y, -limit, limit - 1)
    factor = quantize_factor(maxima, q_max)
    expected = quantize(y, Scale(factor.m[:, None], factor.e[:, None]), q_max)
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

"""cocotb bench of :class:`lutra_hw.arith.silu.Silu`."""

from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge

from lutra_golden.arith.silu import SILU, silu
from lutra_hw.arith.silu import Silu
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import pack, reset, unpack

__all__ = ["SiluSize", "follows_golden"]

ONE = 1 << SILU.x_frac


@dataclass(frozen=True, kw_only=True)
class SiluSize:
    """Arguments of the unit."""

    lanes: int


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def follows_golden(dut: Any) -> None:
    """Both ends of every segment and their neighbours, the ends of the range, random ones."""
    size = bench_params(SiluSize)
    component = Silu(size.lanes)
    ports = component.signature.members
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    end = 1 << (SILU.x_width - 1)
    knots = np.concatenate(
        [
            np.arange(0, ONE << SILU.split_bits, ONE >> SILU.fine_bits),
            np.arange(0, ONE << SILU.limit_bits, ONE >> SILU.coarse_bits),
            1 << np.arange(SILU.x_width - 1),
            [ONE << SILU.limit_bits, end],
        ]
    )
    u = (knots[:, None] + np.arange(-2, 3)).ravel()
    x = np.concatenate(
        [u, -u, rng.integers(-end, end, 3000) >> rng.integers(0, SILU.x_width - 1, 3000)]
    )
    x = rng.permutation(np.clip(x, -end, end - 1))
    vectors = np.pad(x, (0, -len(x) % size.lanes)).reshape(-1, size.lanes)
    dut.i.value = 0
    await reset(dut)

    results = []
    for k in range(len(vectors) + component.latency):
        await RisingEdge(dut.clk)
        if k < len(vectors):
            dut.i.value = pack(ports["i"].shape, vectors[k].tolist())
        await ReadOnly()
        results.append(unpack(ports["o"].shape, dut.o.value.to_unsigned()))
    assert results[component.latency :] == silu(vectors).tolist()

"""cocotb bench of :class:`lutra_hw.arith.scale.ScaleMul`."""

from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge

from lutra_golden.arith.scale import Scale, scale_mul
from lutra_hw.arith.scale import ScaleMul
from lutra_hw.ports import SCALE_LAYOUT
from lutra_sim.bench.stream import pack, reset

__all__ = ["follows_golden"]


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def follows_golden(dut: Any) -> None:
    """A product per cycle, with and without pauses; corners, then random scales."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    corners = [0, 1 << 15, (1 << 15) + 1, 0xB504, 0xB505, 0xFFFE, 0xFFFF]
    m = np.array([(a, b) for a in corners for b in corners])
    m = np.concatenate([m, rng.integers(1 << 15, 1 << 16, (3000, 2))]).astype(np.int64)
    e = np.where(m == 0, 0, rng.integers(-240, 240, m.shape))
    a, b = (Scale(m[:, side], e[:, side]) for side in (0, 1))
    expected = [pack(SCALE_LAYOUT, {"m": x, "e": y}) for x, y in zip(*scale_mul(a, b), strict=True)]
    dut.valid.value = 0
    await reset(dut)

    sent: list[int] = []
    results: list[tuple[int, int]] = []
    last = len(m) + 1000 + ScaleMul.latency
    todo = iter(range(len(m)))
    for cycle in range(last):
        await RisingEdge(dut.clk)
        pause = cycle > len(m) // 2 and rng.random() < 0.3
        k = None if pause else next(todo, None)
        dut.valid.value = int(k is not None)
        if k is not None:
            sent.append(cycle)
            dut.a.value = pack(SCALE_LAYOUT, {"m": a.m[k], "e": a.e[k]})
            dut.b.value = pack(SCALE_LAYOUT, {"m": b.m[k], "e": b.e[k]})
        await ReadOnly()
        if dut.o_valid.value == 1:
            results.append((cycle, dut.o.value.to_unsigned()))

    assert len(sent) == len(m)
    assert results == [(c + ScaleMul.latency, x) for c, x in zip(sent, expected, strict=True)]

"""ScaleUnit and ScaleMul against the golden model."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from amaranth import Module, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.arith.scale import Scale, scale_mul
from lutra_golden.timing.arith import SCALE_LATENCY
from lutra_hw.arith.scale import ScaleMul, ScaleOp, ScaleUnit
from lutra_sim.bench.simulate import run_cocotb, simulate, stream_get, stream_put


class ScaleUnits(wiring.Component):
    """Units that take the same operation and exponent and each its own mantissa."""

    n_units = 4

    valid: In(1)
    op: In(ScaleOp)
    e: In(signed(10))
    m: In(data.ArrayLayout(unsigned(16), n_units))
    o_valid: Out(1)
    o_m: Out(data.ArrayLayout(unsigned(16), n_units))
    o_e: Out(data.ArrayLayout(signed(16), n_units))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        for k in range(self.n_units):
            m.submodules[f"unit_{k}"] = unit = ScaleUnit()
            m.d.comb += [
                unit.i.valid.eq(self.valid),
                unit.i.payload.op.eq(self.op),
                unit.i.payload.a.m.eq(self.m[k]),
                unit.i.payload.a.e.eq(self.e),
                unit.o.ready.eq(1),
                self.o_m[k].eq(unit.o.payload.m),
                self.o_e[k].eq(unit.o.payload.e),
                self.o_valid.eq(unit.o.valid),
            ]
        return m


def test_latency() -> None:
    dut = ScaleUnit()
    one = {"m": 1 << 15, "e": -15}
    cycles = {}

    async def bench(ctx: Any) -> None:
        for op in ScaleOp:
            command = {"op": op, "x": 3, "e": 0, "a": one, "b": one}
            await stream_put(ctx, dut.i, command)
            cycles[op] = 1
            while not ctx.get(dut.o.valid):
                await ctx.tick()
                cycles[op] += 1
            result = await stream_get(ctx, dut.o, stall=2)
            assert result.m == (0xC000 if op == ScaleOp.FROM_INT else 1 << 15)
            assert not ctx.get(dut.o.valid)

    simulate(dut, bench)
    assert {op.name: count for op, count in cycles.items()} == SCALE_LATENCY


def test_product_per_cycle() -> None:
    rng = Random(1)
    dut = ScaleMul()
    operands = [(0, 5), (0xFFFF, 0xFFFF), (1 << 15, 1 << 15), (0xB505, 0xB505), (0xFFFF, 1 << 15)]
    operands += [(0x8002, 0xFFFC)]  # rounds up to a power of two
    operands += [
        (rng.randrange(1 << 15, 1 << 16), rng.randrange(1 << 15, 1 << 16)) for _ in range(50)
    ]
    results = []

    async def bench(ctx: Any) -> None:
        for k in range(len(operands) + dut.latency):
            ctx.set(dut.valid, k < len(operands))
            a, b = operands[k % len(operands)]
            ctx.set(dut.a, {"m": a, "e": 0 if a == 0 else k})
            ctx.set(dut.b, {"m": b, "e": -40})
            assert ctx.get(dut.o_valid) == (k >= dut.latency)
            results.append((ctx.get(dut.o.m), ctx.get(dut.o.e)))
            await ctx.tick()

    simulate(dut, bench)
    for k, (a, b) in enumerate(operands):
        exponent = np.array(0 if a == 0 else k)
        expected = scale_mul(Scale(np.array(a), exponent), Scale(np.array(b), np.array(-40)))
        assert results[k + dut.latency] == (expected.m, expected.e)


@pytest.mark.cocotb
def test_every_operation(tmp_path: Path) -> None:
    run_cocotb(ScaleUnit(), "lutra_sim.bench.arith.tb_scale", tmp_path)


@pytest.mark.cocotb
def test_every_mantissa(tmp_path: Path) -> None:
    run_cocotb(ScaleUnits(), "lutra_sim.bench.arith.tb_scale_sweep", tmp_path)


@pytest.mark.cocotb
def test_products(tmp_path: Path) -> None:
    run_cocotb(ScaleMul(), "lutra_sim.bench.arith.tb_scale_mul", tmp_path)

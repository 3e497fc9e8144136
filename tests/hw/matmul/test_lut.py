"""The lut engine's tables and lookups against the golden model."""

import dataclasses
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.matmul.lut import LutParams, Tables, lut_table
from lutra_golden.matmul.mac import MacParams
from lutra_hw.matmul.lut import LutDatapath, TablePrecompute, TableWriter
from lutra_sim.bench.matmul.dot import DotShape
from lutra_sim.bench.simulate import run_cocotb, simulate

SHAPES = {
    "paper": LutParams(step_tokens=2, step_rows=64, step_depth=4, depth_tile=16),
    "one_step": LutParams(step_rows=8, step_depth=32, depth_tile=32),
    "steps": LutParams(step_rows=8, step_depth=8, depth_tile=64),
    "odd_steps": LutParams(step_rows=16, step_depth=12, depth_tile=36),
    "a16": LutParams(step_rows=8, step_depth=16, depth_tile=32, a_width=16),
}


def test_rejects_params_of_another_kind() -> None:
    with pytest.raises(TypeError) as error:
        LutDatapath(MacParams())  # type: ignore[arg-type]
    assert str(error.value) == f"params must be LutParams, not {MacParams()!r}"


def test_rejects_no_activation_bits() -> None:
    with pytest.raises(ValueError) as error:
        TablePrecompute(0)
    assert str(error.value) == "a_width must be positive, not 0"


@pytest.mark.parametrize("a_width", [1, 3, 8, 16])
def test_table_precompute(a_width: int) -> None:
    """Every combination of extremes, and random ones: all for three bits."""
    rng = np.random.default_rng(a_width)
    dut = TablePrecompute(a_width)
    low, high = -(1 << (a_width - 1)), (1 << (a_width - 1)) - 1
    values = range(low, high + 1) if a_width <= 3 else sorted({low, low + 1, -1, 0, 1, high})
    a = np.array(list(product(values, repeat=4)))
    a = np.concatenate([a, rng.integers(low, high + 1, (200, 4))])
    tables = []

    async def bench(ctx: Any) -> None:
        for four in a.tolist():
            ctx.set(dut.i, four)
            tables.append([ctx.get(dut.o[index]) - (2 << a_width) for index in range(8)])

    simulate_combinational(dut, bench)
    assert (np.array(tables) == lut_table(a)).all()


def simulate_combinational(dut: Any, bench: Any) -> None:
    """Run ``bench`` on a component without a clock."""
    from amaranth.sim import Simulator

    simulator = Simulator(dut)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("params", SHAPES.values(), ids=SHAPES.keys())
def test_table_writer(params: LutParams) -> None:
    """Starts as close as allowed, sets in turn; each entry of each table is written once."""
    rng = np.random.default_rng(1)
    limit = 1 << (params.a_width - 1)
    dut = TableWriter(params)
    a = rng.choice([-limit, limit - 1, 0, 5, -7], (4, params.steps, params.n_tables, 4))
    written = []

    async def bench(ctx: Any) -> None:
        for index, activations in enumerate(a):
            tables = np.zeros((params.steps, params.n_tables, 8), np.int64)
            places = []
            for cycle in range(params.prepare_cycles):
                ctx.set(dut.start, cycle == 0)
                ctx.set(dut.start_set, index % 2 if cycle == 0 else 1 - index % 2)
                if cycle == 1:
                    ctx.set(dut.i, activations.ravel().tolist())
                if ctx.get(dut.w.en):
                    assert ctx.get(dut.w.set) == index % 2
                    step, entry = ctx.get(dut.w.step), ctx.get(dut.w.entry)
                    places.append((step, entry))
                    for t in range(params.n_tables):
                        odd = ctx.get(dut.w.odd) >> t & 1
                        value = ctx.get(dut.w.values[t]) << 1 | odd
                        tables[step, t, entry] = value - (1 << (params.entry_width - 1))
                await ctx.tick()
            assert places == list(np.ndindex(params.steps, 8))
            written.append(tables)

    simulate(dut, bench)
    assert (np.array(written) == lut_table(a)).all()


@pytest.mark.parametrize(
    ("tables", "steps", "cycles"),
    [(Tables.MEMORY, 1, 10), (Tables.MEMORY, 4, 34), (Tables.LOGIC, 1, 1), (Tables.LOGIC, 4, 1)],
)
def test_preparation_takes_as_long_as_stated(tables: Tables, steps: int, cycles: int) -> None:
    """The entry written last is there in time, and not a cycle sooner."""
    params = LutParams(step_rows=8, step_depth=8, depth_tile=8 * steps, tables=tables)
    dut = LutDatapath(params)
    assert dut.prepare_cycles == cycles
    results = {}

    async def ticks(ctx: Any, n_cycles: int) -> None:
        for _ in range(n_cycles):
            await ctx.tick()

    async def prepare(ctx: Any, value: int) -> None:
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        ctx.set(dut.i, [value] * params.depth_tile)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.step, steps - 1)
        ctx.set(dut.digits, int("7" * (params.digit_bits // 4), 16))
        # without memories a cycle sooner is the cycle of the start
        for delay in (cycles - 1, cycles) if cycles > 1 else (cycles,):
            await prepare(ctx, 0)
            await ticks(ctx, cycles)
            await prepare(ctx, 3)
            await ticks(ctx, delay - 1)
            ctx.set(dut.en, 1)
            await ctx.tick()
            ctx.set(dut.en, 0)
            await ticks(ctx, dut.latency - 1)
            results[delay] = ctx.get(dut.o[0]) - (1 << (dut.o_width - 1))
            await ticks(ctx, cycles)

    simulate(dut, bench)
    assert results.pop(cycles) == 24
    assert 24 not in results.values()


@pytest.mark.parametrize(("step_depth", "latency"), [(4, 1), (8, 1), (16, 1), (32, 2), (64, 2)])
def test_latency(step_depth: int, latency: int) -> None:
    assert LutDatapath(LutParams(step_depth=step_depth)).latency == latency


@pytest.mark.cocotb
@pytest.mark.parametrize("tables", list(Tables), ids=lambda t: t.name.lower())
@pytest.mark.parametrize("params", SHAPES.values(), ids=SHAPES.keys())
def test_bench(tmp_path: Path, params: LutParams, tables: Tables) -> None:
    shape = DotShape(lut=dataclasses.replace(params, tables=tables))
    run_cocotb(shape.datapath(), "lutra_sim.bench.matmul.tb_dot", tmp_path, parameters=shape)

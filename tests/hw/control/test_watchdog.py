"""Watchdog against its golden model: limits of 0, 1 and more, moves at random, runs that end."""

from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.control.watchdog import expiries
from lutra_hw.control.watchdog import Watchdog
from lutra_sim.bench.simulate import simulate


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("p_moves", [0.0, 0.05, 0.5])
def test_expires_when_golden_does(limit: int, p_moves: float) -> None:
    dut, rng = Watchdog(), Random(limit)

    async def check(ctx: Any) -> None:
        ctx.set(dut.limit, limit)
        await ctx.tick()
        for _ in range(5):
            moves = [rng.random() < p_moves for _ in range(rng.randrange(1, 120))]
            found = list[int]()
            for cycle, moved in enumerate(moves):
                ctx.set(dut.running, 1)
                ctx.set(dut.moved, moved)
                if ctx.get(dut.expired):
                    found.append(cycle)
                await ctx.tick()
            assert found == expiries(limit, moves)
            ctx.set(dut.running, 0)
            ctx.set(dut.moved, 0)
            await ctx.tick().repeat(rng.randrange(1, 3))
            assert not ctx.get(dut.expired)

    simulate(dut, check)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_a_limit_that_comes_during_a_run(limit: int) -> None:
    """A descriptor sets it, which has begun its run: it counts from there."""
    dut = Watchdog()

    async def check(ctx: Any) -> None:
        ctx.set(dut.running, 1)
        await ctx.tick().repeat(3)
        ctx.set(dut.limit, limit)
        assert not ctx.get(dut.expired)
        await ctx.tick()
        for cycle in range(3 * limit + 3):
            assert ctx.get(dut.expired) == (cycle % (limit + 1) == limit)
            await ctx.tick()

    simulate(dut, check)

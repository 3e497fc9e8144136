"""A datapath that multiplies activations by digits, in Amaranth's own simulator."""

from typing import Any

import numpy as np

from lutra_hw.matmul.mac import DotDatapath
from lutra_sim.bench.simulate import simulate

__all__ = ["check_in_amaranth"]


def check_in_amaranth(dut: DotDatapath) -> None:
    """Both sets in turn, a word in every other cycle at the end of a set's time."""
    params, rng = dut.params, np.random.default_rng(1)
    limit, shape = 1 << (params.a_width - 1), (params.step_rows, params.step_depth)
    expected, results = [], []

    async def bench(ctx: Any) -> None:
        previous = np.zeros(params.depth_tile, np.int64)
        for index in range(8):
            a = rng.choice([-limit, limit - 1, 0, 5, -7], params.depth_tile)
            ctx.set(dut.start, 1)
            ctx.set(dut.start_set, index % 2)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.i, a.tolist())
            for _ in range(dut.prepare_cycles - 1):
                await ctx.tick()
            for use, values in ((index + 1) % 2, previous), (index % 2, a):
                step = int(rng.integers(params.steps))
                digits = rng.integers(0, params.radix, shape)
                part = values.reshape(params.steps, params.step_depth)[step]
                expected.append((digits @ part).tolist())
                flat = enumerate(digits.ravel().tolist())
                ctx.set(dut.digits, sum(digit << params.w_width * i for i, digit in flat))
                ctx.set(dut.step, step)
                ctx.set(dut.set, use)
                ctx.set(dut.en, 1)
                await ctx.tick()
                ctx.set(dut.en, 0)
                for _ in range(dut.latency - 1):
                    await ctx.tick()
                offset = 1 << (dut.o_width - 1)
                results.append([ctx.get(dut.o[row]) - offset for row in range(params.step_rows)])
            previous = a

    simulate(dut, bench)
    # what the set of the first pass was before it is not known
    assert results[1:] == expected[1:]

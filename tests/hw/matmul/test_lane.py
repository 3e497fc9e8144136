"""A lane of the lookup engine: its tables, and the sums of its rows."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")

from lutra_golden.matmul.engine import LANES
from lutra_golden.matmul.lookup import BITS, LookupParams, entries, is_binary, walk
from lutra_hw.matmul.lane import LookupLane
from lutra_sim.bench.simulate import simulate

PARAMS = LookupParams(step_tokens=2, pass_tokens=4, act_tiles=5, acc_blocks=8, max_planes=4)


@pytest.mark.parametrize(("planes", "negate"), [(1, 0), (BITS | 1, 0), (BITS | 1, 1)])
def test_words_are_looked_up_in_the_tables_of_a_token(planes: int, negate: int) -> None:
    """In the second set, the second tile of the second group; all entries at both ends too."""
    p, rng = PARAMS, np.random.default_rng(3)
    depth = p.tile_depth(planes)
    a = rng.choice([-128, 127, 0, 5, -77], (2, 15, LANES))  # group, word
    base, group = depth // LANES, 1
    signs = entries(planes)
    n_words = 40
    codes = rng.integers(0, len(signs), (n_words, p.step_rows, p.n_tables))
    codes[0], codes[1] = 0, len(signs) - 1
    tile = a[group].ravel()[base * LANES : base * LANES + depth].reshape(-1, p.n_tables)
    tables = (-1 if negate else 1) * np.einsum("jt,ej->te", tile, signs)
    sums = tables[np.arange(p.n_tables), codes].sum(axis=2)  # [n_words, step_rows]
    n_blocks = p.acc_blocks // p.block_rows
    expected = np.zeros((n_blocks, p.step_rows), np.int64)
    for word in range(n_words):
        former = expected[word % n_blocks]
        # begins anew, is doubled, goes on
        former = 0 if word < n_blocks else 2 * former if word < 2 * n_blocks else former
        expected[word % n_blocks] = former + sums[word]
    dut, found = LookupLane(p), np.zeros_like(expected)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.w.en, 1)
        for g, word in np.ndindex(2, 15):
            ctx.set(dut.w.addr, {"token": g * p.step_tokens, "word": word})
            ctx.set(dut.w.data, a[g, word].tolist())
            await ctx.tick()
        ctx.set(dut.w.en, 0)
        for index in range(depth // LANES):
            load = {"en": 1, "set": 1, "index": index, "word": base + index, "group": group}
            ctx.set(dut.load, load)
            await ctx.tick()
        ctx.set(dut.load.en, 0)
        await ctx.tick()
        shown = [0, 0, 0]
        for place, (entry, activation, sign) in enumerate([*walk(planes), (0, 0, 0)]):
            step = {"set": 1, "first": place == 0, "subtract": sign < 0, "negate": negate}
            valid = place < len(walk(planes))
            ctx.set(dut.step, {**step, "valid": valid, "activation": activation, "entry": entry})
            # the entry that is written now
            for t, n in np.ndindex(p.n_tables, p.step_rows):
                ctx.set(dut.index[t][n], shown[0])
            shown = [*shown[1:], entry]
            await ctx.tick()
        for entry in shown[:2]:
            for t, n in np.ndindex(p.n_tables, p.step_rows):
                ctx.set(dut.index[t][n], entry)
            await ctx.tick()
        latency = p.n_tables // 2 + 1
        for cycle in range(n_words + latency + 1):
            for t, n in np.ndindex(p.n_tables, p.step_rows):
                word = min(max(cycle - t // 2, 0), n_words - 1)
                ctx.set(dut.index[t][n], int(codes[word, n, t]))
            row, adding = cycle - latency + 1, cycle - latency
            ctx.set(dut.en, 0 <= adding < n_words)
            control = {"valid": 1, "block": row % n_blocks, "group": group, "mask": 3}
            flags = {"first": row < n_blocks, "double": row < 2 * n_blocks}
            ctx.set(dut.row, control | flags)
            await ctx.tick()
        ctx.set(dut.en, 0)
        for block in range(n_blocks):
            ctx.set(dut.acc.addr, {"token": group * p.step_tokens, "pair": block})
            await ctx.tick()
            found[block] = [
                ctx.get(dut.acc.data[n // LANES][n % LANES]) for n in range(p.step_rows)
            ]

    simulate(dut, bench)
    np.testing.assert_array_equal(found, expected)
    assert is_binary(planes) or not negate

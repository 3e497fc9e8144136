"""Tables, lookups and sums against the golden model."""

from random import Random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra.hw.matmul.table import Lookup, SignedSum, TableGenerator
from lutra.sim.bench.simulate import simulate
from lutra.sim.golden.matmul.table import build_table, encode_trits, sum_lookups
from lutra.sim.golden.matmul.ternary import TernaryParams

PARAMS = TernaryParams(lanes=3, n_tables=5, m_tile=4, act_tiles=3)


def test_rejects_no_values() -> None:
    with pytest.raises(ValueError) as error:
        SignedSum(0, 10)
    assert str(error.value) == "n must be positive, not 0"


def _value(o: int, negate: int, width: int) -> int:
    value = o - (1 << (width - 1))
    return -value if negate else value


def _sum(ctx: Any, dut: SignedSum) -> int:
    return _value(ctx.get(dut.o), ctx.get(dut.o_negate), dut.o_width)


@pytest.mark.parametrize(("n", "latency"), [(1, 1), (2, 1), (3, 1), (5, 2), (8, 2), (24, 3)])
def test_signed_sum(n: int, latency: int) -> None:
    rng = Random(n)
    dut = SignedSum(n, 4)
    assert dut.latency == latency
    corners = [([value] * n, negate) for value in (-8, 7, 0) for negate in (0, (1 << n) - 1)]
    sums = [([rng.randrange(-8, 8) for _ in range(n)], rng.getrandbits(n)) for _ in range(100)]
    expected, results = [], []

    async def bench(ctx: Any) -> None:
        ctx.set(dut.en, (1 << latency) - 1)
        for values, negate in [*corners, *sums, *[([0] * n, 0)] * latency]:
            ctx.set(dut.i, [value + 8 for value in values])
            ctx.set(dut.negate, negate)
            expected.append(sum(-v if negate >> i & 1 else v for i, v in enumerate(values)))
            results.append(_sum(ctx, dut))
            await ctx.tick()
        ctx.set(dut.en, 0)
        ctx.set(dut.i, [15] * n)
        await ctx.tick().repeat(latency)
        assert _sum(ctx, dut) == 0

    simulate(dut, bench)
    assert results[latency:] == expected[:-latency]


@pytest.mark.parametrize("hold", [0, 13, 14, 40])
def test_generator_walks_the_command_and_builds_tables(hold: int) -> None:
    """``hold`` cycles go by from a table being ready to its set being free again."""
    rng = np.random.default_rng(hold)
    dut = TableGenerator(PARAMS)
    a = rng.integers(-128, 128, (PARAMS.act_tiles, PARAMS.m_tile, PARAMS.k_tile))
    a[0, 1], a[0, 2] = -128, 127
    order = [(tile, token) for tile in range(3) for token in (1, 2)]
    tables = np.full((2, PARAMS.n_tables, PARAMS.n_entries), 0, np.int64)
    starts = []

    async def memories(ctx: Any) -> None:
        """The activation buffer and the table memories."""
        cycle = 0
        while True:
            fetch, tile, token = (ctx.get(s) for s in (dut.fetch, dut.tile, dut.token))
            if ctx.get(dut.w.en):
                values = [ctx.get(dut.w.values[t]) - 512 for t in range(PARAMS.n_tables)]
                tables[ctx.get(dut.w.select), :, ctx.get(dut.w.entry)] = values
            await ctx.tick()
            if fetch:
                starts.append((cycle, tile, token))
                ctx.set(dut.i, a[tile, token].tolist())
            cycle += 1
            if len(checked) == len(order):
                return

    checked: list[tuple[int, int]] = []

    async def bench(ctx: Any) -> None:
        command = {"k_tiles": 3, "token_first": 1, "token_count": 2, "row_blocks": 1, "planes": 1}
        ctx.set(dut.cmd, command)
        ctx.set(dut.load, 1)
        await ctx.tick()
        ctx.set(dut.load, 0)
        for index, (tile, token) in enumerate(order):
            while not ctx.get(dut.available):
                await ctx.tick()
            assert ctx.get(dut.select) == index % 2
            # a lookup reads two cycles after it is issued
            await ctx.tick().repeat(2)
            expected = build_table(a[tile, token].reshape(PARAMS.n_tables, 3))
            assert (tables[index % 2] == expected).all()
            if hold:
                await ctx.tick().repeat(hold)
            ctx.set(dut.free, 1)
            await ctx.tick()
            ctx.set(dut.free, 0)
            checked.append((tile, token))

    simulate(dut, memories, bench)
    assert [(tile, token) for _, tile, token in starts] == order
    if hold == 0:
        cycles = [cycle for cycle, _, _ in starts]
        assert np.diff(cycles).tolist() == [PARAMS.n_entries] * (len(order) - 1)


def test_lookup() -> None:
    rng = np.random.default_rng(1)
    dut = Lookup(PARAMS)
    a = rng.integers(-128, 128, (2, PARAMS.n_tables, 3))
    a[0, 0], a[0, 1] = -128, 127
    tables = build_table(a)
    shape = (60, PARAMS.lanes, PARAMS.n_tables)
    codes = encode_trits(rng.integers(-1, 2, (*shape, 3)))
    codes[0], codes[1] = 0, encode_trits(np.array([-1, -1, -1]))
    select = rng.integers(0, 2, len(codes))
    results = []

    async def bench(ctx: Any) -> None:
        for index, entry in np.ndindex(2, PARAMS.n_entries - 1):
            values = (tables[index, :, entry + 1] + 512).tolist()
            ctx.set(dut.w, {"en": 1, "select": index, "entry": entry + 1, "values": values})
            await ctx.tick()
        ctx.set(dut.w.en, 0)
        for step in range(len(codes) + dut.latency):
            ctx.set(dut.en, step < len(codes))
            if step < len(codes):
                flat = codes[step].ravel().tolist()
                ctx.set(dut.word, sum(code << 5 * i for i, code in enumerate(flat)))
                ctx.set(dut.select, int(select[step]))
            negate = ctx.get(dut.negate)
            results.append(
                [_value(ctx.get(dut.o[n]), negate >> n & 1, dut.o_width) for n in range(3)]
            )
            await ctx.tick()

    simulate(dut, bench)
    expected = [sum_lookups(tables[s], c).tolist() for s, c in zip(select, codes, strict=True)]
    assert results[dut.latency :] == expected

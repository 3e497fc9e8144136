"""Row registers, dequantisation and accumulators against the golden arithmetic."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.arith.fixed import round_shift
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.matmul.engine import LANES
from lutra_golden.matmul.lut import LutParams
from lutra_golden.matmul.mac import MacParams
from lutra_golden.matmul.ternary import TernaryParams
from lutra_golden.timing.matmul import MatmulTiming
from lutra_hw.matmul.accumulate import AccumulatorBanks, Dequantizer, RowRegisters
from lutra_sim.bench.simulate import simulate

GROUPS = ActivationGroups(size=32)
MAC = MacParams(depth_tile=16, step_depth=8, pass_tokens=2, acc_blocks=4)
PARAMS = {
    "ternary": TernaryParams(step_depth=24, depth_tile=24, pass_tokens=2, acc_blocks=4),
    "ternary-2x16": TernaryParams(
        step_tokens=2,
        step_rows=16,
        step_depth=24,
        depth_tile=24,
        pass_tokens=4,
        acc_blocks=4,
        max_planes=3,
    ),
    "lut": LutParams(
        step_tokens=2, depth_tile=16, step_depth=8, pass_tokens=2, acc_blocks=4, max_planes=4
    ),
    "lut-whole": LutParams(depth_tile=16, step_depth=16, pass_tokens=2, acc_blocks=4, max_planes=1),
    "mac": MAC,
    "mac-s16": replace(MAC, scale_width=16, sum_width=44),
    "lut-s12": LutParams(
        depth_tile=16, step_depth=16, pass_tokens=2, acc_blocks=4, scale_width=12, sum_width=40
    ),
    "mac-g32": replace(MAC, a_groups=GROUPS, sum_width=43),
    "mac-g32-s16": replace(MAC, a_groups=GROUPS, scale_width=16, sum_width=51),
    "mac-o20": replace(MAC, offset_width=20, sum_width=40),
    "mac-g64-o27-s16": replace(
        MAC,
        a_groups=ActivationGroups(size=64, shift_max=3),
        offset_width=27,
        scale_width=16,
        sum_width=51,
    ),
    "lut-2x16-g32-o20": LutParams(
        step_tokens=2,
        step_rows=16,
        depth_tile=16,
        step_depth=16,
        pass_tokens=2,
        acc_blocks=4,
        max_planes=3,
        a_groups=GROUPS,
        offset_width=20,
        sum_width=43,
    ),
}
GROUPED = [name for name in PARAMS if PARAMS[name].grouped]


async def _wait(ctx: Any, n_cycles: int) -> None:
    for _ in range(n_cycles):
        await ctx.tick()


@pytest.mark.parametrize("name", PARAMS)
def test_rows(name: str) -> None:
    """Steps and planes are joined, and leave eight at a time with what belongs to them."""
    params, rng = PARAMS[name], np.random.default_rng(1)
    n_sum = params.a_width + 3  # bits of a sum
    dut = RowRegisters(params, n_sum)
    m, n, limit = params.step_tokens, params.step_rows, 1 << (n_sum - 1)
    n_blocks, planes, drain = 6, params.max_planes, MatmulTiming(params).drain_cycles
    sums = rng.integers(-limit + 1, limit, (n_blocks, planes, params.steps, m, n))
    sums[0], sums[1] = limit - 1, -limit + 1
    signs = rng.integers(0, 2, sums.shape)
    scale = rng.integers(0, 1 << params.scale_width, (n_blocks, n))
    second = "offset" if params.offset_width else "zero"
    zero = rng.integers(-512, 512, (n_blocks, n))
    a_sum = rng.integers(-1000, 1000, (n_blocks, m))
    a_shift = rng.integers(0, params.a_shift_max + 1, (n_blocks, m))
    weights = params.radix ** np.arange(planes - 1, -1, -1)
    expected = np.einsum("bpsmn,p->bmn", np.where(signs, -sums, sums), weights)
    results, sides, tokens, finishes = [], [], [], []
    words = list(np.ndindex(planes, params.steps))
    # the last rows of a block follow its last word
    idle = max(0, drain - len(words))

    async def put(ctx: Any) -> None:
        for block in range(n_blocks):
            for plane, step in words:
                last = (plane, step) == words[-1]
                control = {
                    "valid": 1,
                    "finish": last and block == n_blocks - 1,
                    "first_word": (plane, step) == (0, 0),
                    "first_step": step == 0,
                    "last_word": last,
                    "last_block": 1,
                    "mask": -1,
                    "block": block // 2 * params.block_rows % params.acc_blocks,
                    "group": 0,
                }
                value = sums[block, plane, step] + limit
                ctx.set(dut.control, control)
                ctx.set(dut.i, value.tolist())
                flags = signs[block, plane, step]
                ctx.set(dut.negate, [sum(int(x) << i for i, x in enumerate(row)) for row in flags])
                await ctx.tick()
            ctx.set(dut.control, {})
            await _wait(ctx, idle)
        await ctx.tick().repeat(drain + 2)

    async def side(ctx: Any) -> None:
        """Side fields come with the first rows of a block, and stay."""
        await _wait(ctx, len(words) - 1 + dut.lag)
        for block in range(n_blocks):
            if params.grouped:
                rows = [
                    {"scale": int(s), second: int(z)}
                    for s, z in zip(scale[block], zero[block], strict=True)
                ]
                ctx.set(dut.side, rows)
                ctx.set(dut.a_sum, a_sum[block].tolist())
            if params.a_groups is not None:
                ctx.set(dut.a_shift, a_shift[block].tolist())
            await ctx.tick().repeat(len(words) + idle)

    async def get(ctx: Any) -> None:
        """``h_o`` comes a cycle after its control and side fields."""
        valid = False
        for _ in range(n_blocks * (len(words) + idle) + drain + 2):
            if valid:
                results.append([ctx.get(dut.h_o[lane]) for lane in range(LANES)])
            valid = ctx.get(dut.control_o.valid)
            if valid:
                tokens.append(ctx.get(dut.control_o.token))
                finishes.append(ctx.get(dut.control_o.finish))
                sides.append(
                    (
                        [ctx.get(dut.side_o[lane].scale) for lane in range(LANES)],
                        [ctx.get(getattr(dut.side_o[lane], second)) for lane in range(LANES)],
                        ctx.get(dut.a_sum_o),
                        ctx.get(dut.a_shift_o) if params.a_groups is not None else 0,
                    )
                )
            await ctx.tick()

    # one that drives sees what another has driven in the same cycle
    simulate(dut, put, side, get)
    assert np.array(results).ravel().tolist() == expected.ravel().tolist()
    assert tokens == [t for _ in range(n_blocks) for t in range(m) for _ in range(n // LANES)]
    assert finishes == [0] * (len(finishes) - 1) + [1]
    if params.grouped:
        for index, (scales, zeros, a, shift) in enumerate(sides):
            block, part = divmod(index, drain)
            token, rows = divmod(part, n // LANES)
            select = slice(rows * LANES, (rows + 1) * LANES)
            assert scales == scale[block, select].tolist()
            assert zeros == zero[block, select].tolist()
            assert (a, shift) == (a_sum[block, token], a_shift[block, token])


@pytest.mark.parametrize("name", GROUPED)
def test_dequantizer(name: str) -> None:
    """Corners of what codes, zero points or offsets and shifts allow, then random; one set of rows
    per cycle."""
    params, rng = PARAMS[name], np.random.default_rng(1)
    largest = (1 << params.scale_width) - 1
    dut = Dequantizer(params)
    top = params.radix**params.max_planes - 1
    n = 40
    limit = 1 << (params.a_width - 1)
    a = rng.integers(-limit, limit, (n, params.depth_tile))
    a[0:2], a[2:4] = -limit, limit - 1
    codes = rng.integers(0, top + 1, (n, LANES, params.depth_tile))
    zero = rng.integers(0, 2 * top + 1, (n, LANES))
    scale = rng.integers(0, largest + 1, (n, LANES))
    codes[0:4:2], zero[0:4:2], scale[:4] = top, 0, largest
    codes[1:4:2], zero[1:4:2] = 0, 2 * top
    # the lut engine looks up twice the codes less their middle
    middle = top if params.symmetric else 0
    used = 2 * codes - top if params.symmetric else codes
    h = np.einsum("bk,bnk->bn", a, used)
    expected = scale * np.einsum("bk,bnk->bn", a, 2 * codes - zero[..., None])
    a_sum = a.sum(axis=1)
    stored, second = zero - middle, "zero"
    shift = rng.integers(0, params.a_shift_max + 1, n)
    shift[:4], shift[4:6] = params.a_shift_max, 0
    if params.offset_width:
        room = (1 << (params.offset_width - 1)) - 1 - 2 * top * largest
        offset = rng.integers(-room, room + 1, (n, LANES))
        offset[0:4:2], offset[1:4:2] = room, -room
        expected += offset * a_sum[:, None]
        stored, second = offset - scale * stored, "offset"
        a_sum = a_sum << shift
    expected <<= shift[:, None]
    results = []

    async def bench(ctx: Any) -> None:
        for index in range(n + dut.latency):
            if index < n:
                rows = zip(scale[index].tolist(), stored[index].tolist(), strict=True)
                ctx.set(dut.side, [{"scale": s, second: z} for s, z in rows])
                ctx.set(dut.a_sum, int(a_sum[index]))
                if params.a_groups is not None:
                    ctx.set(dut.a_shift, int(shift[index]))
            if 0 < index <= n:
                ctx.set(dut.h, h[index - 1].tolist())
            results.append([ctx.get(dut.o[lane]) for lane in range(LANES)])
            await ctx.tick()

    simulate(dut, bench)
    assert results[dut.latency :] == expected.tolist()


@pytest.mark.parametrize("name", ["ternary", "mac", "mac-s16", "mac-g32", "mac-g64-o27-s16"])
@pytest.mark.parametrize("lag", [1, 3])
def test_banks(name: str, lag: int) -> None:
    """Sums over depth tiles, as close as ``recovery`` allows; every shift rounds at the end."""
    params, rng = PARAMS[name], np.random.default_rng(lag)
    width = params.sum_width - (2 if params.grouped else 4)  # three of them make a sum
    dut = AccumulatorBanks(params, width, lag)
    shifts = range(params.shift_min, params.shift_max + 1)
    n_tiles, modulus = 3, 1 << params.acc_width
    places = [(0, 0), (1, 0), (0, 3), (1, 2)][: dut.recovery]  # (token, block), again and again
    limit = 1 << (width - 1)
    rows = rng.integers(-limit, limit, (len(shifts), n_tiles, len(places), LANES))
    # corners: the largest sums of either sign
    rows[:, :, 0, 0], rows[:, :, 0, 1] = limit - 1, -limit
    expected = round_shift(rows.sum(axis=1), np.array(shifts)[:, None, None])
    # an accumulator shows the low bits of what it holds
    expected = (expected + modulus // 2) % modulus - modulus // 2
    writes = list(np.ndindex(len(shifts), n_tiles, len(places)))
    results, done = np.zeros_like(expected), []

    async def put(ctx: Any) -> None:
        for index in range(len(writes) + lag):
            control: dict[str, int] = {}
            if index < len(writes):
                number, tile, place = writes[index]
                control = {
                    "valid": 1,
                    "first_tile": tile == 0,
                    "last_tile": tile == n_tiles - 1,
                    "finish": tile == n_tiles - 1,
                    "token": places[place][0],
                    "block": places[place][1],
                    "shift": shifts[number] - params.shift_min,
                }
            ctx.set(dut.control, control)
            if index >= lag:
                ctx.set(dut.i, rows[writes[index - lag]].tolist())
            await ctx.tick()

    async def get(ctx: Any) -> None:
        """Reads the rows in the cycle that says that they are there."""
        finished = [w for w in writes if w[1] == n_tiles - 1]
        for cycle in range(len(writes) + dut.latency + 2):
            if ctx.get(dut.done):
                number, _, place = finished[len(done)]
                done.append(cycle)
                token, block = places[place]
                ctx.set(dut.acc.addr, {"token": token, "pair": block // 2})
                await ctx.tick()
                port = dut.acc.data[block % 2]
                results[number, place] = [ctx.get(port[lane]) for lane in range(LANES)]
            else:
                await ctx.tick()

    simulate(dut, put, get)
    last = [index for index, w in enumerate(writes) if w[1] == n_tiles - 1]
    assert done == [index + dut.latency for index in last]
    assert (results == expected).all()

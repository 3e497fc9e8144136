"""Buffer and sums of activations."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.matmul.engine import LANES, EngineParams
from lutra_golden.matmul.mac import MacParams
from lutra_golden.matmul.ternary import TernaryParams
from lutra_hw.matmul.activations import ActivationBuffer, ActivationSums
from lutra_sim.bench.simulate import simulate

GROUPS = ActivationGroups(size=32)
PARAMS = {
    "one": TernaryParams(step_depth=24, depth_tile=24, pass_tokens=3, act_tiles=5),
    "pairs": MacParams(
        step_tokens=2, depth_tile=16, pass_tokens=4, act_tiles=3, a_width=16, sum_width=44
    ),
    "words": MacParams(step_tokens=4, step_depth=8, depth_tile=8, pass_tokens=4, act_tiles=2),
    "groups": MacParams(
        step_tokens=2, depth_tile=16, pass_tokens=4, act_tiles=3, a_groups=GROUPS, sum_width=43
    ),
    "groups-offsets": MacParams(
        step_tokens=2,
        depth_tile=16,
        pass_tokens=4,
        act_tiles=5,
        a_groups=ActivationGroups(size=64, shift_max=3),
        offset_width=18,
        sum_width=43,
    ),
}


def _random(params: EngineParams, rng: np.random.Generator, *shape: int) -> np.ndarray:
    limit = 1 << (params.a_width - 1)
    return rng.integers(-limit, limit, shape)


def test_rejects_a_depth_tile_of_uneven_words() -> None:
    with pytest.raises(ValueError) as error:
        ActivationBuffer(MacParams(step_depth=4, depth_tile=20))
    assert str(error.value) == "depth_tile must be a multiple of 8 (activations of a word), not 20"


@pytest.mark.parametrize("depth", [1, 3])
def test_rejects_a_depth(depth: int) -> None:
    with pytest.raises(ValueError) as error:
        ActivationSums(PARAMS["pairs"], depth)
    assert str(error.value) == f"depth must be a power of two from 2 on, not {depth}"


@pytest.mark.parametrize("name", PARAMS)
def test_buffer_gives_depth_tiles_of_groups(name: str) -> None:
    params, rng = PARAMS[name], np.random.default_rng(1)
    dut = ActivationBuffer(params)
    a = _random(params, rng, params.pass_tokens, params.act_tiles * params.depth_tile)
    shifts = rng.integers(0, params.a_shift_max + 1, (params.pass_tokens, params.act_tiles))
    writes = list(np.ndindex(params.pass_tokens, a.shape[1] // LANES))
    groups = params.pass_tokens // params.step_tokens
    fetches = list(np.ndindex(groups, params.act_tiles))
    results, found = [], []

    async def bench(ctx: Any) -> None:
        ctx.set(dut.w.en, 1)
        for index in rng.permutation(len(writes)):
            token, word = writes[index]
            ctx.set(dut.w.addr, {"token": token, "word": word})
            payload: Any = a[token, word * LANES : (word + 1) * LANES].tolist()
            if params.a_groups is not None:
                shift = int(shifts[token, word * LANES // params.depth_tile])
                payload = {"q": payload, "shift": shift}
            ctx.set(dut.w.data, payload)
            await ctx.tick()
        ctx.set(dut.w.en, 0)
        await ctx.tick()
        for group, tile in fetches:
            ctx.set(dut.fetch, 1)
            ctx.set(dut.group, group)
            ctx.set(dut.tile, tile)
            await ctx.tick()
            # what was fetched stays
            ctx.set(dut.fetch, 0)
            ctx.set(dut.tile, 0)
            await ctx.tick()
            results.append(
                [
                    [ctx.get(dut.o[m][k]) for k in range(params.depth_tile)]
                    for m in range(params.step_tokens)
                ]
            )
            if params.a_groups is not None:
                found.append([ctx.get(dut.shift[m]) for m in range(params.step_tokens)])

    simulate(dut, bench)
    tiles = a.reshape(groups, params.step_tokens, params.act_tiles, params.depth_tile)
    assert results == [tiles[group, :, tile].tolist() for group, tile in fetches]
    if params.a_groups is not None:
        tiles = shifts.reshape(groups, params.step_tokens, params.act_tiles)
        assert found == [tiles[group, :, tile].tolist() for group, tile in fetches]


async def _wait(ctx: Any, n_cycles: int) -> None:
    for _ in range(n_cycles):
        await ctx.tick()


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("idle", [0, 1, 7])
def test_sums(name: str, idle: int) -> None:
    """Starts as fast as allowed, and slower; extremes first."""
    params, rng = PARAMS[name], np.random.default_rng(idle)
    dut = ActivationSums(params, 4)
    limit = 1 << (params.a_width - 1)
    a = _random(params, rng, 12, params.step_tokens, params.depth_tile)
    a[0], a[1] = -limit, limit - 1
    shifts = rng.integers(0, params.a_shift_max + 1, (12, params.step_tokens))
    shifts[:2] = params.a_shift_max
    n_words = params.depth_tile // LANES
    results, found = [], []

    async def starts(ctx: Any) -> None:
        for tile, shift in zip(a, shifts, strict=True):
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.i, tile.tolist())
            if params.a_groups is not None:
                ctx.set(dut.i_shift, shift.tolist())
            await _wait(ctx, n_words - 1 + idle)

    async def takes(ctx: Any) -> None:
        # the first sum is there when this says; later ones before they are taken
        await _wait(ctx, n_words + 2)
        for _ in a:
            results.append([ctx.get(dut.o[m]) for m in range(params.step_tokens)])
            if params.a_groups is not None:
                found.append([ctx.get(dut.o_shift[m]) for m in range(params.step_tokens)])
            ctx.set(dut.take, 1)
            await ctx.tick()
            ctx.set(dut.take, 0)
            await _wait(ctx, n_words - 1 + idle)

    simulate(dut, starts, takes)
    sums = a.sum(axis=2)
    assert results == (sums << shifts if params.offset_width else sums).tolist()
    assert found == (shifts.tolist() if params.a_groups is not None else [])

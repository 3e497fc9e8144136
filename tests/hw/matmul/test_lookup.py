"""The lookup engine: its passes, and what it does between them. Its bench is test_engine's."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")

from lutra_golden.arith.fixed import Int
from lutra_golden.matmul.engine import LANES, GroupedWeights
from lutra_golden.matmul.lookup import BITS, LookupParams
from lutra_golden.timing.lookup import LookupTiming
from lutra_hw.matmul.lookup import LookupEngine
from lutra_sim.bench.simulate import simulate, stream_put

PARAMS = LookupParams(
    step_tokens=2, pass_tokens=4, act_tiles=5, acc_blocks=8, weight_buffer_words=16
)
TIMING = LookupTiming(PARAMS)
DEPTH, ROWS = 80, 48


def _weights(w: Int) -> GroupedWeights:
    one = np.ones((len(w), 1), np.int64)
    return GroupedWeights(codes=w + 128, scale=one, zero=256 * one, bits=8, group=w.shape[1])


@pytest.mark.parametrize("planes", [1, BITS | 4])
@pytest.mark.parametrize("tokens", [range(4), range(3), range(1, 2), range(3, 4)], ids=str)
def test_commands_one_after_another(planes: int, tokens: range) -> None:
    """The second one loses no cycle; digits of both kinds, and tokens that fill no group."""
    rng = np.random.default_rng(4)
    a = rng.integers(-128, 128, (4, 120))
    order = (planes, 1 if planes != 1 else BITS | 4)
    words, products = list[Any](), list[Int]()
    for each in order:
        low, high = PARAMS.integers(each)
        w = rng.integers(low, high + 1, (ROWS, DEPTH))
        words.append(PARAMS.pack(_weights(w), each))
        products.append(a[:, :DEPTH] @ w.T)
    tiles = [-(-DEPTH // PARAMS.tile_depth(each)) for each in order]
    row_blocks = ROWS // LANES
    dut, seen, results = LookupEngine(PARAMS), list[int](), np.zeros((4, ROWS), np.int64)

    async def put_weights(ctx: Any) -> None:
        for word in np.concatenate(words):
            await stream_put(ctx, dut.weights, int.from_bytes(word.tobytes(), "little"))

    async def bench(ctx: Any) -> None:
        ctx.set(dut.act.en, 1)
        for token, word in np.ndindex(4, 15):
            ctx.set(dut.act.addr, {"token": token, "word": word})
            ctx.set(dut.act.data, a[token, word * LANES : (word + 1) * LANES].tolist())
            await ctx.tick()
        ctx.set(dut.act.en, 0)
        cycle = 0
        ctx.set(dut.cmd.valid, 1)
        sent = 0
        while len(seen) < 2:
            if sent < 2:
                command = {
                    "depth_tiles": tiles[sent],
                    "row_blocks": row_blocks,
                    "planes": order[sent],
                    "acc_base": 2,
                    "token_first": tokens.start,
                    "token_count": len(tokens),
                }
                ctx.set(dut.cmd.payload, command)
                sent += ctx.get(dut.cmd.ready)
            else:
                ctx.set(dut.cmd.valid, 0)
            if ctx.get(dut.done):
                seen.append(cycle)
                assert ctx.get(dut.busy)
            await ctx.tick()
            cycle += 1
            assert cycle < 4000
        assert not ctx.get(dut.busy)
        for token, block in np.ndindex(4, row_blocks):
            ctx.set(dut.acc.addr, {"token": token, "pair": (2 + block) // 2})
            await ctx.tick()
            lanes = [ctx.get(dut.acc.data[block % 2][lane]) for lane in range(LANES)]
            results[token, block * LANES : (block + 1) * LANES] = lanes

    simulate(dut, bench, put_weights)
    for token in range(4):
        expected = products[1][token] if token in tokens else np.zeros(ROWS, np.int64)
        np.testing.assert_array_equal(results[token], expected)
    first = TIMING.cycles(tiles[0], row_blocks, order[0], len(tokens), token_first=tokens.start)
    passes = TIMING.passes(tiles[1], order[1], tokens)
    assert seen[0] == first
    assert seen[1] - seen[0] == passes * TIMING.pass_cycles(row_blocks, order[1])


def test_rejects_params_of_another_engine() -> None:
    with pytest.raises(TypeError, match="params must be LookupParams, not 12"):
        LookupEngine(12)  # type: ignore[arg-type]

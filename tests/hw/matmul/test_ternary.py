"""TernaryEngine against the golden model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra.hw.matmul.ternary import TernaryEngine
from lutra.sim.bench.simulate import run_cocotb, simulate, stream_put
from lutra.sim.golden.core.config import NANO
from lutra.sim.golden.matmul.ternary import TernaryParams, lookup_matmul, pack_words

SMALL = TernaryParams(
    n_tables=8, m_tile=3, acc_blocks=34, acc_width=24, weight_buffer_words=64, act_tiles=5
)


def test_rejects_params_of_another_kind() -> None:
    with pytest.raises(TypeError) as error:
        TernaryEngine(12)  # type: ignore[arg-type]
    assert str(error.value) == "params must be TernaryParams, not 12"


def test_rejects_a_depth_tile_of_uneven_words() -> None:
    with pytest.raises(ValueError) as error:
        TernaryEngine(TernaryParams(n_tables=4))
    assert str(error.value) == "n_tables must make k_tile a multiple of 8 lanes, not 4"


@pytest.mark.parametrize(("lanes", "n_tables"), [(1, 1), (2, 2), (3, 5), (8, 8)])
def test_sizes(lanes: int, n_tables: int) -> None:
    rng = np.random.default_rng(1)
    params = TernaryParams(
        lanes=lanes,
        n_tables=n_tables,
        m_tile=3,
        acc_blocks=6,
        weight_buffer_words=16,
        act_tiles=3,
        a_width=5,
        max_planes=2,
    )
    row_blocks, planes, k_tiles = 3, 2, 3
    a = rng.integers(-16, 16, (3, k_tiles * params.k_tile))
    w = rng.integers(-4, 5, (row_blocks * lanes, k_tiles * params.k_tile))
    words = pack_words(params, w, planes)
    dut = TernaryEngine(params)
    results = np.zeros((2, row_blocks * lanes), np.int64)

    async def put_weights(ctx: Any) -> None:
        for index, word in enumerate(words):
            value = int.from_bytes(word.tobytes(), "little")
            await stream_put(ctx, dut.weights, value, stall=index % 3)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.act.en, 1)
        for token, word in np.ndindex(3, a.shape[1] // lanes):
            ctx.set(dut.act.addr, {"token": token, "word": word})
            ctx.set(dut.act.data, a[token, word * lanes : (word + 1) * lanes].tolist())
            await ctx.tick()
        ctx.set(dut.act.en, 0)
        command = {
            "k_tiles": k_tiles,
            "row_blocks": row_blocks,
            "planes": planes,
            "acc_base": 3,
            "token_first": 1,
            "token_count": 2,
        }
        await stream_put(ctx, dut.cmd, command)
        await ctx.tick().until(dut.done)
        for token, block in np.ndindex(2, row_blocks):
            ctx.set(dut.acc.addr, {"token": 1 + token, "pair": (3 + block) // 2})
            await ctx.tick()
            port = dut.acc.data[(3 + block) % 2]
            results[token, block * lanes : (block + 1) * lanes] = [
                ctx.get(port[lane]) for lane in range(lanes)
            ]

    simulate(dut, bench, put_weights)
    assert (results == lookup_matmul(params, a[1:], words, planes)).all()


@pytest.mark.cocotb
@pytest.mark.parametrize("params", [SMALL, NANO.matmul], ids=["small", "nano"])
def test_bench(tmp_path: Path, params: TernaryParams) -> None:
    bench = "lutra.sim.bench.matmul.tb_ternary"
    run_cocotb(TernaryEngine(params), bench, tmp_path, parameters=params)

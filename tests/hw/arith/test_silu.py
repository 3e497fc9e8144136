"""Silu against the golden model."""

from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.arith.silu import SILU, silu
from lutra_hw.arith.silu import Silu
from lutra_sim.bench.arith.tb_silu import SiluSize
from lutra_sim.bench.simulate import run_cocotb, simulate


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("8",), TypeError, "lanes must be an integer, not '8'"),
        ((0,), ValueError, "lanes must be positive, not 0"),
        ((8, 27), TypeError, "params must be SiluParams, not 27"),
    ],
)
def test_rejects(arguments: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        Silu(*arguments)
    assert str(error.value) == message


def test_one_vector_per_cycle() -> None:
    rng = Random(1)
    limit = 1 << (SILU.x_width - 1)
    vectors = [(-limit, limit - 1, 0), (1, -1, 1 << 16), (1 << 20, -(1 << 20), (1 << 20) - 1)]
    vectors += [
        tuple(rng.randrange(-limit, limit) >> rng.randrange(27) for _ in range(3))
        for _ in range(200)
    ]
    results = []
    dut = Silu(3)

    async def bench(ctx: Any) -> None:
        for vector in [*vectors, *[(0, 0, 0)] * dut.latency]:
            ctx.set(dut.i, vector)
            results.append([ctx.get(dut.o[lane]) for lane in range(3)])
            await ctx.tick()

    simulate(dut, bench)
    assert results[dut.latency :] == silu(vectors).tolist()


@pytest.mark.cocotb
@pytest.mark.parametrize("lanes", [1, 8])
def test_golden(lanes: int, tmp_path: Path) -> None:
    size = SiluSize(lanes=lanes)
    run_cocotb(Silu(lanes), "lutra_sim.bench.arith.tb_silu", tmp_path, parameters=size)

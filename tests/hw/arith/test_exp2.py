"""Exp2Neg against the golden model."""

from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from amaranth import Module, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.arith.exp2 import EXP2, exp2_neg
from lutra_hw.arith.exp2 import Exp2Neg
from lutra_sim.bench.simulate import run_cocotb, simulate


class Lanes(wiring.Component):
    """64 units side by side: simulated cycles, and ports, cost more than units do."""

    def __init__(self) -> None:
        super().__init__(
            {
                "d": In(data.ArrayLayout(unsigned(EXP2.d_width), 64)),
                "y": Out(data.ArrayLayout(unsigned(EXP2.y_width), 64)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for lane in range(len(self.d)):
            m.submodules += (unit := Exp2Neg(EXP2))
            m.d.comb += [unit.d.eq(self.d[lane]), self.y[lane].eq(unit.y)]
        return m


def test_rejects_params_of_another_kind() -> None:
    with pytest.raises(TypeError) as error:
        Exp2Neg(12)  # type: ignore[arg-type]
    assert str(error.value) == "params must be Exp2Params, not 12"


def test_one_argument_per_cycle() -> None:
    rng = Random(1)
    arguments = [0, 1, 127, 128, 4095, 4096, (1 << 25) - 1, 31 << 12, 16 << 12, 0]
    arguments += [rng.randrange(1 << rng.randrange(1, 26)) for _ in range(300)]
    results = []
    dut = Exp2Neg()

    async def bench(ctx: Any) -> None:
        for d in [*arguments, *[0] * dut.latency]:
            ctx.set(dut.d, d)
            results.append(ctx.get(dut.y))
            await ctx.tick()

    simulate(dut, bench)
    assert results[dut.latency :] == exp2_neg(arguments).tolist()


@pytest.mark.cocotb
def test_every_argument(tmp_path: Path) -> None:
    run_cocotb(Lanes(), "lutra_sim.bench.arith.tb_exp2", tmp_path, parameters=EXP2)

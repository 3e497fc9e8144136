"""Accumulate against integer arithmetic."""

from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.fabric import Fabric
from lutra_hw.fabric.accumulate import Accumulate
from lutra_sim.bench.fabric.cells import AccumulateCell
from lutra_sim.bench.simulate import run_cocotb, simulate


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((0, 1), "width must be positive, not 0"),
        ((24, 0), "i_width must be in 1..24, not 0"),
        ((24, 25), "i_width must be in 1..24, not 25"),
    ],
)
def test_rejects_widths(widths: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Accumulate(*widths, Fabric.GENERIC)
    assert str(error.value) == message


def _corners(width: int) -> list[int]:
    half = 1 << (width - 1)
    return sorted({-half, -half // 2, -1, 0, half // 2, half - 1})


@pytest.mark.parametrize("widths", [(1, 1), (7, 7), (24, 16), (25, 3)], ids=str)
def test_accumulates(widths: tuple[int, int]) -> None:
    width, i_width = widths
    dut = Accumulate(width, i_width, Fabric.GENERIC)
    random = Random(width)
    pairs = list(product(_corners(width), _corners(i_width)))
    pairs += [
        (random.randrange(-(1 << width - 1), 1 << width - 1), random.choice(_corners(i_width)))
        for _ in range(50)
    ]

    async def bench(ctx: Any) -> None:
        for (acc, i), first, double in product(pairs, (0, 1), (0, 1)):
            ctx.set(dut.acc, acc)
            ctx.set(dut.i, i)
            ctx.set(dut.first, first)
            ctx.set(dut.double, double)
            await ctx.delay(1e-9)
            total = (0 if first else 2 * acc if double else acc) + i
            half = 1 << (width - 1)
            assert ctx.get(dut.o) == (total + half) % (1 << width) - half

    simulate(dut, bench)


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "fabric", [pytest.param(Fabric.GENERIC, marks=pytest.mark.slow), Fabric.XCUP]
)
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 1), marks=pytest.mark.slow),
        pytest.param((8, 8), marks=pytest.mark.slow),
        (24, 16),
        pytest.param((25, 3), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_bench(fabric: Fabric, sizes: tuple[int, ...], tmp_path: Path) -> None:
    cell = AccumulateCell(fabric=fabric, width=sizes[0], i_width=sizes[1])
    run_cocotb(cell.component(), "lutra_sim.bench.fabric.tb_accumulate", tmp_path, parameters=cell)

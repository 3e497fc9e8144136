"""PackedSum against plain sums."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.fabric import Fabric
from lutra_hw.fabric.sums import PackedSum
from lutra_sim.bench.fabric.cells import SumCell
from lutra_sim.bench.simulate import run_cocotb, simulate


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 2, 1), "n_rows must be positive, not 0"),
        ((1, 0, 1), "n_operands must be positive, not 0"),
        ((1, 2, 0), "width must be positive, not 0"),
        ((1, 5, 4), "n_operands must be even, not 5"),
        (
            (1, 34, 11),
            "width must be at most 10 for 34 operands, whose sum has 16 bits, not 11",
        ),
        ((1, 2, 16), "width must be at most 15 for 2 operands, whose sum has 16 bits, not 16"),
    ],
)
def test_rejects_sizes(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        PackedSum(*sizes, Fabric.GENERIC)
    assert str(error.value) == message


def test_shapes() -> None:
    dut = PackedSum(7, 12, 11, Fabric.XCUP)
    assert (dut.o_width, dut.latency, dut.fabric) == (15, 7, Fabric.XCUP)


@pytest.mark.parametrize("sizes", [(1, 2, 1), (4, 6, 11), (3, 32, 11), (2, 16, 12)], ids=str)
def test_one_sum_per_cycle(sizes: tuple[int, int, int]) -> None:
    """Sums follow each other without a pause; each comes ``latency`` cycles after its first word,
    and not sooner."""
    n_rows, n_operands, width = sizes
    dut = PackedSum(*sizes, Fabric.GENERIC)
    rng = np.random.default_rng(n_operands)
    top = (1 << width) - 1
    words = rng.integers(0, top + 1, (24, n_operands, n_rows))
    words[1], words[2], words[3] = top, 0, top * (np.arange(n_rows) % 2)
    words[4], words[-1] = top * (np.arange(n_operands)[:, None] % 2), top
    sums: list[list[int]] = []

    async def bench(ctx: Any) -> None:
        for cycle in range(len(words) + dut.latency):
            # noise before the first words and behind the last
            late = cycle - np.arange(n_operands) // 2
            inside = (late >= 0) & (late < len(words))
            now = words[np.clip(late, 0, len(words) - 1), np.arange(n_operands)]
            noise = rng.integers(0, top + 1, now.shape)
            ctx.set(dut.i, np.where(inside[:, None], now, noise).tolist())
            sums.append([ctx.get(dut.o[row]) for row in range(n_rows)])
            await ctx.tick()

    simulate(dut, bench)
    assert sums[dut.latency :] == words.sum(1).tolist()


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "fabric", [pytest.param(Fabric.GENERIC, marks=pytest.mark.slow), Fabric.XCUP]
)
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 2, 1), marks=pytest.mark.slow),
        pytest.param((4, 6, 11), marks=pytest.mark.slow),
        (3, 32, 11),
        pytest.param((8, 4, 14), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_bench(fabric: Fabric, sizes: tuple[int, ...], tmp_path: Path) -> None:
    cell = SumCell(fabric=fabric, n_rows=sizes[0], n_operands=sizes[1], width=sizes[2])
    run_cocotb(cell.component(), "lutra_sim.bench.fabric.tb_sums", tmp_path, parameters=cell)

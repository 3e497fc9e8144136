"""LookupTables against arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.fabric import Fabric
from lutra_hw.fabric.tables import LookupTables
from lutra_sim.bench.fabric.cells import TablesCell
from lutra_sim.bench.simulate import run_cocotb, simulate


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 1), "n_tables must be positive, not 0"),
        ((1, 0, 1), "n_readers must be positive, not 0"),
        ((1, 1, -1), "width must be positive, not -1"),
    ],
)
def test_rejects_sizes(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        LookupTables(*sizes, Fabric.GENERIC)
    assert str(error.value) == message


def test_rejects_another_fabric() -> None:
    with pytest.raises(ValueError) as error:
        LookupTables(1, 1, 1, "ice40")  # pyright: ignore[reportArgumentType]
    assert str(error.value) == "'ice40' is not a valid Fabric"


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 11), (2, 9, 10)], ids=str)
def test_reads_what_was_written(sizes: tuple[int, int, int]) -> None:
    """Every entry by every reader, after and between writes, and zeros before."""
    n_tables, n_readers, width = sizes
    dut = LookupTables(*sizes, Fabric.GENERIC)
    rng = np.random.default_rng(width)
    tables = np.zeros((n_tables, 32), np.int64)
    shape = (n_tables, n_readers)

    async def bench(ctx: Any) -> None:
        async def write(entry: int, values: list[int]) -> None:
            ctx.set(dut.en, 1)
            ctx.set(dut.entry, entry)
            ctx.set(dut.values, values)
            ctx.set(dut.index, np.full(shape, entry).tolist())
            await ctx.tick()
            tables[:, entry] = values
            ctx.set(dut.en, 0)
            # what is not enabled is not written
            ctx.set(dut.values, [(1 << width) - 1 - value for value in values])

        async def read(index: Any) -> None:
            ctx.set(dut.index, index.tolist())
            await ctx.delay(1e-9)
            found = [[ctx.get(dut.o[t][n]) for n in range(n_readers)] for t in range(n_tables)]
            assert found == np.take_along_axis(tables, index, 1).tolist()

        await read(rng.integers(0, 32, shape))
        for entry in rng.permutation(32).tolist():
            await write(entry, rng.integers(0, 1 << width, n_tables).tolist())
            await read(rng.integers(0, 32, shape))
            await ctx.tick()
        for rotation in range(32):
            await read((np.arange(np.prod(shape)).reshape(shape) + rotation) % 32)
        for entry in (0, 31):
            await write(entry, [(1 << width) - 1] * n_tables)
            await read(np.full(shape, entry))

    simulate(dut, bench)


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "fabric", [pytest.param(Fabric.GENERIC, marks=pytest.mark.slow), Fabric.XCUP]
)
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 1, 1), marks=pytest.mark.slow),
        pytest.param((3, 5, 11), marks=pytest.mark.slow),
        (2, 8, 10),
        pytest.param((16, 16, 11), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_bench(fabric: Fabric, sizes: tuple[int, ...], tmp_path: Path) -> None:
    cell = TablesCell(fabric=fabric, n_tables=sizes[0], n_readers=sizes[1], width=sizes[2])
    run_cocotb(cell.component(), "lutra_sim.bench.fabric.tb_tables", tmp_path, parameters=cell)

"""cocotb bench of LookupTables."""

from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge
from numpy.typing import NDArray

from lutra_sim.bench.fabric.cells import TablesCell
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import pack, unpack

__all__ = ["extremes", "random_traffic"]

CELL = bench_params(TablesCell)
MEMBERS = CELL.component().signature.members
READERS = (CELL.n_tables, CELL.n_readers)
TOP = (1 << CELL.width) - 1


class Bench:
    """Writes and reads as the cell asks for, and compares what is read with arrays."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.rng = dut, np.random.default_rng(cocotb.RANDOM_SEED)
        self.tables = np.zeros((CELL.n_tables, 32), np.int64)
        dut.en.value = 0
        Clock(dut.clk, 10, unit="ns").start()

    async def write(self, entry: int, values: NDArray[np.int64]) -> None:
        """A cycle in which ``values`` are written, and every reader has the entry's number."""
        await RisingEdge(self.dut.clk)
        self.dut.en.value, self.dut.entry.value = 1, entry
        self.dut.values.value = pack(MEMBERS["values"].shape, values.tolist())
        self.dut.index.value = pack(MEMBERS["index"].shape, np.full(READERS, entry).tolist())
        self.tables[:, entry] = values

    async def read(self, index: NDArray[np.int64]) -> None:
        """A cycle in which nothing is written, whatever stands there to be."""
        await RisingEdge(self.dut.clk)
        self.dut.en.value, self.dut.entry.value = 0, int(self.rng.integers(32))
        noise = self.rng.integers(0, TOP + 1, CELL.n_tables)
        self.dut.values.value = pack(MEMBERS["values"].shape, noise.tolist())
        self.dut.index.value = pack(MEMBERS["index"].shape, index.tolist())
        await ReadOnly()
        found = unpack(MEMBERS["o"].shape, int(self.dut.o.value))
        assert found == np.take_along_axis(self.tables, index, 1).tolist()

    async def read_all(self) -> None:
        """Every entry by every reader, neighbours at different entries."""
        places = np.arange(np.prod(READERS)).reshape(READERS)
        for rotation in range(32):
            await self.read((places + rotation) % 32)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def extremes(dut: Any) -> None:
    """Zeros before the first write; then neighbours, entries and tables, at opposite ends."""
    bench = Bench(dut)
    await bench.read_all()
    tables = np.arange(CELL.n_tables)
    for turn in range(2):
        for entry in range(32):
            await bench.write(entry, TOP * ((tables + entry + turn) % 2))
        await bench.read_all()


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def random_traffic(dut: Any) -> None:
    """Whole loads as an engine makes them, then single writes between reads."""
    bench = Bench(dut)
    for _ in range(3):
        for entry in bench.rng.permutation(32).tolist():
            await bench.write(entry, bench.rng.integers(0, TOP + 1, CELL.n_tables))
        await bench.read_all()
    for _ in range(100):
        if bench.rng.random() < 0.5:
            values = bench.rng.integers(0, TOP + 1, CELL.n_tables)
            await bench.write(int(bench.rng.integers(32)), values)
        else:
            await bench.read(bench.rng.integers(0, 32, READERS))
    await bench.read_all()

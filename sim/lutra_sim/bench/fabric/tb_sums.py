"""cocotb bench of PackedSum."""

from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge
from numpy.typing import NDArray

from lutra_sim.bench.fabric.cells import SumCell
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import pack, unpack

__all__ = ["extremes", "random_words"]

CELL = bench_params(SumCell)
DUT = CELL.component()
I_SHAPE, O_SHAPE = (DUT.signature.members[name].shape for name in "io")
TOP = (1 << CELL.width) - 1
WORDS = (CELL.n_operands, CELL.n_rows)


async def check(dut: Any, words: NDArray[np.int64]) -> None:
    """Sums of ``words`` ``[n_sums, n_operands, n_rows]``, one in each cycle, when they are due.

    Noise stands before the first words of an operand and behind its last.
    """
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    Clock(dut.clk, 10, unit="ns").start()
    operands = np.arange(CELL.n_operands)
    for cycle in range(len(words) + DUT.latency):
        await RisingEdge(dut.clk)
        number = cycle - operands // 2
        inside = (number >= 0) & (number < len(words))
        now = words[np.clip(number, 0, len(words) - 1), operands]
        now = np.where(inside[:, None], now, rng.integers(0, TOP + 1, WORDS))
        dut.i.value = pack(I_SHAPE, now.tolist())
        await ReadOnly()
        if cycle >= DUT.latency:
            found = unpack(O_SHAPE, int(dut.o.value))
            assert found == words[cycle - DUT.latency].sum(0).tolist(), cycle


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def extremes(dut: Any) -> None:
    """The largest sums beside the smallest, in every row, one after another and side by side."""
    rows, operands = np.arange(CELL.n_rows), np.arange(CELL.n_operands)[:, None]
    patterns = [np.ones(WORDS, np.int64), np.zeros(WORDS, np.int64)]
    patterns += [(rows + turn) % 2 + 0 * operands for turn in range(2)]
    patterns += [(operands + turn) % 2 + 0 * rows for turn in range(2)]
    patterns += [(rows == row) + 0 * operands for row in rows]
    patterns += [(operands == operand) + 0 * rows for operand in operands.ravel()]
    await check(dut, TOP * np.stack([*patterns, *patterns[:2]]))


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def random_words(dut: Any) -> None:
    """Any words."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED + 1)
    await check(dut, rng.integers(0, TOP + 1, (200, *WORDS)))

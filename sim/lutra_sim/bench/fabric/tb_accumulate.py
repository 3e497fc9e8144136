"""cocotb bench of Accumulate."""

from itertools import product
from random import Random
from typing import Any

import cocotb
from cocotb.triggers import Timer

from lutra_sim.bench.fabric.cells import AccumulateCell
from lutra_sim.bench.simulate import bench_params

__all__ = ["extremes", "random_values", "steps"]

CELL = bench_params(AccumulateCell)
HALF, I_HALF = 1 << (CELL.width - 1), 1 << (CELL.i_width - 1)


async def check(dut: Any, acc: int, i: int, first: int, double: int) -> int:
    """Result for these inputs, which is what integers give."""
    dut.acc.value, dut.i.value = acc % (2 * HALF), i % (2 * I_HALF)
    dut.first.value, dut.double.value = first, double
    await Timer(1, "ns")
    total = (0 if first else 2 * acc if double else acc) + i
    expected = (total + HALF) % (2 * HALF) - HALF
    found = (int(dut.o.value) + HALF) % (2 * HALF) - HALF
    assert found == expected, (acc, i, first, double)
    return found


def _corners(half: int) -> set[int]:
    return {-half, -half // 2, -1, 0, half // 2, half - 1}


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def extremes(dut: Any) -> None:
    """Ends, middles and zero of both inputs, and every single bit of the accumulator."""
    accs = _corners(HALF) | {-(1 << k) for k in range(CELL.width)}
    for acc, i, first, double in product(accs, _corners(I_HALF), (0, 1), (0, 1)):
        await check(dut, acc, i, first, double)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def random_values(dut: Any) -> None:
    """Any inputs."""
    random = Random(cocotb.RANDOM_SEED)
    for _ in range(2000):
        acc, i = random.randrange(-HALF, HALF), random.randrange(-I_HALF, I_HALF)
        await check(dut, acc, i, random.getrandbits(1), random.getrandbits(1))


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def steps(dut: Any) -> None:
    """Each result is the next accumulator, until it has wrapped many times."""
    random = Random(cocotb.RANDOM_SEED)
    acc = 0
    for _ in range(500):
        i, double = random.randrange(-I_HALF, I_HALF), random.getrandbits(1)
        acc = await check(dut, acc, i, int(random.random() < 0.02), double)

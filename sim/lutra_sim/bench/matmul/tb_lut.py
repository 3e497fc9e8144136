"""cocotb bench of :class:`lutra_hw.matmul.lut.LutDatapath`."""

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from numpy.typing import NDArray

from lutra_golden.matmul.lut import LutParams, lut_table
from lutra_hw.matmul.lut import LutDatapath
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import pack, reset, unpack

__all__ = ["every_code", "extremes", "random_passes", "results_come_when_stated"]

PARAMS = bench_params(LutParams)
DATAPATH = LutDatapath(PARAMS)
LIMIT = 1 << (PARAMS.a_width - 1)


@dataclass(frozen=True)
class Pass:
    """Activations ``[depth_tile]`` of a set, and the codes ``[words, step_rows, n_tables]`` that
    use it, each word with its step."""

    a: NDArray[np.int64]
    steps: list[int]
    codes: NDArray[np.int64]

    def sums(self, word: int) -> list[int]:
        """The rows' sums of a word."""
        tables = lut_table(self.a.reshape(PARAMS.steps, PARAMS.n_tables, 4))[self.steps[word]]
        code = self.codes[word]
        entry = tables[np.arange(PARAMS.n_tables), code & 7]
        return np.where(code >> 3, -entry, entry).sum(axis=-1).tolist()


class Bench:
    """Drives passes through the datapath, one set ahead, and checks its sums in every cycle."""

    def __init__(self, dut: Any, *, p_stall: float = 0.0, p_wait: float = 0.0) -> None:
        self.dut, self.random = dut, Random(cocotb.RANDOM_SEED)
        self.p_stall, self.p_wait = p_stall, p_wait
        self._i = DATAPATH.signature.members["i"].shape
        self._o = DATAPATH.signature.members["o"].shape
        dut.start.value = 0
        dut.en.value = 0
        dut.i.value = 0

    async def run(self, passes: list[Pass]) -> None:
        """Start every set as soon as it is free, and send its words as soon as they may come."""
        dut = self.dut
        await reset(dut)
        under_way: deque[tuple[int, list[int]]] = deque()  # cycle of a word, and its sums
        started: list[int] = []  # cycle of each start
        current, word, cycle = 0, 0, 0
        shown: list[int] | None = None
        while current < len(passes) or under_way:
            await RisingEdge(dut.clk)
            if started and started[-1] == cycle - 1:
                self.show(passes[len(started) - 1].a)

            # of two sets, one is used and one prepared
            dut.start.value = 0
            spaced = not started or cycle - started[-1] >= DATAPATH.prepare_cycles
            ends = current < len(started) and word == len(passes[current].steps)
            if ends:
                current, word = current + 1, 0
            free = len(started) < min(len(passes), current + 2)
            if spaced and free and self.random.random() >= self.p_wait:
                dut.start.value, dut.start_set.value = 1, len(started) % 2
                started.append(cycle)

            ready = current < len(started) and cycle - started[current] >= DATAPATH.prepare_cycles
            if ready and self.random.random() >= self.p_stall:
                use = passes[current]
                self.send(1, current % 2, use.steps[word], use.codes[word])
                under_way.append((cycle, use.sums(word)))
                word += 1
            else:
                noise = self.random.randrange
                shape = (PARAMS.step_rows, PARAMS.n_tables)
                self.send(0, noise(2), noise(PARAMS.steps), np.full(shape, noise(16)))

            await ReadOnly()
            if under_way and cycle - under_way[0][0] == DATAPATH.latency:
                shown = under_way.popleft()[1]
            if shown is not None:
                assert self.sums() == shown, (cycle, current)
            cycle += 1

    def show(self, a: NDArray[np.int64]) -> None:
        """The activations of a depth tile, from now on."""
        self.dut.i.value = pack(self._i, a)

    def send(self, en: int, select: int, step: int, codes: NDArray[np.int64]) -> None:
        """Drive a word; without ``en`` it is none."""
        dut = self.dut
        dut.en.value, dut.set.value = en, select
        if PARAMS.steps > 1:
            dut.step.value = step
        dut.digits.value = sum(int(code) << 4 * i for i, code in enumerate(codes.ravel()))

    def sums(self) -> list[int]:
        """The current sums of the rows."""
        negate = int(self.dut.negate.value)
        offset = 1 << (DATAPATH.o_width - 1)
        values = unpack(self._o, int(self.dut.o.value))
        return [(offset - v) if negate >> n & 1 else v - offset for n, v in enumerate(values)]


def _random_pass(rng: np.random.Generator, n_words: int) -> Pass:
    """Activations of which a quarter are extreme or zero."""
    a = rng.integers(-LIMIT, LIMIT, PARAMS.depth_tile)
    corner = rng.choice([-LIMIT, 0, LIMIT - 1], PARAMS.depth_tile)
    return Pass(
        np.where(rng.random(PARAMS.depth_tile) < 0.25, corner, a),
        rng.integers(0, PARAMS.steps, n_words).tolist(),
        rng.integers(0, 16, (n_words, PARAMS.step_rows, PARAMS.n_tables)),
    )


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def extremes(dut: Any) -> None:
    """The largest sums of either sign, alternating signs, and zero; with all signs deferred."""
    signs = np.where(np.arange(PARAMS.depth_tile) % 2, 1, -1)
    values = [np.full(PARAMS.depth_tile, value) for value in (-LIMIT, LIMIT - 1, 0, -1)]
    values += [np.clip(signs * LIMIT, -LIMIT, LIMIT - 1)]
    steps = [step for step in range(PARAMS.steps) for _ in range(16)]
    codes = np.tile(np.arange(16), PARAMS.steps)[:, None, None]
    codes = codes.repeat(PARAMS.step_rows, axis=1).repeat(PARAMS.n_tables, axis=2)
    await Bench(dut).run([Pass(a, steps, codes) for a in values])


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def every_code(dut: Any) -> None:
    """Each code in each table of each row, in each step of both sets, beside random others."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    passes: list[Pass] = []
    for _ in range(2):
        steps = [step for step in range(PARAMS.steps) for _ in range(16)]
        shape = (PARAMS.steps, 16, PARAMS.step_rows, PARAMS.n_tables)
        codes = rng.permuted(np.broadcast_to(np.arange(16)[:, None, None], shape), axis=1)
        a = rng.integers(-LIMIT, LIMIT, PARAMS.depth_tile)
        passes.append(Pass(a, steps, codes.reshape(-1, *shape[2:])))
    await Bench(dut).run(passes)


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.3, 0.9], p_wait=[0.0, 0.7])
async def random_passes(dut: Any, p_stall: float, p_wait: float) -> None:
    """Passes shorter and longer than the preparation of the next, without and with stalls."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    lengths = [1, 1, 2, 1, 30, 3, 1, 17, DATAPATH.prepare_cycles, DATAPATH.prepare_cycles + 1, 1]
    passes = [_random_pass(rng, length) for length in lengths]
    await Bench(dut, p_stall=p_stall, p_wait=p_wait).run(passes)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def results_come_when_stated(dut: Any) -> None:
    """Two words, some cycles apart: each one's sums come ``latency`` cycles later, no sooner."""
    bench = Bench(dut)
    await reset(dut)
    dut.start.value, dut.start_set.value = 1, 0
    await RisingEdge(dut.clk)
    dut.start.value = 0
    bench.show(np.ones(PARAMS.depth_tile, np.int64))
    await ClockCycles(dut.clk, DATAPATH.prepare_cycles - 1)

    all_added = np.full((PARAMS.step_rows, PARAMS.n_tables), 7)
    for codes, total in ((all_added, PARAMS.step_depth), (all_added ^ 8, -PARAMS.step_depth)):
        seen: list[bool] = []
        bench.send(1, 0, 0, codes)
        for _ in range(DATAPATH.latency + 3):
            await ReadOnly()
            seen.append(bench.sums() == [total] * PARAMS.step_rows)
            await RisingEdge(dut.clk)
            bench.send(0, 0, 0, codes)
        assert seen == [False] * DATAPATH.latency + [True] * 3

"""cocotb bench of the datapaths of engines with grouped weights."""

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge
from numpy.typing import NDArray

from lutra_sim.bench.matmul.dot import DotShape
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import pack, reset, unpack

__all__ = ["every_field", "extremes", "random_passes", "results_come_when_stated"]


DATAPATH = bench_params(DotShape).datapath()
PARAMS = DATAPATH.params
LIMIT = 1 << (PARAMS.a_width - 1)
WIDTH = PARAMS.field_width
TOP = (1 << WIDTH) - 1
N_FIELDS = PARAMS.digit_bits // (PARAMS.step_rows * WIDTH)
ROWS = (PARAMS.step_rows, N_FIELDS)


@dataclass(frozen=True)
class Pass:
    """Activations ``[depth_tile]`` of a set, and the fields ``[words, step_rows, n_fields]`` that
    use it, each word with its step."""

    a: NDArray[np.int64]
    steps: list[int]
    fields: NDArray[np.int64]

    def sums(self, word: int) -> list[int]:
        """The rows' sums of a word."""
        a = self.a.reshape(PARAMS.steps, 1, PARAMS.step_depth)[self.steps[word]]
        return PARAMS.step_sums(a, self.fields[word])[0].tolist()


class Bench:
    """Drives passes through the datapath, one set ahead, and checks its sums in every cycle."""

    def __init__(self, dut: Any, *, p_stall: float = 0.0, p_wait: float = 0.0) -> None:
        self.dut, self.random = dut, Random(cocotb.RANDOM_SEED)
        self.rng = np.random.default_rng(cocotb.RANDOM_SEED)
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
            if current < len(started) and word == len(passes[current].steps):
                current, word = current + 1, 0
            free = len(started) < min(len(passes), current + 2)
            if spaced and free and self.random.random() >= self.p_wait:
                dut.start.value, dut.start_set.value = 1, len(started) % 2
                started.append(cycle)

            ready = current < len(started) and cycle - started[current] >= DATAPATH.prepare_cycles
            if ready and self.random.random() >= self.p_stall:
                use = passes[current]
                self.send(1, current % 2, use.steps[word], use.fields[word])
                under_way.append((cycle, use.sums(word)))
                word += 1
            else:
                noise = self.random.randrange
                fields = self.rng.integers(0, TOP + 1, ROWS)
                self.send(0, noise(2), noise(PARAMS.steps), fields)

            await ReadOnly()
            if under_way and cycle - under_way[0][0] == DATAPATH.latency:
                shown = under_way.popleft()[1]
            if shown is not None:
                assert self.sums() == shown, (cycle, current)
            cycle += 1

    def show(self, a: NDArray[np.int64]) -> None:
        """Activations of a set."""
        self.dut.i.value = pack(self._i, a)

    def send(self, en: int, select: int, step: int, fields: NDArray[np.int64]) -> None:
        """A word, or noise."""
        dut = self.dut
        dut.en.value, dut.set.value = en, select
        if PARAMS.steps > 1:
            dut.step.value = step
        flat = enumerate(fields.ravel().tolist())
        dut.digits.value = sum(field << WIDTH * i for i, field in flat)

    def sums(self) -> list[int]:
        """The sums on ``o``."""
        negate, offset = int(self.dut.negate.value), 1 << (DATAPATH.o_width - 1)
        assert PARAMS.symmetric or negate == 0
        values = [value - offset for value in unpack(self._o, int(self.dut.o.value))]
        return [-value if negate >> row & 1 else value for row, value in enumerate(values)]


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def extremes(dut: Any) -> None:
    """The largest sums of either sign, alternating signs, and zero."""
    signs = np.where(np.arange(PARAMS.depth_tile) % 2, 1, -1)
    values = [np.full(PARAMS.depth_tile, value) for value in (-LIMIT, LIMIT - 1, 0, -1)]
    values += [np.clip(signs * LIMIT, -LIMIT, LIMIT - 1)]
    top = np.full(ROWS, TOP)
    column, row = np.arange(N_FIELDS) % 2, np.arange(PARAMS.step_rows)[:, None] % 2
    # neighbours of a row, and rows that are neighbours, at opposite ends; then all fields equal
    words = [top * column, top * (1 - column), top * row, top * (1 - row)]
    words += [np.full(ROWS, value) for value in np.unique(np.linspace(0, TOP, 16, dtype=np.int64))]
    steps = [step for step in range(PARAMS.steps) for _ in words]
    fields = np.tile(np.stack(words), (PARAMS.steps, 1, 1))
    await Bench(dut).run([Pass(a, steps, fields) for a in values])


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def every_field(dut: Any) -> None:
    """Each field in each column of each row, in each step of both sets, beside random others."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    passes: list[Pass] = []
    for _ in range(2):
        steps = [step for step in range(PARAMS.steps) for _ in range(TOP + 1)]
        fields = np.arange(TOP + 1)[:, None, None]
        fields = np.broadcast_to(fields, (PARAMS.steps, TOP + 1, *ROWS))
        a = rng.integers(-LIMIT, LIMIT, PARAMS.depth_tile)
        passes.append(Pass(a, steps, rng.permuted(fields, axis=1).reshape(-1, *ROWS)))
    await Bench(dut).run(passes)


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.3, 0.9], p_wait=[0.0, 0.7])
async def random_passes(dut: Any, p_stall: float, p_wait: float) -> None:
    """Passes shorter and longer than the preparation of the next and than the latency, without
    and with stalls; a quarter of the activations are extreme or zero."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    passes: list[Pass] = []
    edges = [n + more for n in (DATAPATH.latency, DATAPATH.prepare_cycles) for more in (0, 1)]
    for n_words in (1, 1, 2, 1, 30, 3, 1, 17, *edges, 1):
        a = rng.integers(-LIMIT, LIMIT, PARAMS.depth_tile)
        corner = rng.choice([-LIMIT, 0, LIMIT - 1], PARAMS.depth_tile)
        a = np.where(rng.random(PARAMS.depth_tile) < 0.25, corner, a)
        steps = rng.integers(0, PARAMS.steps, n_words).tolist()
        passes.append(Pass(a, steps, rng.integers(0, TOP + 1, (n_words, *ROWS))))
    await Bench(dut, p_stall=p_stall, p_wait=p_wait).run(passes)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def results_come_when_stated(dut: Any) -> None:
    """One word, as soon as its set is prepared: its sums come ``latency`` cycles later, neither
    sooner nor later, and stay; the next word's too."""
    bench = Bench(dut)
    await reset(dut)
    dut.start.value, dut.start_set.value = 1, 1
    a = np.full((1, PARAMS.step_depth), -1)
    for cycle in range(DATAPATH.prepare_cycles):
        await RisingEdge(dut.clk)
        dut.start.value = 0
        if cycle == 0:
            bench.show(np.full(PARAMS.depth_tile, -1))
    seen: list[bool] = []
    # of the lut engine, the sum of all activations and its negative
    for field, n_cycles in ((TOP // 2, DATAPATH.latency + 4), (TOP, DATAPATH.latency + 1)):
        fields = np.full(ROWS, field)
        sums = PARAMS.step_sums(a, fields)[0].tolist()
        bench.send(1, 1, PARAMS.steps - 1, fields)
        for _ in range(n_cycles):
            await ReadOnly()
            seen.append(bench.sums() == sums)
            await RisingEdge(dut.clk)
            bench.send(0, 0, 0, fields)
    first = [False] * DATAPATH.latency + [True] * 4
    assert seen == first + [False] * DATAPATH.latency + [True]

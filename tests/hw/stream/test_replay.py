"""ReplayBuffer against a queue."""

from collections import deque
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_hw.stream.replay import ReplayBuffer
from lutra_sim.bench.simulate import simulate, stream_put


@pytest.mark.parametrize(
    ("width", "depth", "message"),
    [
        (0, 8, "width must be positive, not 0"),
        (8, 12, "depth must be a power of two from 2 on, not 12"),
        (8, 1, "depth must be a power of two from 2 on, not 1"),
    ],
)
def test_rejects_values(width: int, depth: int, message: str) -> None:
    with pytest.raises(ValueError) as error:
        ReplayBuffer(width, depth)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("late_width", "lag", "message"),
    [
        (8, 1, "late_width must be in 0..7, not 8"),
        (-1, 1, "late_width must be in 0..7, not -1"),
        (2, -1, "lag must not be negative, not -1"),
    ],
)
def test_rejects_late_parts(late_width: int, lag: int, message: str) -> None:
    with pytest.raises(ValueError) as error:
        ReplayBuffer(8, 4, late_width=late_width, lag=lag)
    assert str(error.value) == message


def _passes(rng: Random, depth: int) -> list[tuple[int, int]]:
    """Words and number of times that each group of words is taken."""
    passes = [(1, 1), (1, 3), (depth, 2), (3 * depth, 1), (depth, 3)]
    return passes + [(rng.randrange(1, depth + 1), rng.randrange(1, 4)) for _ in range(20)]


@pytest.mark.parametrize("depth", [2, 16])
@pytest.mark.parametrize("lag", [None, 0, 1, 5])
@pytest.mark.parametrize(("p_put", "p_take"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.3), (0.5, 0.5)])
def test_replays(depth: int, lag: int | None, p_put: float, p_take: float) -> None:
    """Words, and late parts of some of them, which stay until the next."""
    rng = Random(depth)
    passes = _passes(rng, depth)
    words = [rng.randrange(1 << 12) for _ in range(sum(n for n, _ in passes))]
    expected, source = [], deque(words)
    for n, times in passes:
        group = [source.popleft() for _ in range(n)]
        expected += group * times
    late_width = 0 if lag is None else 5
    dut, results = ReplayBuffer(12, depth, late_width=late_width, lag=lag or 0), []
    lates: list[int] = []
    marks = [rng.random() < 0.5 for _ in expected]

    async def put(ctx: Any) -> None:
        for word in words:
            stall = 0
            while rng.random() >= p_put:
                stall += 1
            await stream_put(ctx, dut.i, word, stall=stall)

    async def take(ctx: Any) -> None:
        taken, marked = deque([False]), deque([False] * (1 + (lag or 0)))
        number = 0
        for n, times in passes:
            for replay in range(times):
                ctx.set(dut.keep, replay + 1 < times)
                index = 0
                while index < n:
                    take = bool(ctx.get(dut.available)) and rng.random() < p_take
                    ctx.set(dut.end, index + 1 == n)
                    ctx.set(dut.take, take)
                    ctx.set(dut.mark, marks[number])
                    await cycle(ctx, taken, take, marked, take and marks[number])
                    index, number = index + take, number + take
        ctx.set(dut.take, 0)
        for _ in range(2 + (lag or 0)):
            await cycle(ctx, taken, False, marked, False)

    async def cycle(
        ctx: Any, taken: deque[bool], take: bool, marked: deque[bool], mark: bool
    ) -> None:
        """Tick; the word that was taken two ticks ago is there."""
        await ctx.tick()
        taken.append(take)
        marked.append(mark)
        if taken.popleft():
            results.append(ctx.get(dut.o))
        if marked.popleft():
            lates.append(ctx.get(dut.late))

    simulate(dut, put, take)
    split = 12 - late_width
    assert results == [word & ((1 << split) - 1) for word in expected]
    late_words = [word >> split for word, mark in zip(expected, marks, strict=True) if mark]
    assert lates == late_words


def test_full_rate_and_capacity() -> None:
    dut, accepted = ReplayBuffer(8, 4), []

    async def bench(ctx: Any) -> None:
        ctx.set(dut.i.valid, 1)
        for cycle in range(8):
            if ctx.get(dut.i.ready):
                accepted.append(cycle)
            await ctx.tick()
        assert accepted == [0, 1, 2, 3]
        # a word is taken in every cycle, and one accepted for it in the next
        ctx.set(dut.take, 1)
        ctx.set(dut.end, 1)
        for _ in range(8):
            assert ctx.get(dut.available)
            await ctx.tick()
            assert ctx.get(dut.i.ready)

    simulate(dut, bench)

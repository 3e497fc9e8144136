"""ReplayBuffer against a queue."""

from collections import deque
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra.hw.stream.replay import ReplayBuffer
from lutra.sim.bench.simulate import simulate, stream_put


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


def _passes(rng: Random, depth: int) -> list[tuple[int, int]]:
    """Words and number of times that each group of words is taken."""
    passes = [(1, 1), (1, 3), (depth, 2), (3 * depth, 1), (depth, 3)]
    return passes + [(rng.randrange(1, depth + 1), rng.randrange(1, 4)) for _ in range(20)]


@pytest.mark.parametrize("depth", [2, 16])
@pytest.mark.parametrize(("p_put", "p_take"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.3), (0.5, 0.5)])
def test_replays(depth: int, p_put: float, p_take: float) -> None:
    rng = Random(depth)
    passes = _passes(rng, depth)
    words = [rng.randrange(1 << 12) for _ in range(sum(n for n, _ in passes))]
    expected, source = [], deque(words)
    for n, times in passes:
        group = [source.popleft() for _ in range(n)]
        expected += group * times
    dut, results = ReplayBuffer(12, depth), []

    async def put(ctx: Any) -> None:
        for word in words:
            stall = 0
            while rng.random() >= p_put:
                stall += 1
            await stream_put(ctx, dut.i, word, stall=stall)

    async def take(ctx: Any) -> None:
        taken = deque([False, False])
        for n, times in passes:
            for replay in range(times):
                ctx.set(dut.keep, replay + 1 < times)
                index = 0
                while index < n:
                    take = bool(ctx.get(dut.available)) and rng.random() < p_take
                    ctx.set(dut.end, index + 1 == n)
                    ctx.set(dut.take, take)
                    index += take
                    await cycle(ctx, taken, take)
        ctx.set(dut.take, 0)
        await cycle(ctx, taken, False)
        await cycle(ctx, taken, False)

    async def cycle(ctx: Any, taken: deque[bool], take: bool) -> None:
        """Tick; the word that was taken two ticks ago is there."""
        await ctx.tick()
        taken.append(take)
        taken.popleft()
        if taken[0]:
            results.append(ctx.get(dut.o))

    simulate(dut, put, take)
    assert results == expected


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

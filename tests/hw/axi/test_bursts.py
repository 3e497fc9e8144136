"""BurstSplitter against a plain loop; the reader's and the writer's benches test it at work."""

from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_hw.axi.bursts import BurstSplitter
from lutra_sim.bench.simulate import simulate, stream_put


def _bursts(address: int, beats: int, n_bytes: int, limit: int) -> list[tuple[int, int]]:
    """Address and beats of every burst, beat by beat."""
    bursts: list[tuple[int, int]] = []
    for beat in range(address // n_bytes, address // n_bytes + beats):
        if bursts and beat % limit:
            bursts[-1] = (bursts[-1][0], bursts[-1][1] + 1)
        else:
            bursts.append((beat, 1))
    return bursts


@pytest.mark.parametrize(("data_width", "limit"), [(512, 16), (1024, 32), (32, 1), (64, 256)])
@pytest.mark.parametrize("p_wait", [0.0, 0.5])
def test_splits(data_width: int, limit: int, p_wait: float) -> None:
    rng, n_bytes = Random(1), data_width // 8
    commands = [(4096 - n_bytes, 2), (0, limit), (0, 0), ((1 << 40) - n_bytes, 1)]
    commands += [(rng.randrange(1 << 20) * n_bytes, rng.randrange(1, 200)) for _ in range(20)]
    expected = [b for address, beats in commands for b in _bursts(address, beats, n_bytes, limit)]
    dut, seen, waits = BurstSplitter(data_width, 40, limit), list[tuple[int, int]](), [0]

    async def feed(ctx: Any) -> None:
        for address, beats in commands:
            await stream_put(ctx, dut.cmd, {"addr": address, "beats": beats})

    async def check(ctx: Any) -> None:
        while len(seen) < len(expected):
            go = rng.random() >= p_wait
            ctx.set(dut.next, go and ctx.get(dut.valid))
            if ctx.get(dut.next):
                seen.append((ctx.get(dut.beat_addr), ctx.get(dut.length)))
            waits[0] += go and not ctx.get(dut.next)
            await ctx.tick()
        assert not ctx.get(dut.valid)

    simulate(dut, feed, check)
    assert seen == expected
    for beat, length in seen:
        assert beat * n_bytes // 4096 == ((beat + length) * n_bytes - 1) // 4096
    if p_wait == 0:
        # one cycle before the first burst, and one for each command
        assert waits[0] <= len(commands) + 2

"""Checksum of words that come with pauses, against its golden model."""

from random import Random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.control.checksum import checksum
from lutra_hw.control.checksum import Checksum
from lutra_sim.bench.simulate import simulate


@pytest.mark.parametrize("p_stall", [0.0, 0.5])
def test_sums_as_golden_does(p_stall: float) -> None:
    dut, rng = Checksum(), Random(1)
    words = [*[0xFFFFFFFF] * 6, 0, 1, *(rng.getrandbits(32) for _ in range(200))]

    async def drive(ctx: Any) -> None:
        for number, word in enumerate(words):
            while rng.random() < p_stall:
                ctx.set(dut.word, rng.getrandbits(32))
                await ctx.tick()
            ctx.set(dut.en, 1)
            ctx.set(dut.word, word)
            await ctx.tick()
            ctx.set(dut.en, 0)
            if number % 2:
                found = 0
                for half in range(2):
                    found |= ctx.get(dut.half) << 32 * half
                    ctx.set(dut.swap, 1)
                    await ctx.tick()
                    ctx.set(dut.swap, 0)
                data = np.array(words[: number + 1], "<u4").view(np.uint8)
                assert found == checksum(data), number

    simulate(dut, drive)

"""Shifts of groups of activations against the golden exponents."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.arith.quantize import ActivationGroups, group_exponents
from lutra_golden.matmul.engine import LANES
from lutra_golden.matmul.mac import MacParams
from lutra_hw.vector.group_shifts import GroupShifts
from lutra_sim.bench.simulate import simulate

WIDTH, N_PEAKS = 12, 2
CASES = {
    "32": (ActivationGroups(size=32), 4),
    "128-short": (ActivationGroups(size=128, shift_max=3), 8),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("short", [0, 1])
def test_shifts(name: str, short: int) -> None:
    """Tokens of several lengths, of one word too, one right behind the other: powers of two of the
    largest and their neighbours, zeros, then random magnitudes."""
    groups, n_words_short = CASES[name]
    params = MacParams(depth_tile=32, act_tiles=8, a_groups=groups, sum_width=43)
    dut = GroupShifts(params, n_words_short, N_PEAKS, WIDTH)
    rng = np.random.default_rng(short)
    n_words, total = n_words_short if short else groups.size // LANES, 8 * 32 // LANES
    lengths = [total, total - 1, 1, n_words, n_words + 1, *[total] * 8]
    results: list[int] = []
    expected: list[int] = []

    async def bench(ctx: Any) -> None:
        ctx.set(dut.short, short)
        for number, length in enumerate(lengths):
            peaks = rng.integers(0, 1 << WIDTH, (length, N_PEAKS))
            peaks >>= rng.integers(0, WIDTH, (length, 1))
            if number % 2:
                # every group's largest is about the token's by a power of two
                peaks[:] = 0
                peaks[0, 0] = largest = int(rng.integers(1 << (WIDTH - 2), 1 << WIDTH))
                for first in range(n_words, length, n_words):
                    at = first + int(rng.integers(min(n_words, length - first)))
                    shifted = largest >> int(rng.integers(0, groups.shift_max + 2))
                    peaks[at, rng.integers(N_PEAKS)] = min(shifted + int(rng.integers(2)), largest)
            y_max = peaks.max()
            starts = np.arange(0, length, n_words)
            largest_of = np.maximum.reduceat(peaks.max(axis=1), starts)[None]
            exponents = group_exponents(largest_of, np.array([y_max]), groups.shift_max)
            shifts = groups.shift_max - exponents[0].repeat(n_words)[:length]
            expected.extend(shifts.tolist())
            for word in range(length):
                ctx.set(dut.measure, 1)
                ctx.set(dut.first, word == 0)
                ctx.set(dut.last, word == length - 1)
                ctx.set(dut.peaks, peaks[word].tolist())
                await ctx.tick()
            ctx.set(dut.measure, 0)
            await ctx.tick()
            ctx.set(dut.y_max, int(y_max))
            for word in range(length + dut.latency):
                ctx.set(dut.quantize, word < length)
                ctx.set(dut.quantize_first, word == 0)
                ctx.set(dut.quantize_last, word == length - 1)
                if word >= dut.latency:
                    results.append(ctx.get(dut.shift))
                await ctx.tick()

    simulate(dut, bench)
    assert results == expected
    assert set(expected) == set(range(groups.shift_max + 1))

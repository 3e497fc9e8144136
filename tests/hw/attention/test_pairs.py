"""PairIssuer against the golden order."""

import dataclasses
from collections import deque
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.attention.pairs import fetches, pairs
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_hw.attention.pairs import BEAT_SLOTS, PairIssuer
from lutra_sim.bench.simulate import simulate, stream_put

CONFIG = NANO.with_(
    name="small",
    head_dim=32,
    n_heads=4,
    n_kv_heads=2,
    pass_tokens=4,
    max_context=32,
)
FOUR_BITS = CONFIG.with_(name="small-kv4", key_width=4, value_width=4)
PARTS = [
    config.with_(name=f"{config.name}-{n}-cycles", pair_cycles=n)
    for config, n in ((CONFIG, 2), (FOUR_BITS, 4))
]
DRAIN, IN_USE, END = 13, 8, 30
# the tile sizes, no tokens, and more beats than slots; then windows, down to the query itself
COMMANDS = [(0, 1, 0), (0, 4, 0), (7, 0, 0), (5, 3, 0), (31, 1, 0), (28, 4, 0)]
COMMANDS += [(28, 4, 1), (31, 1, 1), (7, 0, 5), (0, 4, 3), (2, 4, 4), (28, 4, 30), (5, 3, 65535)]
# with two positions to a beat: first and last position even and odd
COMMANDS += [(9, 1, 4), (9, 2, 4), (10, 1, 4), (10, 2, 4), (9, 1, 1), (10, 1, 1), (10, 1, 2)]


@dataclasses.dataclass
class State:
    """State of one command in progress."""

    owed: int = 0  # beats that memory has yet to deliver
    since_key: int = 0  # cycles without a pair of pass K
    fetched: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    issued: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    rows: list[int] = dataclasses.field(default_factory=list)
    slots: deque[int] = dataclasses.field(default_factory=deque)  # of beats here, oldest first
    releases: deque[int] = dataclasses.field(default_factory=lambda: deque([0] * IN_USE))
    ends: deque[int] = dataclasses.field(default_factory=lambda: deque([0] * END))


def _rows(config: AcceleratorConfig, addr: int, beats: int) -> range:
    """Rows of the scales' memory that a fetch fills."""
    first = (addr - 0x4000 - config.kv_s_offset) // config.word_bytes
    return range(first, first + beats)


@pytest.mark.parametrize("p_stall", [0.0, 0.5])
@pytest.mark.parametrize("config", [CONFIG, FOUR_BITS, *PARTS], ids=lambda config: config.name)
def test_order(config: AcceleratorConfig, p_stall: float) -> None:
    """Fetches and pairs come as in the model; a slot is never written while it is in use."""
    rng = Random(1)
    dut = PairIssuer(config, DRAIN)

    async def step(ctx: Any, state: State) -> None:
        """One cycle as memory, and as the pipeline behind the issuer."""
        ctx.set(dut.rd_valid, state.owed > 0 and rng.random() >= p_stall)
        ctx.set(dut.rd_cmd.ready, rng.random() >= p_stall)
        release, finished = state.releases.popleft(), state.ends.popleft()
        ctx.set(dut.release, release)
        ctx.set(dut.finished, finished)
        valid, values = ctx.get(dut.pair.valid), ctx.get(dut.pair.values)
        last, final = valid & ctx.get(dut.pair.last), valid & ctx.get(dut.pair.final)
        if valid:
            names = ("group", "values", "position", "token")
            part = ctx.get(dut.pair.part) if config.attention.pair_cycles > 1 else 0
            state.issued.append((*(ctx.get(getattr(dut.pair, name)) for name in names), part))
            assert ctx.get(dut.pair.slot) == state.slots[release + sum(state.releases)]
            # of a token, in this pass
            group, now, _, token, part = state.issued[-1]
            same = [
                pair for pair in state.issued if (*pair[:2], *pair[3:]) == (group, now, token, part)
            ]
            assert ctx.get(dut.pair.first) == (len(same) == 1)
            assert not values or state.since_key >= DRAIN
            assert not values or not any(state.ends)
        state.since_key = 0 if valid and not values else state.since_key + 1
        state.releases.append(last)
        state.ends.append(final & values)
        if release:
            state.slots.popleft()
        if ctx.get(dut.rd_valid) and ctx.get(dut.rd_ready):
            state.owed -= 1
            if ctx.get(dut.scale_en):
                state.rows.append(ctx.get(dut.scale_row))
            else:
                assert ctx.get(dut.beat_en)
                state.slots.append(ctx.get(dut.beat_slot))
                assert len(set(state.slots)) == len(state.slots) <= BEAT_SLOTS
        if ctx.get(dut.rd_cmd.valid) and ctx.get(dut.rd_cmd.ready):
            state.fetched.append((ctx.get(dut.rd_cmd.p.addr), ctx.get(dut.rd_cmd.p.beats)))
            state.owed += state.fetched[-1][1]
        await ctx.tick()
        ctx.set(dut.finished, 0)

    async def bench(ctx: Any) -> None:
        for position, token_count, window in COMMANDS:
            state = State()
            fields = {"kv_addr": 0x4000, "position": position, "token_count": token_count}
            await stream_put(ctx, dut.cmd, {**fields, "frac": 9, "window": window})
            while not ctx.get(dut.done):
                assert ctx.get(dut.busy)
                await step(ctx, state)
            expected = list(fetches(config, 0x4000, position, token_count, window))
            assert state.fetched == expected
            assert state.issued == list(pairs(config, position, token_count, window))
            assert state.rows == list(_rows(config, *expected[0]) if expected else ())
            assert state.owed == 0 and not state.slots and not ctx.get(dut.busy)
            if expected:
                assert (ctx.get(dut.frac), ctx.get(dut.token_last)) == (9, token_count - 1)

    simulate(dut, bench)

"""ChunkWalker against the golden model."""

from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.control.chunks import Chunk, ChunkEntry, chunks
from lutra_golden.core.configs import NANO
from lutra_hw.control.chunks import ChunkWalker
from lutra_sim.bench.control.chunks import entry_fields
from lutra_sim.bench.simulate import simulate

TABLES = [
    [ChunkEntry(5, 0, 0x7000)],
    [ChunkEntry(65535, 1, (1 << 40) - 4096), ChunkEntry(0, 0, 0)],
    [ChunkEntry(i, 1, 4096 * i) for i in range(8)],
    [ChunkEntry(9, 255, 4096), ChunkEntry(1, 1, 0)],
]


@pytest.mark.parametrize("p_wait", [0.0, 0.5])
@pytest.mark.parametrize("pass_tokens", [8, 5])
def test_walks_again_and_again(pass_tokens: int, p_wait: float) -> None:
    """The chunks of every table, for tiles of every size; each 2 cycles after the one before."""
    rng = Random(1)
    dut = ChunkWalker(NANO.with_(pass_tokens=pass_tokens))
    tables = [table[:pass_tokens] for table in TABLES]
    tables += [
        [
            ChunkEntry(rng.randrange(1 << 16), rng.randrange(4), rng.randrange(1 << 28) << 12)
            for _ in range(pass_tokens)
        ]
        for _ in range(20)
    ]

    async def walk(ctx: Any) -> None:
        for table in tables:
            # what no chunk takes is never used
            padded = [*table, *[ChunkEntry(7, 3, 0x9000)] * (pass_tokens - len(table))]
            for n_tokens in range(1, pass_tokens + 1):
                expected = list(chunks(padded, n_tokens))
                ctx.set(dut.n_tokens, n_tokens)
                found, waited = list[Chunk](), 0
                for cycle in range(1000):
                    entry = ctx.get(dut.table.addr.entry)
                    valid = ctx.get(dut.valid) and cycle > 1
                    step = valid and rng.random() >= p_wait
                    ctx.set(dut.step, step)
                    if step:
                        first, count = ctx.get(dut.chunk.first), ctx.get(dut.chunk.count)
                        place = ctx.get(dut.chunk.position), ctx.get(dut.chunk.kv_base)
                        found.append(Chunk(slice(first, first + count), *place))
                        assert ctx.get(dut.chunk.last) == (first + count == n_tokens)
                        assert p_wait or cycle == 2 * len(found)
                    elif found and not valid:
                        waited += 1
                    await ctx.tick()
                    ctx.set(dut.table.data, entry_fields(padded[entry]))
                    if found and found[-1].tokens.stop == n_tokens:
                        break
                ctx.set(dut.step, 0)
                assert found == expected
                assert waited == len(found) - 1

    simulate(dut, walk)

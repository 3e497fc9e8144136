"""RunCheck against its golden model, at the edge of every rule and at random."""

from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.control.check import PROGRAM_WORDS_MAX, alignments, check_run
from lutra_golden.control.chunks import ChunkEntry, chunks
from lutra_golden.control.descriptor import Descriptor, check_descriptor
from lutra_golden.control.registers import CONTEXT, REGISTERS, ErrorCode
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import two_ports
from lutra_hw.control.check import RunCheck
from lutra_sim.bench.control.chunks import entry_fields
from lutra_sim.bench.simulate import simulate

WIDE = NANO.with_(
    pass_tokens=3, max_context=512, head_dim=32, ports=two_ports(weights=64, data=1024)
)


Case = tuple[dict[str, int], list[ChunkEntry]]


def _cases(config: AcceleratorConfig) -> list[Case]:
    """Runs that may start, each with one register or table at or beyond a limit."""
    rng, align, n = Random(1), alignments(config), config.pass_tokens
    sound = {name: 8 * align.get(name, 0) for name in CONTEXT} | {"N_TOKENS": n}
    top = config.max_context
    longest = PROGRAM_WORDS_MAX * config.word_bytes
    values = {name: [step * n for n in (0, 1, 2)] for name, step in align.items()}
    for name, step in align.items():
        values[name] += [8 * step + (1 << bit) for bit in range(step.bit_length())]
    values["PROGRAM_BYTES"] += [longest, min(longest + config.word_bytes, (1 << 32) - 1)]
    values |= {
        "N_TOKENS": [0, 1, n, n + 1, 255],
        "LOGITS_FROM": [0, n, n + 1, 255],
    }
    one = [ChunkEntry()]
    tables = [
        [ChunkEntry(top - n)],
        [ChunkEntry(top - n + 1)],
        [ChunkEntry(top - n + 1, 1), ChunkEntry(top - n + 1)],
        [ChunkEntry(0, 1), ChunkEntry(top - n + 2)],
        [ChunkEntry(0, 1), ChunkEntry((1 << 16) - 1)],
        [ChunkEntry(top, 1), ChunkEntry(0)],
        [ChunkEntry(top - 1, 1)] * n,
        [*[ChunkEntry(top - 1, 1)] * (n - 1), ChunkEntry(top, 1)],
    ]
    cases: list[Case] = [(sound | {name: value}, one) for name in CONTEXT for value in values[name]]
    cases += [(sound, table) for table in tables]
    for _ in range(300):
        changes = {name: rng.choice(values[name]) for name in rng.sample(CONTEXT, 2)}
        cases.append((sound | changes, rng.choice([one, *tables])))
    return cases


@pytest.mark.parametrize("config", [NANO, WIDE], ids=["nano", "wide"])
def test_refuses_what_golden_refuses(config: AcceleratorConfig) -> None:
    """Two cycles for each chunk; where there is no such number of tokens, in the end.

    A check that was given up before, at any time, changes nothing.
    """
    dut, codes, rng = RunCheck(config), set[int](), Random(2)

    async def check(ctx: Any) -> None:
        ctx.set(dut.step, 1)
        for registers, entries in _cases(config):
            table = entries + [ChunkEntry(1, 1)] * (config.pass_tokens - len(entries))

            async def tick(table: list[ChunkEntry] = table) -> None:
                entry = ctx.get(dut.chunks.addr.entry)
                await ctx.tick()
                ctx.set(dut.chunks.data, entry_fields(table[entry % len(table)]))

            for name, value in registers.items():
                assert value < 1 << REGISTERS[name].width
                ctx.set(getattr(dut.context, name.lower()), value)
            ctx.set(dut.wanted, 1)
            for _ in range(rng.choice([0, 1, 2, 3, 5])):
                await tick()
            ctx.set(dut.wanted, 0)
            for _ in range(rng.choice([1, 2, 3])):
                await tick()
            assert not ctx.get(dut.checked)
            ctx.set(dut.wanted, 1)
            cycles = 0
            while not ctx.get(dut.checked):
                await tick()
                cycles += 1
                assert cycles < 600
            n_tokens = registers["N_TOKENS"]
            if n_tokens <= config.pass_tokens:
                assert cycles == 2 * max(1, len(list(chunks(table, n_tokens)))) + 1
            expected = check_run(config, registers, table)
            assert ctx.get(dut.code) == expected, (registers, table)
            codes.add(expected)
            ctx.set(dut.wanted, 0)
            await tick()

    simulate(dut, check)
    assert codes == {code for code in ErrorCode if code < ErrorCode.BUS}


def _descriptors(config: AcceleratorConfig) -> list[Descriptor]:
    """Runs of descriptors: tables that cover the tile or not, with room for tokens or not."""
    rng, align, top = Random(3), alignments(config), config.max_context
    n = config.pass_tokens
    found = list[Descriptor]()
    for _ in range(250):
        n_tokens = rng.randint(1, n)
        n_greedy = rng.choice([0, 1, 2, 5, 65535])
        table = [
            ChunkEntry(
                rng.choice([0, top - n_tokens, top - rng.randint(1, 8)]),
                rng.choice([0, 1, 1, 2, n_tokens, 255]),
            )
            for _ in range(rng.choice([1, 1, 2, 3, n]))
        ]
        found.append(
            Descriptor(
                fingerprint=0,
                result_base=0,
                program_bytes=align["PROGRAM_BYTES"],
                weight_base=rng.choice([0, 0, 0, 1]),
                logits_from=rng.choice([0, 0, table[0].n_tokens - 1 & 255, n_tokens, n_tokens + 1]),
                n_greedy=n_greedy,
                chunks=tuple(table[:n]),
                tokens=(0,) * n_tokens,
            )
        )
    return found


@pytest.mark.parametrize("config", [NANO, WIDE], ids=["nano", "wide"])
def test_refuses_descriptors_that_golden_refuses(config: AcceleratorConfig) -> None:
    """Behind the table of a descriptor lies what is left of another run; the walk may be slow."""
    dut, codes, rng = RunCheck(config), set[int](), Random(2)

    async def check(ctx: Any) -> None:
        ctx.set(dut.described, 1)
        for descriptor in _descriptors(config):
            table = list(descriptor.chunks)
            n = len(descriptor.tokens)
            table += [ChunkEntry(1, rng.randint(0, 2)) for _ in range(config.pass_tokens)]

            async def tick(table: list[ChunkEntry] = table) -> None:
                entry = ctx.get(dut.chunks.addr.entry)
                await ctx.tick()
                ctx.set(dut.chunks.data, entry_fields(table[entry % config.pass_tokens]))

            for name, value in descriptor.registers.items():
                ctx.set(getattr(dut.context, name.lower()), value)
            ctx.set(dut.n_chunks, len(descriptor.chunks))
            ctx.set(dut.n_greedy, descriptor.n_greedy)
            await tick()
            ctx.set(dut.wanted, 1)
            walk = list(chunks(table, n))
            cycles = 0
            while not ctx.get(dut.checked):
                step = rng.random() < 0.5
                ctx.set(dut.step, step)
                if ctx.get(dut.valid):
                    chunk, golden = ctx.get(dut.chunk), walk[0]
                    assert (chunk.first, chunk.count) == (golden.tokens.start, golden.n_tokens)
                    assert ctx.get(dut.end) == golden.position + golden.n_tokens
                    if step:
                        walk.pop(0)
                await tick()
                cycles += 1
                assert cycles < 600
            expected = check_descriptor(config, descriptor)
            assert ctx.get(dut.code) == expected, descriptor
            assert ctx.get(dut.fetchable)
            codes.add(expected)
            ctx.set(dut.wanted, 0)
            await tick()

    simulate(dut, check)
    assert codes == {
        ErrorCode.NONE,
        ErrorCode.DESCRIPTOR,
        ErrorCode.LOGITS_FROM,
        ErrorCode.CHUNK,
        ErrorCode.WEIGHT_BASE,
    }

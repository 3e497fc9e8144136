"""DescriptorWords against the golden rules: what is kept, what is written, what is wrong."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import (
    ENDS_MAX,
    HEADER,
    HEADER_BYTES,
    Descriptor,
    Kind,
    check_header,
    line_bytes,
)
from lutra_golden.control.registers import REGISTERS, ErrorCode
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import BOUNDARY_BYTES, two_ports
from lutra_hw.control.descriptor import DescriptorWords
from lutra_sim.bench.simulate import simulate

_BEHIND = 4 * (HEADER["watchdog"].first + 1)
CONFIGS = {
    "nano": NANO,
    "long lines": NANO.with_(
        pass_tokens=5, head_dim=512, acc_blocks=1024, ports=two_ports(weights=64, data=1024)
    ),
}


def _sound(config: AcceleratorConfig, rng: Random) -> Descriptor:
    n = rng.randint(1, config.pass_tokens)
    entries = rng.randint(1, config.pass_tokens)
    return Descriptor(
        fingerprint=config.fingerprint,
        result_base=rng.getrandbits(28) << 12,
        kind=rng.choice([Kind.RUN, Kind.RUN, Kind.CHECKSUM]),
        tag=rng.getrandbits(32),
        program_base=rng.getrandbits(40),
        program_bytes=rng.getrandbits(32),
        weight_base=rng.getrandbits(40),
        logits_base=rng.getrandbits(40),
        logits_stride=rng.getrandbits(32),
        logits_from=rng.getrandbits(8),
        n_greedy=rng.getrandbits(16),
        watchdog=rng.choice([0, 1, rng.getrandbits(32)]),
        chunks=tuple(
            ChunkEntry(rng.getrandbits(16), rng.getrandbits(8), rng.getrandbits(28) << 12)
            for _ in range(entries)
        ),
        tokens=tuple(rng.getrandbits(32) for _ in range(n)),
        ends=tuple(rng.getrandbits(32) for _ in range(rng.choice([0, 1, ENDS_MAX]))),
    )


def _cases(config: AcceleratorConfig) -> list[tuple[int, bytes]]:
    """Addresses and descriptors, whole ones and those that are wrong somewhere."""
    rng, line, n = Random(1), line_bytes(config), config.pass_tokens
    cases = [(rng.randrange(64) * line, _sound(config, rng).encode(line)) for _ in range(12)]
    for kind in Kind:
        sound = replace(_sound(config, rng), kind=kind)
        changes: list[dict[str, Any]] = [
            {"kind": 2 + kind},
            {"kind": 255},
            {"fingerprint": config.fingerprint ^ 1 << 31},
            {"fingerprint": config.fingerprint ^ 1 << 32},
            {"tokens": ()},
            {"tokens": (1,) * (n + 1)},
            {"tokens": (1,) * 255},
            {"chunks": ()},
            {"chunks": (ChunkEntry(),) * (n + 1)},
            {"chunks": (ChunkEntry(),) * 255},
            {"ends": (1,) * (ENDS_MAX + 1)},
            {"fingerprint": 1, "tokens": ()},
            {"fingerprint": 1, "chunks": ()},
            {"result_base": line // 2},
        ]
        cases += [(line, replace(sound, **change).encode(line)) for change in changes]
        cases.append((line // 2, sound.encode(line)))
    sound = replace(_sound(config, rng), kind=Kind.RUN).encode(line)
    for _ in range(40):
        data, bit = bytearray(sound), rng.randrange(8 * HEADER_BYTES)
        data[bit // 8] ^= 1 << bit % 8
        # as many words as there may be, whatever the header says
        cases.append((0, bytes(data) + bytes(1024)))
    for bit in (*range(32, 64, 7), 8 * 127 + 7, 8 * 124):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        cases.append((0, bytes(data)))
    return cases


@pytest.mark.parametrize("p_stall", [0.0, 0.4])
@pytest.mark.parametrize("name", CONFIGS)
def test_reads_as_golden_does(name: str, p_stall: float) -> None:
    config, rng = CONFIGS[name], Random(2)
    dut, codes = DescriptorWords(config), set[ErrorCode]()
    line = line_bytes(config)
    addresses = {each: REGISTERS[each].address // 4 for each in REGISTERS}

    async def case(ctx: Any, address: int, data: bytes) -> None:
        words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        ctx.set(dut.aligned, address % line == 0)
        written = dict[int, int]()
        taken = 0
        for number, word in enumerate(words):
            while rng.random() < p_stall:
                ctx.set(dut.word, rng.getrandbits(32))
                assert not ctx.get(dut.write.en)
                await ctx.tick()
            if ctx.get(dut.rest):
                break
            ctx.set(dut.en, 1)
            ctx.set(dut.word, word)
            if ctx.get(dut.write.en):
                written[ctx.get(dut.write.addr.register)] = ctx.get(dut.write.data)
            assert number >= HEADER_BYTES // 4 or not ctx.get(dut.has_result)
            await ctx.tick()
            ctx.set(dut.en, 0)
            taken = number + 1
        head = data[:HEADER_BYTES]
        code, has_result = check_header(config, address, head)
        assert (ctx.get(dut.code), bool(ctx.get(dut.has_result))) == (code, has_result)
        codes.add(code)
        # words behind that of the watchdog mean nothing
        assert addresses["WATCHDOG"] not in written or not code or any(head[_BEHIND:])
        if code:
            assert ctx.get(dut.rest) and taken == HEADER_BYTES // 4
            return
        found, o = Descriptor.decode(data), ctx.get(dut.o)
        assert o.result_line == found.result_base >> 8
        assert (o.tag, o.n_greedy, o.is_sum) == (found.tag, found.n_greedy, found.kind)
        expected = dict[int, int]()
        for each, value in found.registers.items():
            for word in range(REGISTERS[each].count):
                expected[addresses[each] + word] = value >> 32 * word & 0xFFFFFFFF
        if found.watchdog:
            expected[addresses["WATCHDOG"]] = found.watchdog
        if found.kind == Kind.RUN:
            assert (o.n_tokens, o.n_chunks) == (len(found.tokens), len(found.chunks))
            for i, entry in enumerate(found.chunks):
                expected[addresses["CHUNK"] + i] = entry.words[0]
                expected[addresses["CHUNK_KV"] + i] = entry.kv_base // BOUNDARY_BYTES
            for i, token in enumerate(found.tokens):
                expected[addresses["TOKEN"] + i] = token
            assert o.n_ends == len(found.ends)
            for i, end in enumerate(found.ends):
                ctx.set(dut.end_at, i)
                await ctx.delay(1e-9)
                assert ctx.get(dut.end) == end
        assert ctx.get(dut.rest)
        assert written == expected

    for address, data in _cases(config):
        dut = DescriptorWords(config)

        async def run(ctx: Any, address: int = address, data: bytes = data) -> None:
            await case(ctx, address, data)

        simulate(dut, run)
    assert codes == {
        ErrorCode.NONE,
        ErrorCode.DESCRIPTOR,
        ErrorCode.FINGERPRINT,
        ErrorCode.N_TOKENS,
    }

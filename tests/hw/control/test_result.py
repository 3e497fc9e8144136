"""ResultWriter against the golden layout, with a memory that stalls and answers late."""

from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.control.failure import Failure
from lutra_golden.control.registers import (
    COUNTERS,
    IDENT,
    REGISTERS,
    STATUS_BUSY,
    STATUS_DONE,
    STATUS_ERROR,
    ErrorCode,
)
from lutra_golden.control.result import RESULT, RESULT_BYTES, Result
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_hw.control.result import ResultWriter
from lutra_sim.bench.simulate import simulate

CONFIGS = {"nano": NANO, "narrow": NANO.with_(head_dim=32), "wide": NANO.with_(head_dim=256)}
BASE = 0x12_3456_7000


class _Memory:
    """Takes commands and data words, writes some cycles later, and notes the order.

    Nothing is written twice.
    """

    def __init__(self, rng: Random, p_stall: float, word_bytes: int) -> None:
        self.rng, self.p_stall, self.word_bytes = rng, p_stall, word_bytes
        self.bytes: dict[int, int] = {}
        self.bursts: list[int] = []
        self.addresses: list[int] = []
        self.words: list[tuple[int, int]] = []
        self.due = 0

    def ready(self) -> bool:
        return self.rng.random() >= self.p_stall

    def tick(self) -> bool:
        """Write what is due; True if nothing is left."""
        if self.addresses and self.words:
            self.due += 1
            if self.due > 3 * bool(self.p_stall):
                self.due = 0
                address, (data, strobes) = self.addresses.pop(0), self.words.pop(0)
                written = {
                    address + i: data >> 8 * i & 255
                    for i in range(strobes.bit_length())
                    if strobes >> i & 1
                }
                assert self.bytes.keys().isdisjoint(written)
                self.bytes |= written
        return not self.addresses and not self.words

    def command(self, address: int, beats: int) -> None:
        self.bursts.append(beats)
        self.addresses += range(address, address + beats * self.word_bytes, self.word_bytes)


def _registers(result: Result, argmax: list[int], scale: list[int]) -> dict[int, int]:
    """Value that a read of each register gives."""
    longs = {"FINGERPRINT": result.fingerprint, "ERROR_ADDRESS": result.failure.address}
    values = {
        REGISTERS["IDENT"].address: IDENT,
        REGISTERS["STATUS"].address: result.status & ~STATUS_DONE | STATUS_BUSY,
        REGISTERS["ERROR"].address: result.failure.word,
        REGISTERS["UNIT_STATE"].address: result.unit_state,
    }
    for name, value in longs.items():
        for word in range(2):
            values[REGISTERS[name].address + 4 * word] = value >> 32 * word & 0xFFFFFFFF
    for i, name in enumerate(COUNTERS):
        for word in range(2):
            value = result.counters[name] >> 32 * word & 0xFFFFFFFF
            values[REGISTERS["COUNTER"].address + 8 * i + 4 * word] = value
    for name, array in (("ARGMAX", argmax), ("SCALE", scale)):
        for i, value in enumerate(array):
            values[REGISTERS[name].address + 4 * i] = value
    return {address // 4: value for address, value in values.items()}


@pytest.mark.parametrize("p_stall", [0.0, 0.6])
@pytest.mark.parametrize("name", CONFIGS)
def test_writes_the_golden_block(name: str, p_stall: float) -> None:
    config: AcceleratorConfig = CONFIGS[name]
    dut, rng = ResultWriter(config), Random(3)
    memory = _Memory(rng, p_stall, config.word_bytes)
    result = Result(
        fingerprint=rng.getrandbits(64),
        tag=rng.getrandbits(32),
        status=STATUS_DONE | STATUS_ERROR,
        failure=Failure(code=ErrorCode.BUS, purpose=4, response=3, instruction=9, address=1 << 39),
        unit_state=0x54321,
        n_made=rng.getrandbits(16),
        checksum=rng.getrandbits(64),
        counters={each: rng.getrandbits(64) for each in COUNTERS},
        argmax=[rng.getrandbits(32) for _ in range(37)],
        scale=[rng.getrandbits(32) for _ in range(37)],
    )
    n = config.pass_tokens
    pipeline = [0, 0]
    halves = [result.checksum & 0xFFFFFFFF, result.checksum >> 32]

    async def tick(ctx: Any, registers: dict[int, int]) -> bool:
        """A cycle; True if it had ``done``."""
        ctx.set(dut.wr_cmd.ready, memory.ready())
        ctx.set(dut.wr_data.ready, memory.ready())
        # the host reads something else in between
        noise = rng.getrandbits(32) if rng.random() < p_stall else pipeline[1]
        ctx.set(dut.read_data, noise if pipeline[0] is None else pipeline[1])
        if ctx.get(dut.wr_cmd.valid) and ctx.get(dut.wr_cmd.ready):
            # the status comes when the block is in memory
            assert len(memory.bursts) <= len(result.argmax) or not memory.addresses
            memory.command(int(ctx.get(dut.wr_cmd.p.addr)), int(ctx.get(dut.wr_cmd.p.beats)))
        if ctx.get(dut.wr_data.valid) and ctx.get(dut.wr_data.ready):
            p = ctx.get(dut.wr_data.p)
            memory.words.append((int(p.data), int(p.strb)))
        done = bool(ctx.get(dut.done))
        asked = registers[ctx.get(dut.read_addr)] if ctx.get(dut.read_en) else rng.getrandbits(32)
        if ctx.get(dut.swap):
            halves.reverse()
        await ctx.tick()
        pipeline[0], pipeline[1] = asked, pipeline[0]
        ctx.set(dut.read_data, pipeline[1])
        ctx.set(dut.sum_half, halves[0])
        ctx.set(dut.wr_idle, memory.tick())
        return done

    async def drive(ctx: Any) -> None:
        ctx.set(dut.sum_half, halves[0])
        ctx.set(dut.wr_idle, 1)
        for i, (row, scale) in enumerate(zip(result.argmax, result.scale, strict=True)):
            registers = _registers(
                result,
                [row if m == i % n else 1 for m in range(n)],
                [scale if m == i % n else 2 for m in range(n)],
            )
            ctx.set(dut.token, i % n)
            ctx.set(dut.pair, i % 32)
            ctx.set(dut.line, (BASE + RESULT_BYTES >> 8) + i // 32)
            ctx.set(dut.start, 1)
            while not await tick(ctx, registers):
                pass
            ctx.set(dut.start, 0)
            await tick(ctx, registers)
        ctx.set(dut.line, BASE >> 8)
        ctx.set(dut.report, 1)
        ctx.set(dut.n_results, len(result.argmax))
        ctx.set(dut.n_made, result.n_made)
        ctx.set(dut.tag, result.tag)
        ctx.set(dut.start, 1)
        cycles, registers = 0, _registers(result, [0] * n, [0] * n)
        while not await tick(ctx, registers):
            cycles += 1
            assert cycles < 3000
        ctx.set(dut.start, 0)
        if not p_stall:
            assert cycles <= 90
        # all that was handed over is in memory by then
        assert not memory.addresses and not memory.words

    simulate(dut, drive)
    data = result.encode()
    assert memory.bytes == {BASE + i: byte for i, byte in enumerate(data)}
    assert list(memory.bytes)[-4:] == [BASE + 4 * RESULT["status"].first + i for i in range(4)]
    # results one by one, the block whole, then its status
    assert memory.bursts == [1] * len(result.argmax) + [RESULT_BYTES // config.word_bytes, 1]

"""LiteSlave in Amaranth's simulator; the register file's bench tests it against cocotbext-axi."""

from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from amaranth import Array, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_hw.axi.lite import LiteSlave
from lutra_hw.axi.signatures import RESP_OKAY, RESP_SLVERR, Axi4LiteSignature
from lutra_sim.bench.simulate import simulate

ADDR_WIDTH = 6
SIZE = 8  # registers; half of the addresses have none


class Registers(wiring.Component):
    """Eight registers behind a slave, to be read and written by whole words."""

    s_axi: In(Axi4LiteSignature(ADDR_WIDTH))
    hold: In(1)
    accessed: Out(1)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.lite = lite = LiteSlave(ADDR_WIDTH)
        wiring.connect(m, wiring.flipped(self.s_axi), lite.axi)
        m.d.comb += [
            lite.hold.eq(self.hold),
            self.accessed.eq(lite.bus.write_en | lite.bus.read_en),
        ]
        bus, words = lite.bus, Array(Signal(32) for _ in range(SIZE))
        first, error = Signal(32), Signal()
        m.d.comb += bus.write_error.eq(bus.write_addr >= SIZE)
        with m.If(bus.write_en & ~bus.write_error & bus.write_strb.all()):
            m.d.sync += words[bus.write_addr].eq(bus.write_data)
        with m.If(bus.read_en):
            m.d.sync += [first.eq(words[bus.read_addr]), error.eq(bus.read_addr >= SIZE)]
        m.d.sync += [bus.read_data.eq(first), bus.read_error.eq(error)]
        return m


async def _write(ctx: Any, axi: Any, address: int, value: int, order: str) -> tuple[int, int]:
    """Send address and data in this order; return the answer and the cycles it took."""
    for letters in order.split():
        for letter in letters:
            if letter == "a":
                ctx.set(axi.awaddr, address)
                ctx.set(axi.awvalid, 1)
            else:
                ctx.set(axi.wdata, value)
                ctx.set(axi.wstrb, 15)
                ctx.set(axi.wvalid, 1)
        await ctx.tick()
        ctx.set(axi.awvalid, 0)
        ctx.set(axi.wvalid, 0)
    cycles = 1
    while not ctx.get(axi.bvalid):
        await ctx.tick()
        cycles += 1
    ctx.set(axi.bready, 1)
    answer = ctx.get(axi.bresp)
    await ctx.tick()
    ctx.set(axi.bready, 0)
    assert not ctx.get(axi.bvalid)
    return answer, cycles


async def _read(ctx: Any, axi: Any, address: int, wait: int) -> tuple[int, int, int]:
    ctx.set(axi.araddr, address)
    ctx.set(axi.arvalid, 1)
    await ctx.tick().until(axi.arready)
    ctx.set(axi.arvalid, 0)
    cycles = 1
    while not ctx.get(axi.rvalid):
        await ctx.tick()
        cycles += 1
    await ctx.tick().repeat(wait)
    assert ctx.get(axi.rvalid)
    ctx.set(axi.rready, 1)
    answer = ctx.get(axi.rdata), ctx.get(axi.rresp)
    await ctx.tick()
    ctx.set(axi.rready, 0)
    return *answer, cycles


def test_rejects() -> None:
    with pytest.raises(ValueError) as error:
        LiteSlave(2)
    assert str(error.value) == "addr_width must be in 3..32, not 2"


@pytest.mark.parametrize("order", ["ad", "a d", "d a", "d d a"])
@pytest.mark.parametrize("wait", [1, 3])
def test_transfers(order: str, wait: int) -> None:
    dut = Registers()

    async def bench(ctx: Any) -> None:
        axi = dut.s_axi
        assert not (ctx.get(axi.awready) or ctx.get(axi.wready) or ctx.get(axi.arready))
        await ctx.tick()  # ready in the first cycle behind the reset
        for index in range(SIZE):
            answer = await _write(ctx, axi, 4 * index, 0x1000_0001 * index, order)
            assert answer == (RESP_OKAY, 2)
        assert await _write(ctx, axi, 4 * SIZE, 5, order) == (RESP_SLVERR, 2)
        for index in range(SIZE):
            assert await _read(ctx, axi, 4 * index, wait) == (0x1000_0001 * index, RESP_OKAY, 4)
        assert (await _read(ctx, axi, 4 * SIZE, wait))[1:] == (RESP_SLVERR, 4)

    simulate(dut, bench)


def test_waits_for_its_neighbour() -> None:
    """An access begins in no cycle in which somebody else uses the registers, and is not lost."""
    dut = Registers()

    async def hold(ctx: Any) -> None:
        for cycle in range(400):
            ctx.set(dut.hold, cycle % 7 != 3)
            assert not (ctx.get(dut.hold) and ctx.get(dut.accessed))
            await ctx.tick()

    async def bench(ctx: Any) -> None:
        axi = dut.s_axi
        await ctx.tick()
        for index in range(SIZE):
            answer, cycles = await _write(ctx, axi, 4 * index, 77 + index, "ad")
            assert answer == RESP_OKAY and 2 <= cycles <= 9
        for index in range(SIZE):
            value, answer, cycles = await _read(ctx, axi, 4 * index, 1)
            assert (value, answer) == (77 + index, RESP_OKAY) and 4 <= cycles <= 11

    simulate(dut, hold, bench)


def test_a_write_waits_until_the_answer_before_is_taken() -> None:
    dut = Registers()

    async def bench(ctx: Any) -> None:
        axi, answers = dut.s_axi, list[int]()
        await ctx.tick()
        ctx.set(axi.wstrb, 15)
        for address in (0, 4 * SIZE):
            ctx.set(axi.awaddr, address)
            ctx.set(axi.awvalid, 1)
            ctx.set(axi.wvalid, 1)
            await ctx.tick().until(axi.awready & axi.wready)
            ctx.set(axi.awvalid, 0)
            ctx.set(axi.wvalid, 0)
        for _ in range(4):
            await ctx.tick()
            assert ctx.get(axi.bvalid) and ctx.get(axi.bresp) == RESP_OKAY
        ctx.set(axi.bready, 1)
        for _ in range(6):
            if ctx.get(axi.bvalid):
                answers.append(ctx.get(axi.bresp))
            await ctx.tick()
        assert answers == [RESP_OKAY, RESP_SLVERR]

    simulate(dut, bench)

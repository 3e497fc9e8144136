"""BoardAccelerator: the pins that block designs connect, and what a board's reset reaches."""

import pytest

pytest.importorskip("amaranth")

from amaranth import Module, Signal
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from tests.hw.core.test_accelerator import SMALL

from lutra_golden.core.packaging import INTERRUPT, REGISTER_BYTES, REGISTER_PORT
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.core import board
from lutra_hw.core.accelerator import Accelerator
from lutra_hw.core.board import BoardAccelerator


def test_pins() -> None:
    members = BoardAccelerator(SMALL).signature.members
    names = set(members)
    assert {"ap_clk", "ap_rst_n", INTERRUPT} <= names
    assert not any("__" in name for name in names)
    buses = {name.rpartition("_")[0] for name in names} - {"ap", "ap_rst", ""}
    assert buses == {REGISTER_PORT, "m_axi_0", "m_axi_1"}
    assert 1 << members[f"{REGISTER_PORT}_awaddr"].shape == REGISTER_BYTES
    assert members["m_axi_0_araddr"].shape == ADDRESS_WIDTH
    assert members["m_axi_0_araddr"].flow is Out and members["m_axi_0_rdata"].flow is In
    assert members["m_axi_0_arcache"].shape == members["m_axi_1_awcache"].shape == 4
    # weights are only read
    assert "m_axi_0_awaddr" not in names


def test_addresses_are_not_cut() -> None:
    with pytest.raises(ValueError, match=r"^address_width must be 40 or more, not 32$"):
        BoardAccelerator(SMALL, address_width=32)
    wide = BoardAccelerator(SMALL, address_width=64)
    assert wide.signature.members["m_axi_1_awaddr"].shape == 64


class Probe(Accelerator):
    """Ports of an accelerator that tell of its reset: ``irq`` is up unless it was in one."""

    def elaborate(self, platform):
        m = Module()
        running = Signal()
        m.d.sync += running.eq(1)
        m.d.comb += [
            self.irq.eq(running),
            self.m_axi_1.arvalid.eq(self.bus_rst),
            self.m_axi_1.araddr.eq(1 << (ADDRESS_WIDTH - 1)),
            self.s_axi.awready.eq(self.s_axi.awaddr == 0xFFC),
        ]
        return m


def test_what_the_reset_of_a_board_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is active when low, and that of the accelerator and of the memory side of its ports."""
    monkeypatch.setattr(board, "Accelerator", Probe)
    dut = BoardAccelerator(SMALL, address_width=64)

    async def bench(ctx):
        for resets in (True, False, True):
            ctx.set(dut.ap_rst_n, not resets)
            for level in (1, 0):
                ctx.set(dut.ap_clk, level)
                await ctx.delay(1e-9)
            assert ctx.get(dut.m_axi_1_arvalid) == resets
            assert ctx.get(dut.interrupt) != resets
        assert ctx.get(dut.m_axi_1_araddr) == 1 << (ADDRESS_WIDTH - 1)
        assert ctx.get(dut.m_axi_1_awcache) == 3
        for address in (0xFFC, 0x7FC):
            ctx.set(dut.s_axi_control_awaddr, address)
            await ctx.delay(1e-9)
            assert ctx.get(dut.s_axi_control_awready) == (address == 0xFFC)

    simulator = Simulator(dut)
    simulator.add_testbench(bench)
    simulator.run()

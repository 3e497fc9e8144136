"""XrtAccelerator: the ports that Vitis demands of a kernel, and its Verilog."""

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from amaranth import Module
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from tests.hw.core.test_accelerator import SMALL

from lutra_golden.control.ap_ctrl import KERNEL, WINDOW, XRT_ADDR_WIDTH
from lutra_golden.core.packaging import REGISTER_PORT
from lutra_golden.core.ports import BOUNDARY_BYTES
from lutra_hw.core import board
from lutra_hw.core.accelerator import Accelerator
from lutra_hw.core.xrt import XrtAccelerator, generate_xrt_verilog
from lutra_sim.rtl import toolchain

_LIMIT = 64 << 10  # bytes of the slave's range (UG1393)
# of Verilog as Amaranth writes it
_KINDS = ("WIDTHEXPAND", "WIDTHTRUNC", "CASEINCOMPLETE", "ASCRANGE", "ALWNEVER")


def test_ports_are_those_of_a_kernel() -> None:
    members = XrtAccelerator(SMALL).signature.members
    names = set(members)
    assert {"ap_clk", "ap_rst_n", "interrupt"} <= names
    assert not any("__" in name for name in names)
    buses = {name.rpartition("_")[0] for name in names} - {"ap", "ap_rst", ""}
    assert buses == {REGISTER_PORT, "m_axi_0", "m_axi_1"}
    widths = {name: member.shape for name, member in members.items()}
    assert widths["s_axi_control_awaddr"] == widths["s_axi_control_araddr"] == XRT_ADDR_WIDTH
    assert 2 * WINDOW == 1 << XRT_ADDR_WIDTH <= _LIMIT
    assert widths["s_axi_control_rdata"] == 32
    for port in ("m_axi_0", "m_axi_1"):
        assert widths[f"{port}_araddr"] == 64
        assert members[f"{port}_araddr"].flow is Out and members[f"{port}_rdata"].flow is In
    assert "m_axi_0_awaddr" not in names and widths["m_axi_1_awaddr"] == 64
    assert all(port.burst_bytes <= BOUNDARY_BYTES for port in SMALL.ports)


class Loud(Accelerator):
    """The ports of an accelerator whose interrupt is always up."""

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.irq.eq(1)
        return m


def test_the_interrupt_is_the_fronts(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the accelerator says nothing to XRT, which was not told to look for it."""
    monkeypatch.setattr(board, "Accelerator", Loud)
    dut = XrtAccelerator(SMALL)

    async def bench(ctx):
        for resets in (True, False, False):
            ctx.set(dut.ap_rst_n, not resets)
            for level in (1, 0):
                ctx.set(dut.ap_clk, level)
                await ctx.delay(1e-9)
            assert not ctx.get(dut.interrupt)
        # the front takes accesses, not the accelerator
        assert ctx.get(dut.s_axi_control_awready) == 1

    simulator = Simulator(dut)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.cocotb
@pytest.mark.slow
def test_verilator_warns_as_of_the_accelerator_alone(tmp_path: Path) -> None:
    """And of the name of a port that Vitis demands, which is a word of C++ for some compilers."""
    text = generate_xrt_verilog(SMALL)
    assert f"\nmodule {KERNEL}(" in text and "src =" not in text
    path = tmp_path / f"{KERNEL}.v"
    path.write_text(text, encoding="utf-8")
    command = [*toolchain.verilator_command(), "--lint-only", "--top-module", KERNEL]
    command += [f"-Wno-{kind}" for kind in (*_KINDS, "SYMRSVDWORD")]
    done = subprocess.run(
        [*command, str(path)], capture_output=True, text=True, env=toolchain.build_environment()
    )
    assert (done.returncode, done.stderr) == (0, "")

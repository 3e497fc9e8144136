"""The accelerator as an RTL kernel of XRT."""

from amaranth import ClockDomain, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.control.ap_ctrl import KERNEL, XRT_ADDR_WIDTH
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import port_name
from lutra_hw.axi.signatures import Axi4LiteSignature
from lutra_hw.control.ap_ctrl import ApCtrlChain
from lutra_hw.core.accelerator import Accelerator
from lutra_hw.netlist import to_verilog

__all__ = ["CONTROL", "XrtAccelerator", "generate_xrt_verilog"]

CONTROL = "s_axi_control"
"""Name of the AXI4-Lite slave; UG1393 prescribes it."""
_ADDRESS_WIDTH = 64
# a bus in between may join and split bursts (AXI4 specification, A4.4)
_CACHE = 0b0011


class XrtAccelerator(wiring.Component):
    """:class:`Accelerator` behind :class:`ApCtrlChain`, with the ports of a kernel.

    Names and widths are those that Vitis demands of RTL kernels: pins of a bus have one underscore,
    addresses of memory have 64 bits. ``ap_rst_n`` resets the accelerator and the memory side of its
    ports, so what is behind them is to be reset, too, as platforms do.

    Latency and throughput are those of the two blocks. Model:
    :class:`lutra_golden.control.ap_ctrl.ApCtrl` before
    :class:`lutra_golden.control.interpreter.Interpreter`. Source: Xilinx UG1393, RTL kernels.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    ap_clk, ap_rst_n : ``In(1)``
    interrupt : ``Out(1)``  level
    s_axi_control_awaddr, ... : AXI4-Lite slave, see ``docs/xrt.md``
    m_axi_0_araddr, ... : AXI4 masters, one for each port of the configuration
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        members = {"ap_clk": In(1), "ap_rst_n": In(1), "interrupt": Out(1)}
        for name, member in Axi4LiteSignature(XRT_ADDR_WIDTH).flip().members.items():
            members[f"{CONTROL}_{name}"] = member
        self._accelerator = Accelerator(config)
        for number in range(len(config.ports)):
            port = port_name(number)
            for name, member in self._accelerator.signature.members[port].signature.members.items():
                is_address = name in ("araddr", "awaddr")
                members[f"{port}_{name}"] = Out(_ADDRESS_WIDTH) if is_address else member
                if is_address:
                    members[f"{port}_{name[:2]}cache"] = Out(4)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = sync = ClockDomain()
        m.d.comb += [sync.clk.eq(self.ap_clk), sync.rst.eq(~self.ap_rst_n)]
        m.submodules.front = front = ApCtrlChain()
        m.submodules.accelerator = accelerator = self._accelerator

        wiring.connect(m, front.m_axi, accelerator.s_axi)
        m.d.comb += [self.interrupt.eq(front.interrupt), accelerator.bus_rst.eq(ResetSignal())]
        self._pins(m, CONTROL, front.s_axi)
        for number, port in enumerate(self.config.ports):
            name = port_name(number)
            self._pins(m, name, getattr(accelerator, name))
            for channel, there in (("ar", port.reads), ("aw", port.writes)):
                if there:
                    m.d.comb += getattr(self, f"{name}_{channel}cache").eq(_CACHE)
        return m

    def _pins(self, m, prefix, inner):
        """Connect the pins of a bus to a port of a block within."""
        for name, member in inner.signature.members.items():
            pin, signal = getattr(self, f"{prefix}_{name}"), getattr(inner, name)
            m.d.comb += pin.eq(signal) if member.flow is Out else signal.eq(pin)


def generate_xrt_verilog(config: AcceleratorConfig) -> str:
    """Verilog of the kernel of ``config``; the top module has the kernel's name."""
    return to_verilog(XrtAccelerator(config), KERNEL)

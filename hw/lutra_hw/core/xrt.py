"""The accelerator as an RTL kernel of XRT."""

from amaranth.lib import wiring

from lutra_golden.control.ap_ctrl import KERNEL, XRT_ADDR_WIDTH
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.control.ap_ctrl import ApCtrlChain
from lutra_hw.core.board import BoardAccelerator
from lutra_hw.netlist import to_verilog

__all__ = ["XrtAccelerator", "generate_xrt_verilog"]

_ADDRESS_WIDTH = 64


class XrtAccelerator(BoardAccelerator):
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
        super().__init__(config, control_width=XRT_ADDR_WIDTH, address_width=_ADDRESS_WIDTH)

    def _front(self, m, accelerator):
        m.submodules.front = front = ApCtrlChain()
        wiring.connect(m, front.m_axi, accelerator.s_axi)
        return front.s_axi, front.interrupt


def generate_xrt_verilog(config: AcceleratorConfig) -> str:
    """Verilog of the kernel of ``config``; the top module has the kernel's name."""
    return to_verilog(XrtAccelerator(config), KERNEL)

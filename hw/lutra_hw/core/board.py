"""The accelerator with the pins that block designs of FPGA tools connect."""

from amaranth import ClockDomain, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.control.ap_ctrl import KERNEL
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.packaging import REGISTER_PORT
from lutra_golden.core.ports import ADDRESS_WIDTH, port_name
from lutra_hw.axi.signatures import Axi4LiteSignature
from lutra_hw.control.context import REGISTER_ADDR_WIDTH
from lutra_hw.core.accelerator import Accelerator

__all__ = ["TOP", "BoardAccelerator"]

TOP = KERNEL
"""Name of the top module."""
# a bus in between may join and split bursts (AXI4 specification, A4.4)
_CACHE = 0b0011


class BoardAccelerator(wiring.Component):
    """:class:`Accelerator` with a clock, a reset that is active when low, and a pin per AXI signal.

    Pins of a bus have one underscore between its name and the signal's, as tools expect. The reset
    is that of the accelerator and of the memory side of its ports, so what is behind them is to be
    reset, too.

    Latency and throughput are those of the accelerator. Model:
    :class:`lutra_golden.control.interpreter.Interpreter`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`
    control_width, address_width : bits of addresses of the registers, and of memory.

    Members
    -------
    ap_clk, ap_rst_n : ``In(1)``
    interrupt : ``Out(1)``  level
    s_axi_control_awaddr, ... : AXI4-Lite slave, see ``docs/registers.md``
    m_axi_0_araddr, ... : AXI4 masters, one for each port of the configuration
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        control_width: int = REGISTER_ADDR_WIDTH,
        address_width: int = ADDRESS_WIDTH,
    ):
        if address_width < ADDRESS_WIDTH:
            raise ValueError(f"address_width must be {ADDRESS_WIDTH} or more, not {address_width}")
        self.config = config
        self._accelerator = Accelerator(config)
        buses = self._accelerator.signature.members
        members = {"ap_clk": In(1), "ap_rst_n": In(1), "interrupt": Out(1)}
        for name, member in Axi4LiteSignature(control_width).flip().members.items():
            members[f"{REGISTER_PORT}_{name}"] = member
        for number in range(len(config.ports)):
            port = port_name(number)
            for name, member in buses[port].signature.members.items():
                is_address = name in ("araddr", "awaddr")
                members[f"{port}_{name}"] = Out(address_width) if is_address else member
                if is_address:
                    members[f"{port}_{name[:2]}cache"] = Out(4)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = sync = ClockDomain()
        m.submodules.accelerator = accelerator = self._accelerator
        control, interrupt = self._front(m, accelerator)
        m.d.comb += [
            sync.clk.eq(self.ap_clk),
            sync.rst.eq(~self.ap_rst_n),
            accelerator.bus_rst.eq(ResetSignal()),
            self.interrupt.eq(interrupt),
        ]
        self._pins(m, REGISTER_PORT, control)
        for number, port in enumerate(self.config.ports):
            name = port_name(number)
            self._pins(m, name, getattr(accelerator, name))
            for channel, there in (("ar", port.reads), ("aw", port.writes)):
                if there:
                    m.d.comb += getattr(self, f"{name}_{channel}cache").eq(_CACHE)
        return m

    def _front(self, m, accelerator):
        """The slave and the interrupt that the board sees."""
        return accelerator.s_axi, accelerator.irq

    def _pins(self, m, bus, inner):
        """Connect the pins of ``bus`` to a port of a block within."""
        for name, member in inner.signature.members.items():
            pin, signal = getattr(self, f"{bus}_{name}"), getattr(inner, name)
            m.d.comb += pin.eq(signal) if member.flow is Out else signal.eq(pin)

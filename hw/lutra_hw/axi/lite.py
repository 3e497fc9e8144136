"""AXI4-Lite slave in front of a file of 32-bit registers."""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_hw.axi.signatures import RESP_OKAY, RESP_SLVERR, Axi4LiteSignature

__all__ = ["LiteSlave", "RegisterBusSignature"]


class RegisterBusSignature(wiring.Signature):
    """A file of 32-bit registers, seen from who accesses it; addresses count registers.

    A write happens in the cycle of ``write_en``, ``write_error`` answers it at once. What is read
    is there two cycles after ``read_en``.
    """

    def __init__(self, addr_width: int):
        self.addr_width = addr_width
        super().__init__(
            {
                "write_en": Out(1),
                "write_addr": Out(addr_width - 2),
                "write_data": Out(32),
                "write_strb": Out(4),
                "write_error": In(1),
                "read_en": Out(1),
                "read_addr": Out(addr_width - 2),
                "read_data": In(32),
                "read_error": In(1),
            }
        )


class LiteSlave(wiring.Component):
    """Turns AXI4-Lite transfers into accesses of ``bus``; the register's error becomes SLVERR.

    Addresses and data of writes may come in any order. A write is answered 2 cycles after the
    later of them, a read 4 cycles after its address; one of each is under way at a time. Both wait
    in cycles in which somebody else uses the registers.

    Parameters
    ----------
    addr_width : int
        Bits of a byte address.

    Members
    -------
    axi : ``In(Axi4LiteSignature(addr_width))``
    bus : ``Out(RegisterBusSignature(addr_width))``
    hold : ``In(1)``  no access may begin in this cycle.
    """

    def __init__(self, addr_width: int = 12):
        if not 2 < addr_width <= 32:
            raise ValueError(f"addr_width must be in 3..32, not {addr_width}")
        self.addr_width = addr_width
        super().__init__(
            {
                "axi": In(Axi4LiteSignature(addr_width)),
                "bus": Out(RegisterBusSignature(addr_width)),
                "hold": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi, bus = self.axi, self.bus

        has_addr, has_data = Signal(), Signal()
        # nothing is taken in a reset that lasts longer in here than at the master
        alive = Signal()
        m.d.sync += alive.eq(1)
        m.d.comb += [
            axi.awready.eq(alive & ~has_addr),
            axi.wready.eq(alive & ~has_data),
            bus.write_en.eq(has_addr & has_data & ~axi.bvalid & ~self.hold),
        ]
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += [has_addr.eq(1), bus.write_addr.eq(axi.awaddr >> 2)]
        with m.If(axi.wvalid & axi.wready):
            m.d.sync += [
                has_data.eq(1),
                bus.write_data.eq(axi.wdata),
                bus.write_strb.eq(axi.wstrb),
            ]
        with m.If(bus.write_en):
            m.d.sync += [
                has_addr.eq(0),
                has_data.eq(0),
                axi.bvalid.eq(1),
                axi.bresp.eq(Mux(bus.write_error, RESP_SLVERR, RESP_OKAY)),
            ]
        with m.Elif(axi.bready):
            m.d.sync += axi.bvalid.eq(0)

        with m.FSM(name="read"):
            with m.State("Address"):
                m.d.comb += axi.arready.eq(alive)
                m.d.sync += bus.read_addr.eq(axi.araddr >> 2)
                with m.If(axi.arvalid & alive):
                    m.next = "Read"
            with m.State("Read"):
                m.d.comb += bus.read_en.eq(~self.hold)
                with m.If(~self.hold):
                    m.next = "Wait"
            with m.State("Wait"):
                m.next = "Data"
            with m.State("Data"):
                m.d.sync += [
                    axi.rvalid.eq(1),
                    axi.rdata.eq(bus.read_data),
                    axi.rresp.eq(Mux(bus.read_error, RESP_SLVERR, RESP_OKAY)),
                ]
                m.next = "Respond"
            with m.State("Respond"):
                with m.If(axi.rready):
                    m.d.sync += axi.rvalid.eq(0)
                    m.next = "Address"
        return m

"""Several read masters on one AXI4 port."""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.axi.signatures import Axi4ReadSignature

__all__ = ["ReadArbiter"]


class ReadArbiter(wiring.Component):
    """Gives the port to its masters in turn; ``arid`` names the master and ``rid`` finds it again.

    One request per cycle, 1 cycle late; a master that asks waits for at most one request of each
    other. Data pass through in the same cycle, in any order between masters, and wait for the
    ``rready`` of the master they are for.

    Parameters
    ----------
    n : int
        Masters.
    data_width, addr_width : int
        Bits of a beat and of a byte address.

    Members
    -------
    i : ``In(Axi4ReadSignature(data_width, addr_width)).array(n)``  their ``arid`` is not looked at
    o : ``Out(Axi4ReadSignature(data_width, addr_width, id_width))``
    """

    def __init__(self, n: int, data_width: int, addr_width: int = ADDRESS_WIDTH):
        if n < 1:
            raise ValueError(f"n must be positive, not {n}")
        self.n, self.data_width, self.addr_width = n, data_width, addr_width
        self.id_width = max(1, (n - 1).bit_length())
        super().__init__(
            {
                "i": In(Axi4ReadSignature(data_width, addr_width)).array(n),
                "o": Out(Axi4ReadSignature(data_width, addr_width, self.id_width)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        o = self.o

        # the last one served comes last; of the others, who follows it most closely comes first
        last = Signal(range(self.n))
        grant = Signal(range(self.n))
        m.d.comb += grant.eq(last)
        with m.Switch(last):
            for index in range(self.n):
                with m.Case(index):
                    for distance in range(self.n - 1, 0, -1):
                        other = (index + distance) % self.n
                        with m.If(self.i[other].arvalid):
                            m.d.comb += grant.eq(other)

        take = Signal()
        m.d.comb += take.eq(~o.arvalid | o.arready)
        with m.If(take):
            m.d.sync += o.arvalid.eq(0)
        for index, i in enumerate(self.i):
            m.d.comb += i.arready.eq(take & (grant == index))
            with m.If(i.arvalid & i.arready):
                m.d.sync += [
                    o.arvalid.eq(1),
                    o.arid.eq(index),
                    o.araddr.eq(i.araddr),
                    o.arlen.eq(i.arlen),
                    o.arsize.eq(i.arsize),
                    o.arburst.eq(i.arburst),
                    last.eq(index),
                ]

        rready = 0
        for index, i in enumerate(self.i):
            m.d.comb += [
                i.rid.eq(0),
                i.rdata.eq(o.rdata),
                i.rresp.eq(o.rresp),
                i.rlast.eq(o.rlast),
                i.rvalid.eq(o.rvalid & (o.rid == index)),
            ]
            rready = Mux(o.rid == index, i.rready, rready)
        m.d.comb += o.rready.eq(rready)
        return m

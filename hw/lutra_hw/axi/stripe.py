"""Joiner of lanes: a stream of wide beats out of what several readers read."""

from amaranth import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.axi.stripe import StripeParams
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.ports import dma_command

__all__ = ["Stripe"]


class Stripe(wiring.Component):
    """Cuts a command into one for each lane, and joins the lanes' beats.

    A command goes on to the first lane in the same cycle, and to each next lane a cycle after the
    one before it at the earliest; it is taken with the last one. A beat comes out in the cycle in
    which all lanes have one, and is taken from all of them at once, so a lane that is ahead waits
    in what is before this block. Throughput is 1 beat per cycle, of the slowest lane. Reset drops
    everything.

    Model: :func:`lutra_golden.axi.stripe.lanes_of`, ``joined``.

    Parameters
    ----------
    params : :class:`StripeParams`, of two lanes or more
    addr_width : bits of a byte address.

    Members
    -------
    cmd : ``In(dma_command(addr_width))``  in beats of all lanes together
    o_cmd : ``Out(dma_command(addr_width)).array(n_lanes)``  in beats of a lane
    i : ``In(stream.Signature(unsigned(8 * beat_bytes))).array(n_lanes)``
    o : ``Out(stream.Signature(unsigned(8 * whole_bytes)))``  the first lane in the LSBs
    """

    o: stream.Interface

    def __init__(self, params: StripeParams, addr_width: int = ADDRESS_WIDTH):
        if not isinstance(params, StripeParams):
            raise TypeError(f"params must be StripeParams, not {params!r}")
        if params.n_lanes < 2:
            raise ValueError(
                f"n_lanes must be at least 2, not {params.n_lanes}: connect both sides"
            )
        self.params, self.addr_width = params, addr_width
        beat = stream.Signature(unsigned(8 * params.beat_bytes))
        super().__init__(
            {
                "cmd": In(dma_command(addr_width)),
                "o_cmd": Out(dma_command(addr_width)).array(params.n_lanes),
                "i": In(beat).array(params.n_lanes),
                "o": Out(stream.Signature(unsigned(8 * params.whole_bytes))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        n, cmd = self.params.n_lanes, self.cmd

        # the lane whose turn it is, and where it begins behind the first one
        lane = Signal(range(n))
        offset = Signal(self.addr_width)
        stride = cmd.p.beats << exact_log2(self.params.beat_bytes)
        taken = Signal(n)
        for index, o_cmd in enumerate(self.o_cmd):
            m.d.comb += [
                o_cmd.p.addr.eq(cmd.p.addr + offset),
                o_cmd.p.beats.eq(cmd.p.beats),
                o_cmd.valid.eq(cmd.valid & (lane == index)),
                taken[index].eq(o_cmd.valid & o_cmd.ready),
            ]
        m.d.comb += cmd.ready.eq(self.o_cmd[n - 1].ready & (lane == n - 1))
        with m.If(taken.any()):
            m.d.sync += [
                lane.eq(lane + 1),
                offset.eq(Mux(taken[n - 1], 0, offset + stride)),
            ]

        m.d.comb += [
            self.o.p.eq(Cat(i.p for i in self.i)),
            self.o.valid.eq(Cat(i.valid for i in self.i).all()),
        ]
        for i in self.i:
            m.d.comb += i.ready.eq(self.o.valid & self.o.ready)
        return m

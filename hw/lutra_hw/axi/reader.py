"""DMA engine that reads: commands in, a stream of beats out."""

from amaranth import Module, ResetInserter, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.core.ports import ADDRESS_WIDTH, BURST_INCR
from lutra_hw.axi.bursts import BurstSplitter, check_dma
from lutra_hw.axi.signatures import RESP_OKAY, Axi4ReadSignature
from lutra_hw.ports import dma_command

__all__ = ["DmaReader"]


class DmaReader(wiring.Component):
    """Reads every command's beats, in order, with several bursts outstanding.

    A burst is asked for only when the FIFO has room for a full one, so ``rready`` is always high
    and the memory never waits. Bursts end at multiples of ``burst_beats`` and cross no 4 KB
    boundary. The next command's bursts are issued while the former's data still arrive.

    The first address is on the bus 2 cycles after the command; data are on ``o`` 2 cycles after
    they came. One burst is issued per cycle, one more cycle goes to each command. Throughput is
    1 beat per cycle as long as ``max_outstanding`` bursts and ``fifo_depth - burst_beats`` beats
    cover the memory's latency. ``clear`` drops commands and data; while it is high the memory goes
    on answering what it was asked for, until ``idle``. Reset drops everything and forgets that.

    Parameters
    ----------
    data_width, addr_width : int
        Bits of a beat, 32 to 1024, and of a byte address.
    burst_beats : int
        Beats of the longest burst, a power of two.
    max_outstanding : int
        Bursts under way.
    fifo_depth : int
        Beats that can be asked for ahead of ``o``.

    Members
    -------
    cmd : ``In(dma_command(addr_width))``  the address is cut to a whole beat
    o : ``Out(stream.Signature(unsigned(data_width)))``  the lowest address in the LSBs
    axi : ``Out(Axi4ReadSignature(data_width, addr_width))``
    clear : ``In(1)``  stays high until ``idle``
    idle : ``Out(1)``  no burst is offered, nor owed by the memory
    error : ``Out(1)``  high for one cycle after each beat with ``rresp`` other than OKAY
    response, address : ``Out(2)``, ``Out(addr_width)``  then: ``rresp``, and the burst's address
    """

    o: stream.Interface

    def __init__(
        self,
        data_width: int,
        addr_width: int = ADDRESS_WIDTH,
        *,
        burst_beats: int,
        max_outstanding: int,
        fifo_depth: int,
    ):
        check_dma(data_width, addr_width, burst_beats, max_outstanding, fifo_depth)
        self.data_width, self.addr_width, self.burst_beats = data_width, addr_width, burst_beats
        self.max_outstanding, self.fifo_depth = max_outstanding, fifo_depth
        super().__init__(
            {
                "cmd": In(dma_command(addr_width)),
                "o": Out(stream.Signature(unsigned(data_width))),
                "axi": Out(Axi4ReadSignature(data_width, addr_width)),
                "clear": In(1),
                "idle": Out(1),
                "error": Out(1),
                "response": Out(2),
                "address": Out(addr_width),
            }
        )

    def elaborate(self, platform):
        m = Module()
        splitter = BurstSplitter(self.data_width, self.addr_width, self.burst_beats)
        fifo = SyncFIFOBuffered(width=self.data_width, depth=self.fifo_depth)
        cleared = ResetInserter(self.clear)
        m.submodules.splitter, m.submodules.fifo = cleared(splitter), cleared(fifo)
        # addresses of the bursts that have no answer
        issued = SyncFIFO(width=len(splitter.beat_addr), depth=self.max_outstanding)
        m.submodules.issued = issued
        axi, beat_bits = self.axi, exact_log2(self.data_width // 8)

        wiring.connect(m, wiring.flipped(self.cmd), splitter.cmd)
        m.d.comb += [
            axi.arid.eq(0),
            axi.arsize.eq(beat_bits),
            axi.arburst.eq(BURST_INCR),
            axi.rready.eq(1),
            fifo.w_data.eq(axi.rdata),
            fifo.w_en.eq(axi.rvalid),
            self.o.p.eq(fifo.r_data),
            self.o.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o.ready),
        ]

        free = Signal(range(self.fifo_depth + 1), init=self.fifo_depth)
        outstanding, issue = issued.level, Signal()
        m.d.comb += [
            issue.eq(
                ~self.clear
                & splitter.valid
                & (~axi.arvalid | axi.arready)
                & (free >= self.burst_beats)
                & (outstanding != self.max_outstanding)
            ),
            splitter.next.eq(issue),
            issued.w_data.eq(splitter.beat_addr),
            issued.w_en.eq(issue),
            issued.r_en.eq(axi.rvalid & axi.rlast),
        ]
        with m.If(issue):
            m.d.sync += [
                axi.araddr.eq(splitter.beat_addr << beat_bits),
                axi.arlen.eq(splitter.length - 1),
                axi.arvalid.eq(1),
                free.eq(free - splitter.length + (fifo.r_rdy & fifo.r_en)),
            ]
        with m.Else():
            m.d.sync += free.eq(free + (fifo.r_rdy & fifo.r_en))
            with m.If(axi.arready):
                m.d.sync += axi.arvalid.eq(0)
        with m.If(self.clear):
            m.d.sync += free.eq(self.fifo_depth)
        m.d.comb += self.idle.eq(outstanding == 0)
        m.d.sync += [
            self.error.eq(axi.rvalid & (axi.rresp != RESP_OKAY)),
            self.response.eq(axi.rresp),
            self.address.eq(issued.r_data << beat_bits),
        ]
        return m

"""DMA engine that writes: commands and a stream of beats in."""

from amaranth import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.core.ports import ADDRESS_WIDTH, BURST_INCR
from lutra_hw.axi.bursts import BurstSplitter, check_dma
from lutra_hw.axi.signatures import RESP_OKAY, Axi4WriteSignature
from lutra_hw.ports import dma_command, dma_write_data

__all__ = ["DmaWriter"]


class DmaWriter(wiring.Component):
    """Writes the beats of ``data`` where the commands say, in order, with several bursts under way.

    A burst's address is sent only when all its beats are in the FIFO, so a slow producer never
    holds the bus. Bursts end at multiples of ``burst_beats`` and cross no 4 KB boundary. Data may
    come before their command.

    The address of a burst is on the bus 2 cycles after its last beat came, its first beat with
    it. Throughput is 1 beat per cycle where bursts are longer than one beat or commands longer
    than one burst; ``cmd`` and ``data`` wait while the FIFO is full or ``max_outstanding`` bursts
    have no answer. ``clear`` drops commands, and data that no burst has claimed; bursts whose
    address was issued are written and answered until ``settled``. Reset drops everything.

    Parameters
    ----------
    data_width, addr_width : int
        Bits of a beat, 32 to 1024, and of a byte address.
    burst_beats : int
        Beats of the longest burst, a power of two.
    max_outstanding : int
        Bursts without an answer.
    fifo_depth : int
        Beats that are taken ahead of the bus.

    Members
    -------
    cmd : ``In(dma_command(addr_width))``  the address is cut to a whole beat
    data : ``In(dma_write_data(data_width))``  the lowest address in the LSBs, a strobe per byte
    axi : ``Out(Axi4WriteSignature(data_width, addr_width))``
    clear : ``In(1)``  stays high until ``settled``
    settled : ``Out(1)``  no burst is under way
    idle : ``Out(1)``  everything accepted has been written and answered
    error : ``Out(1)``  high for one cycle after each ``bresp`` other than OKAY
    response, address : ``Out(2)``, ``Out(addr_width)``  then: ``bresp``, and the burst's address
    """

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
                "data": In(dma_write_data(data_width)),
                "axi": Out(Axi4WriteSignature(data_width, addr_width)),
                "clear": In(1),
                "settled": Out(1),
                "idle": Out(1),
                "error": Out(1),
                "response": Out(2),
                "address": Out(addr_width),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi, beat_bits = self.axi, exact_log2(self.data_width // 8)
        splitter = BurstSplitter(self.data_width, self.addr_width, self.burst_beats)
        m.submodules.splitter = ResetInserter(self.clear)(splitter)
        fifo = SyncFIFOBuffered(width=len(self.data.p.as_value()), depth=self.fifo_depth)
        # beats of issued bursts are still to be written
        m.submodules.fifo = ResetInserter(self.clear & self.settled)(fifo)
        m.submodules.lengths = lengths = SyncFIFO(
            width=len(splitter.length), depth=self.max_outstanding
        )
        # addresses of the bursts that have no answer
        issued = SyncFIFO(width=len(splitter.beat_addr), depth=self.max_outstanding)
        m.submodules.issued = issued

        wiring.connect(m, wiring.flipped(self.cmd), splitter.cmd)
        m.d.comb += [
            fifo.w_data.eq(self.data.p),
            fifo.w_en.eq(self.data.valid & ~self.clear),
            self.data.ready.eq(fifo.w_rdy),
            axi.awid.eq(0),
            axi.awsize.eq(beat_bits),
            axi.awburst.eq(BURST_INCR),
            axi.bready.eq(1),
        ]

        # beats in the FIFO that no issued burst has claimed
        unclaimed = Signal(range(self.fifo_depth + 1))
        outstanding, issue, push = issued.level, Signal(), Signal()
        m.d.comb += [
            push.eq(fifo.w_en & fifo.w_rdy),
            issue.eq(
                ~self.clear
                & splitter.valid
                & (~axi.awvalid | axi.awready)
                & (unclaimed >= splitter.length)
                & (outstanding != self.max_outstanding)
            ),
            splitter.next.eq(issue),
            lengths.w_data.eq(splitter.length),
            lengths.w_en.eq(issue),
            issued.w_data.eq(splitter.beat_addr),
            issued.w_en.eq(issue),
            issued.r_en.eq(axi.bvalid),
        ]
        with m.If(issue):
            m.d.sync += [
                axi.awaddr.eq(splitter.beat_addr << beat_bits),
                axi.awlen.eq(splitter.length - 1),
                axi.awvalid.eq(1),
                unclaimed.eq(unclaimed - splitter.length + push),
            ]
        with m.Else():
            m.d.sync += unclaimed.eq(unclaimed + push)
            with m.If(axi.awready):
                m.d.sync += axi.awvalid.eq(0)

        with m.If(self.clear):
            m.d.sync += unclaimed.eq(0)

        beat = Signal(range(self.burst_beats + 1), init=1)
        transfer = Signal()
        m.d.comb += [
            Cat(axi.wdata, axi.wstrb).eq(fifo.r_data),
            axi.wvalid.eq(fifo.r_rdy & lengths.r_rdy),
            axi.wlast.eq(beat == lengths.r_data),
            transfer.eq(axi.wvalid & axi.wready),
            fifo.r_en.eq(axi.wready & lengths.r_rdy),
            lengths.r_en.eq(transfer & axi.wlast),
        ]
        with m.If(transfer):
            m.d.sync += beat.eq(Mux(axi.wlast, 1, beat + 1))

        m.d.comb += [
            self.settled.eq(outstanding == 0),
            self.idle.eq(~splitter.valid & self.settled & (fifo.level == 0)),
        ]
        m.d.sync += [
            self.error.eq(axi.bvalid & (axi.bresp != RESP_OKAY)),
            self.response.eq(axi.bresp),
            self.address.eq(issued.r_data << beat_bits),
        ]
        return m

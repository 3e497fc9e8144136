"""A DmaWriter in front of a memory that takes and answers whenever it likes."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.utils import exact_log2

from lutra_golden.core.ports import BOUNDARY_BYTES
from lutra_hw.axi.writer import DmaWriter
from lutra_sim.formal.property import Property, Token, past, recorded

__all__ = ["WriterClear", "WriterOrder"]

_MAX_BEATS = 5  # of a command; a bounded check sees longer ones begin only
_PROGRESS = 6
_CLEARED = 8  # cycles of a clear, of which the memory takes none longer than it must


class WriterOrder(Property):
    """Every beat is written once, in order, where the commands say; AXI's rules hold.

    The memory takes addresses and beats when it likes and answers a burst after it has both.
    """

    def __init__(self) -> None:
        super().__init__(DmaWriter(32, 13, burst_beats=2, max_outstanding=2, fifo_depth=4))

    def rules(self, m: Module) -> None:
        dut, axi, cmd, data = self.dut, self.dut.axi, self.dut.cmd, self.dut.data
        bytes_per_beat = dut.data_width // 8
        beat_bits = exact_log2(bytes_per_beat)
        # nothing depends on data: a bit of them and a strobe show what all bits would
        narrow = (data.p.data[1:] == 0) & (data.p.strb[1:] == 0)
        self.assume(m, ~dut.clear, cmd.p.beats <= _MAX_BEATS, narrow)
        writes = axi.wvalid & axi.wready
        beats = Signal(range(dut.burst_beats + 1))
        # a burst counts from the cycle on in which its address appears
        appears = Signal()
        m.d.comb += [
            beats.eq(axi.awlen + 1),
            appears.eq(axi.awvalid & ~past(m, axi.awvalid & ~axi.awready, "aw_waits")),
        ]

        token = Token(self, m, ["aw"], width=5, name="address")
        pick, offset = token.enter(cmd.valid & cmd.ready, cmd.p.beats[:3])
        address = recorded(m, pick, (cmd.p.addr >> beat_bits) + offset, "address")
        here, which = token.passes("aw", appears, beats)
        beat = ((axi.awaddr >> beat_bits) + which)[: len(axi.awaddr) - beat_bits]
        self.claim(m, "a beat is addressed in its turn", ~here | (beat == address[: len(beat)]))
        unaddressed = token.left["aw"]
        self.claim(m, "bursts write no more than the commands", ~appears | (beats <= unaddressed))

        token = Token(self, m, ["w"], width=3, name="data")
        pick, _ = token.enter(data.valid & data.ready)
        word = recorded(m, pick, data.p, "word")
        here, _ = token.passes("w", writes)
        same = Cat(axi.wdata, axi.wstrb) == word
        self.claim(m, "a beat is written in its turn, with its strobes", ~here | same)
        unwritten = token.left["w"]
        self.claim(m, "nothing is written that did not come", ~axi.wvalid | (unwritten != 0))

        # one bit for every beat whose address appeared, set at the last of a burst
        owed, owed_now = Signal(range(dut.fifo_depth + 3)), Signal(range(dut.fifo_depth + 3))
        lasts, lasts_now = Signal(dut.fifo_depth + 2), Signal(dut.fifo_depth + 2)
        m.d.comb += [
            owed_now.eq(owed + Mux(appears, beats, 0)),
            lasts_now.eq(lasts | Mux(appears, 1 << (owed + beats - 1)[:3], 0)),
        ]
        m.d.sync += [owed.eq(owed_now - writes), lasts.eq(lasts_now >> writes)]
        self.claim(m, "no beat comes ahead of its address", ~axi.wvalid | (owed_now != 0))
        self.claim(
            m, "wlast marks the last beat of a burst", ~axi.wvalid | (axi.wlast == lasts_now[0])
        )
        self.claim(m, "an address is sent when its beats are there", owed_now <= unwritten)

        # bursts without an answer: all, those with their address taken, those written whole
        open_, addressed, written = (
            Signal(range(dut.max_outstanding + 2), name=name)
            for name in ("open", "addressed", "written")
        )
        m.d.sync += [
            open_.eq(open_ + appears - axi.bvalid),
            addressed.eq(addressed + (axi.awvalid & axi.awready) - axi.bvalid),
            written.eq(written + (writes & axi.wlast) - axi.bvalid),
        ]
        self.assume(m, ~axi.bvalid | ((addressed != 0) & (written != 0)))
        room = BOUNDARY_BYTES - axi.awaddr % BOUNDARY_BYTES
        self.claim(
            m, "a burst has up to burst_beats beats", ~axi.awvalid | (axi.awlen < dut.burst_beats)
        )
        self.claim(m, "no burst crosses 4 KB", ~axi.awvalid | (beats * bytes_per_beat <= room))
        self.claim(m, "bursts under way are limited", open_ + appears <= dut.max_outstanding)
        self.claim(m, "answers are always taken", axi.bready)
        self.claim(m, "the id is constant", axi.awid == 0)

        done = (unaddressed == 0) & (unwritten == 0) & (open_ == 0)
        self.claim(m, "idle: everything accepted has been answered", dut.idle == done)

        waits = (axi.awvalid & ~axi.awready) | (axi.wvalid & ~axi.wready)
        waits |= (written != 0) & (addressed != 0) & ~axi.bvalid
        waits |= (unwritten < dut.burst_beats) & (unwritten < unaddressed + owed)
        still = Signal(range(_PROGRESS + 2))
        with m.If((unaddressed + owed == 0) | waits | writes):
            m.d.sync += still.eq(0)
        with m.Else():
            m.d.sync += still.eq(still + 1)
        self.claim(m, "a beat goes soon where nobody else is waited for", still < _PROGRESS)


class WriterClear(Property):
    """A clear ends soon once the memory answers; bursts that had begun are written to their end.

    It may come in any cycle, and stays until ``settled``.
    """

    def __init__(self) -> None:
        super().__init__(DmaWriter(32, 13, burst_beats=2, max_outstanding=2, fifo_depth=4))

    def rules(self, m: Module) -> None:
        dut, axi, cmd, data = self.dut, self.dut.axi, self.dut.cmd, self.dut.data
        self.assume(m, cmd.p.beats <= _MAX_BEATS, data.p.as_value() == 0)
        writes, beats = axi.wvalid & axi.wready, Signal(range(dut.burst_beats + 1))
        appears, cleared = Signal(), past(m, dut.clear, "cleared")
        m.d.comb += [
            beats.eq(axi.awlen + 1),
            appears.eq(axi.awvalid & ~past(m, axi.awvalid & ~axi.awready, "aw_waits")),
        ]
        owed, addressed, written = (
            Signal(range(dut.fifo_depth + 3), name=name)
            for name in ("owed", "addressed", "written")
        )
        m.d.sync += [
            owed.eq(owed + Mux(appears, beats, 0) - writes),
            addressed.eq(addressed + (axi.awvalid & axi.awready) - axi.bvalid),
            written.eq(written + (writes & axi.wlast) - axi.bvalid),
        ]
        answerable = (addressed != 0) & (written != 0)
        self.assume(m, ~axi.bvalid | answerable)
        self.assume(m, ~past(m, dut.clear & ~dut.settled, "clearing") | dut.clear)
        # in a clear the memory does not let itself be waited for
        obliging = axi.awready & axi.wready & (axi.bvalid == answerable)
        self.assume(m, ~dut.clear | obliging)

        self.claim(m, "no burst begins in a clear", ~(cleared & appears))
        under_way = axi.awvalid | axi.wvalid | (owed != 0) | (addressed != 0) | (written != 0)
        self.claim(m, "settled: nothing is under way", ~dut.settled | ~under_way)
        came = Signal(range(dut.fifo_depth + 2))
        with m.If(dut.clear):
            m.d.sync += came.eq(0)
        with m.Else():
            m.d.sync += came.eq(came + (data.valid & data.ready) - writes)
        since = ~axi.wvalid | dut.clear | (came != 0)
        self.claim(m, "what is written came since", since)
        clearing = Signal(range(_CLEARED + 2))
        m.d.sync += clearing.eq(Mux(dut.clear & ~dut.settled, clearing + 1, 0))
        self.claim(m, "a clear ends soon", clearing <= _CLEARED)

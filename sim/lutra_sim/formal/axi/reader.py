"""A DmaReader in front of a memory that answers whenever it likes."""

from amaranth import Module, Mux, Signal, Value
from amaranth.utils import exact_log2

from lutra_golden.core.ports import BOUNDARY_BYTES
from lutra_hw.axi.reader import DmaReader
from lutra_sim.formal.property import Property, Token, past, recorded

__all__ = ["ReaderClear", "ReaderOrder"]

_MAX_BEATS = 5  # of a command; a bounded check sees longer ones begin only
_PROGRESS = 5
_CLEARED = 6  # cycles of a clear, of which the memory takes none longer than it must


class ReaderOrder(Property):
    """Every beat of every command comes out once and in order; AXI's rules for bursts hold.

    The memory takes addresses and answers when it likes, but answers what it was asked for, in
    order, with ``rlast`` at the end of each burst.
    """

    def __init__(self) -> None:
        super().__init__(DmaReader(32, 13, burst_beats=2, max_outstanding=2, fifo_depth=4))

    def rules(self, m: Module) -> None:
        dut, axi, cmd = self.dut, self.dut.axi, self.dut.cmd
        bytes_per_beat = dut.data_width // 8
        beat_bits = exact_log2(bytes_per_beat)
        # nothing depends on data: two bits of them show what all bits would
        self.assume(m, ~dut.clear, cmd.p.beats <= _MAX_BEATS, axi.rdata[2:] == 0)
        asks, answers = axi.arvalid & axi.arready, axi.rvalid & axi.rready
        leaves = dut.o.valid & dut.o.ready
        beats = Signal(range(dut.burst_beats + 1))
        m.d.comb += beats.eq(axi.arlen + 1)

        token = Token(self, m, ["ar", "r", "o"], width=5)
        pick, offset = token.enter(cmd.valid & cmd.ready, cmd.p.beats[:3])
        address = recorded(m, pick, (cmd.p.addr >> beat_bits) + offset, "address")
        here, which = token.passes("ar", asks, beats)
        beat = ((axi.araddr >> beat_bits) + which)[: len(dut.axi.araddr) - beat_bits]
        self.claim(m, "a beat is asked for in its turn", ~here | (beat == address[: len(beat)]))
        here, _ = token.passes("r", answers)
        word = recorded(m, here, axi.rdata, "word")
        here, _ = token.passes("o", leaves)
        self.claim(m, "a beat comes out in its turn", ~here | (dut.o.p == word))
        left = token.left
        self.claim(m, "bursts ask for no more than the commands", ~asks | (beats <= left["ar"]))
        self.claim(
            m, "nothing comes out that did not come in", ~dut.o.valid | (left["o"] > left["r"])
        )
        self.claim(m, "what is asked for has room", left["o"] - left["ar"] <= dut.fifo_depth)

        owed = _owed(self, m, asks, answers, beats)
        under_way = Signal(range(dut.max_outstanding + 2))
        m.d.sync += under_way.eq(under_way + asks - (answers & axi.rlast))
        room = BOUNDARY_BYTES - axi.araddr % BOUNDARY_BYTES
        self.claim(
            m, "a burst has up to burst_beats beats", ~axi.arvalid | (axi.arlen < dut.burst_beats)
        )
        self.claim(m, "no burst crosses 4 KB", ~axi.arvalid | (beats * bytes_per_beat <= room))
        self.claim(
            m, "bursts under way are limited", under_way + axi.arvalid <= dut.max_outstanding
        )
        self.claim(m, "the memory never waits", axi.rready)
        self.claim(m, "the id is constant", axi.arid == 0)

        waits = (
            (axi.arvalid & ~axi.arready)
            | ((owed != 0) & ~axi.rvalid)
            | (dut.o.valid & ~dut.o.ready)
        )
        still = Signal(range(_PROGRESS + 2))
        with m.If((left["o"] == 0) | waits | leaves):
            m.d.sync += still.eq(0)
        with m.Else():
            m.d.sync += still.eq(still + 1)
        self.claim(m, "a beat comes soon where nobody else is waited for", still < _PROGRESS)


class ReaderClear(Property):
    """A clear ends soon once the memory answers, with nothing owed; nothing of before comes out.

    It may come in any cycle, and stays until ``idle``.
    """

    def __init__(self) -> None:
        super().__init__(DmaReader(32, 13, burst_beats=2, max_outstanding=2, fifo_depth=4))

    def rules(self, m: Module) -> None:
        dut, axi, cmd = self.dut, self.dut.axi, self.dut.cmd
        self.assume(m, cmd.p.beats <= _MAX_BEATS, axi.rdata == 0)
        asks, answers = axi.arvalid & axi.arready, axi.rvalid & axi.rready
        beats = Signal(range(dut.burst_beats + 1))
        m.d.comb += beats.eq(axi.arlen + 1)
        owed = _owed(self, m, asks, answers, beats)
        self.assume(m, ~past(m, dut.clear & ~dut.idle, "clearing") | dut.clear)
        # in a clear the memory does not let itself be waited for
        self.assume(m, ~dut.clear | (axi.arready & (axi.rvalid == (owed != 0))))

        begun = axi.arvalid & ~past(m, axi.arvalid & ~axi.arready, "waited")
        cleared = past(m, dut.clear, "cleared")
        self.claim(m, "no burst begins in a clear", ~(cleared & begun))
        self.claim(m, "idle: nothing is offered nor owed", ~dut.idle | (~axi.arvalid & (owed == 0)))
        left, taken = Signal(6), cmd.valid & cmd.ready
        with m.If(dut.clear):
            m.d.sync += left.eq(0)
        with m.Else():
            beats_in = Mux(taken, cmd.p.beats[:3], 0)
            m.d.sync += left.eq(left + beats_in - (dut.o.valid & dut.o.ready))
        self.claim(m, "what comes out was asked for since", ~dut.o.valid | dut.clear | (left != 0))
        clearing = Signal(range(_CLEARED + 2))
        m.d.sync += clearing.eq(Mux(dut.clear & ~dut.idle, clearing + 1, 0))
        self.claim(m, "a clear ends soon", clearing <= _CLEARED)


def _owed(prop: Property, m: Module, asks: Value, answers: Value, beats: Signal) -> Signal:
    """Beats that the memory owes; it is assumed to answer no others, and to mark each last one."""
    dut, axi = prop.dut, prop.dut.axi
    owed = Signal(range(dut.fifo_depth + 3))
    # one bit for every beat, set at the last of a burst
    lasts, rest = Signal(dut.fifo_depth + 2), Signal(dut.fifo_depth + 2)
    m.d.comb += rest.eq(lasts >> answers)
    m.d.sync += owed.eq(owed + Mux(asks, beats, 0) - answers)
    m.d.sync += lasts.eq(rest | Mux(asks, 1 << (owed - answers + beats - 1)[:3], 0))
    prop.assume(m, ~axi.rvalid | ((owed != 0) & (axi.rlast == lasts[0])))
    return owed

"""Words without gaps between them, out of the beats in which they lie."""

from amaranth import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.axi.packed import PackedParams
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.ports import dma_command

__all__ = ["ReadPacked"]

_TRANSFERS = 4


class ReadPacked(wiring.Component):
    """Words of a unit out of the beats that a :class:`DmaReader` reads, of more than a beat each.

    A command goes on in the same cycle, in beats; it begins with a beat, and what is left of its
    last one is dropped. A word is on ``o`` in the cycle of the beat in which it ends. Throughput is
    one beat per cycle; nothing waits between commands, of which up to 4 go ahead of their data.
    Reset drops everything.

    Model: :func:`lutra_golden.axi.packed.words_of`.

    Parameters
    ----------
    params : :class:`PackedParams`
    addr_width : bits of a byte address.

    Members
    -------
    cmd : ``In(dma_command(addr_width))``  in words, the address that of a beat
    o_cmd : ``Out(dma_command(addr_width))``  in beats, which must be fewer than 2**24
    i : ``In(stream.Signature(unsigned(8 * beat_bytes)))``  the lowest address in the LSBs
    o : ``Out(stream.Signature(unsigned(8 * word_bytes)))``  the lowest address in the LSBs
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: PackedParams, addr_width: int = ADDRESS_WIDTH):
        if not isinstance(params, PackedParams):
            raise TypeError(f"params must be PackedParams, not {params!r}")
        self.params, self.addr_width = params, addr_width
        super().__init__(
            {
                "cmd": In(dma_command(addr_width)),
                "o_cmd": Out(dma_command(addr_width)),
                "i": In(stream.Signature(unsigned(8 * params.beat_bytes))),
                "o": Out(stream.Signature(unsigned(8 * params.word_bytes))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        p, i, o = self.params, self.i, self.o

        self._transfers(m)
        # a queue's output is not reset, which this is
        left = Signal(len(self._queue.r_data))
        taken, last_word = Signal(), Signal()
        m.d.comb += last_word.eq(left == self._queue.r_data)

        beat = Signal(range(p.period_beats))
        part = 8 * p.part_bytes
        # what came before this beat, the latest in the MSBs
        before = Signal(8 * p.word_bytes - part)
        ends = Signal()
        wide = Cat(before, i.p)
        with m.Switch(beat):
            for word in range(p.period_words):
                number, parts = p.end(word)
                with m.Case(number):
                    m.d.comb += [
                        ends.eq(1),
                        o.p.eq(wide[part * (parts - 1) :][: len(o.p)]),
                    ]
        m.d.comb += [
            o.valid.eq(i.valid & self._queue.r_rdy & ends),
            i.ready.eq(self._queue.r_rdy & (~ends | o.ready)),
            taken.eq(i.valid & i.ready),
            self._queue.r_en.eq(taken & ends & last_word),
        ]
        with m.If(taken):
            m.d.sync += [
                before.eq(wide[len(i.p) :]),
                beat.eq(Mux(beat == p.period_beats - 1, 0, beat + 1)),
            ]
            with m.If(ends):
                m.d.sync += left.eq(left + 1)
                with m.If(last_word):
                    m.d.sync += [left.eq(0), beat.eq(0)]
        return m

    def _transfers(self, m):
        """Hand commands on in beats, and keep the number of each one's last word."""
        p, cmd, o_cmd = self.params, self.cmd, self.o_cmd
        shift = exact_log2(p.period_words)
        beats = (cmd.p.beats * p.period_beats + (p.period_words - 1)) >> shift
        m.submodules.transfers = self._queue = queue = SyncFIFO(
            width=len(cmd.p.beats), depth=_TRANSFERS
        )
        m.d.comb += [
            o_cmd.p.addr.eq(cmd.p.addr),
            o_cmd.p.beats.eq(beats),
            o_cmd.valid.eq(cmd.valid & queue.w_rdy),
            cmd.ready.eq(o_cmd.ready & queue.w_rdy),
            queue.w_data.eq(cmd.p.beats - 1),
            # of no words nothing comes
            queue.w_en.eq(cmd.valid & o_cmd.ready & (cmd.p.beats != 0)),
        ]

"""Words and beats through the width converters, for one transfer that the solver picks."""

from abc import abstractmethod
from typing import Any

from amaranth import Module, Mux, Signal, Value
from amaranth.utils import exact_log2

from lutra_golden.axi.width import WidthParams
from lutra_hw.axi.width import ReadWidth, WriteWidth
from lutra_sim.formal.property import Property

__all__ = ["ReadWidthOrder", "WriteWidthOrder"]

_COUNT = 5
_WORDS_MAX = 4


class _WidthOrder(Property):
    """Common part of both directions: a command of any address and length, after any others."""

    def __init__(self, dut: Any) -> None:
        super().__init__(dut)
        self.params: WidthParams = dut.params

    def rules(self, m: Module) -> None:
        params, cmd, o_cmd = self.params, self.dut.cmd, self.dut.o_cmd
        self.assume(m, cmd.p.beats <= _WORDS_MAX)
        self.ratio = params.ratio
        first: Value = Signal(range(params.ratio), name="first")
        if not params.narrows:
            m.d.comb += first.eq(cmd.p.addr[exact_log2(params.word_bytes) :])
        count = Signal(_COUNT, name="count")
        beats = Signal(_COUNT, name="beats")
        m.d.comb += count.eq(cmd.p.beats)
        if params.narrows:
            m.d.comb += beats.eq(count * params.ratio)
        else:
            end = first + count + (params.ratio - 1)
            m.d.comb += beats.eq(Mux(count == 0, 0, end >> exact_log2(params.ratio)))
        taken = cmd.valid & cmd.ready
        self.claim(m, "a command goes on when it is taken", taken == (o_cmd.valid & o_cmd.ready))
        self.claim(m, "its beats are those of its words", ~o_cmd.valid | (o_cmd.p.beats == beats))
        self.claim(m, "its address stays", ~o_cmd.valid | (o_cmd.p.addr == cmd.p.addr))

        # words and beats of all commands that were taken, and of those before the picked one
        words_all, beats_all = (Signal(_COUNT, name=f"{name}_all") for name in ("words", "beats"))
        pick, self.picked = self.free(1, "pick"), Signal(name="picked")
        self.first, self.count = Signal.like(first, name="picked_first"), Signal(_COUNT)
        self.words_before, self.beats_before = Signal(_COUNT), Signal(_COUNT)
        with m.If(taken):
            m.d.sync += [words_all.eq(words_all + count), beats_all.eq(beats_all + beats)]
            with m.If(pick & ~self.picked & (count != 0)):
                m.d.sync += [
                    self.picked.eq(1),
                    self.first.eq(first),
                    self.count.eq(count),
                    self.words_before.eq(words_all),
                    self.beats_before.eq(beats_all),
                ]
        self.assume(m, words_all < 1 << _COUNT - 1, beats_all < 1 << _COUNT - 1)

        # the number of the word and of the beat that moves next on each side
        self.n_in, self.n_out = Signal(_COUNT, name="n_in"), Signal(_COUNT, name="n_out")
        m.d.sync += [
            self.n_in.eq(self.n_in + (self.dut.i.valid & self.dut.i.ready)),
            self.n_out.eq(self.n_out + (self.dut.o.valid & self.dut.o.ready)),
        ]
        self.assume(m, self.n_in < 1 << _COUNT - 1)
        # any word of the picked command; where it lies in its beats, or its beats in it
        self.word = self.constant(m, _COUNT, "word")
        self.part = self.constant(m, range(params.ratio), "part")
        self.assume(m, self.part < params.ratio)
        self.order(m)

    @abstractmethod
    def order(self, m: Module) -> None:
        """Claim what comes out."""


class ReadWidthOrder(_WidthOrder):
    """Every word is cut out of its beats, in order, and nothing else."""

    def __init__(self, params: WidthParams) -> None:
        super().__init__(ReadWidth(params))

    def order(self, m: Module) -> None:
        params, i, o = self.params, self.dut.i, self.dut.o
        if params.narrows:
            # any part of any word; commands do not matter
            beat = self.word * params.ratio + self.part
            kept = Signal(8 * params.beat_bytes)
            with m.If(self.n_in == beat):
                m.d.sync += kept.eq(i.p)
            part = o.p.word_select(self.part, 8 * params.beat_bytes)
            mine = o.valid & (self.n_out == self.word)
            last = self.part == params.ratio - 1
            self.claim(m, "a word is its beats", ~mine | (part == Mux(last, i.p, kept)))
            self.claim(
                m,
                "it comes with its last beat",
                ~o.valid | (i.valid & (self.n_in == self.n_out * params.ratio + params.ratio - 1)),
            )
            return
        place = self.first + self.word
        beat = self.beats_before + (place >> exact_log2(params.ratio))
        content = i.p.word_select(place[: exact_log2(params.ratio)], 8 * params.word_bytes)
        mine = self.picked & (self.word < self.count)
        mine &= o.valid & (self.n_out == self.words_before + self.word)
        self.claim(m, "a word comes with its beat", ~mine | (self.n_in == beat))
        self.claim(m, "a word is its part of the beat", ~mine | (o.p == content))


class WriteWidthOrder(_WidthOrder):
    """Every word is in its beats with its strobes, in order, and no other strobe is set."""

    def __init__(self, params: WidthParams) -> None:
        super().__init__(WriteWidth(params))

    def order(self, m: Module) -> None:
        params, i, o = self.params, self.dut.i, self.dut.o
        if params.narrows:
            data = i.p.data.word_select(self.part, 8 * params.beat_bytes)
            strobe = i.p.strb.word_select(self.part, params.beat_bytes)
            mine = o.valid & (self.n_out == self.word * params.ratio + self.part)
            same = (o.p.data == data) & (o.p.strb == strobe)
            self.claim(m, "a beat is a part of its word", ~mine | same)
            self.claim(m, "its word is still there", ~mine | (self.n_in == self.word))
            return
        # any place of any beat of the picked command, which may lie before or behind its words
        beat, bits = self.word, exact_log2(params.ratio)
        place, end = (beat << bits) + self.part, self.first + self.count
        number = Signal(_COUNT)
        m.d.comb += number.eq(self.words_before + place - self.first)
        kept: Any = Signal(i.p.shape())
        with m.If(self.n_in == number):
            m.d.sync += kept.eq(i.p)
        now = self.n_in == number
        data, strobe = Mux(now, i.p.data, kept.data), Mux(now, i.p.strb, kept.strb)
        o_data = o.p.data.word_select(self.part, 8 * params.word_bytes)
        o_strobe = o.p.strb.word_select(self.part, params.word_bytes)
        mine = self.picked & o.valid & (self.n_out == self.beats_before + beat)
        mine &= (beat << bits) < end
        inside = (place >= self.first) & (place < end)
        self.claim(m, "a word is in its beat", ~(mine & inside) | (o_strobe == strobe))
        self.claim(m, "its data are", ~(mine & inside) | (o_data == data) | (o_strobe == 0))
        self.claim(m, "beside the words nothing is written", ~mine | inside | (o_strobe == 0))

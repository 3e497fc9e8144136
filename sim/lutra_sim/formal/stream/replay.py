"""The words of a ReplayBuffer, whatever passes are taken when."""

from typing import Any

from amaranth import Module, Mux, Signal

from lutra_hw.stream.replay import ReplayBuffer
from lutra_sim.formal.property import Property, past, recorded

__all__ = ["ReplayOrder"]


class ReplayOrder(Property):
    """Passes come out as they went in: no word is lost, repeated or exchanged.

    One word, any, is followed through every pass that it is in. The reader takes only what is
    available, keeps ``keep`` constant within a pass, and lets no kept pass outgrow the buffer.
    """

    def __init__(self, depth: int, *, late_width: int = 0, lag: int = 0) -> None:
        super().__init__(ReplayBuffer(4, depth, late_width=late_width, lag=lag))

    def rules(self, m: Module) -> None:
        dut = self.dut
        # numbers of words: the next that comes, the next to take, the first of its pass
        numbers = range(4 * dut.depth)
        coming, position, base = Signal(numbers), Signal(numbers), Signal(numbers)
        length = Signal(numbers)  # of the pass so far
        self.assume(
            m,
            ~dut.take | dut.available,
            (length == 0) | (dut.keep == past(m, dut.keep, "keep")),
            ~(dut.take & dut.keep) | (length < dut.depth),
        )
        with m.If(dut.take):
            m.d.sync += [length.eq(length + 1), position.eq(position + 1)]
            with m.If(dut.end):
                m.d.sync += length.eq(0)
                with m.If(dut.keep):
                    m.d.sync += position.eq(base)
                with m.Else():
                    m.d.sync += base.eq(position + 1)

        arrives = dut.i.valid & dut.i.ready
        with m.If(arrives):
            m.d.sync += coming.eq(coming + 1)
        kept: Any = Mux(dut.keep, base, position)
        if dut.late_width:
            # a place is free when its late part is out
            for cycle in range(dut.lag):
                kept = past(m, kept, f"kept_{cycle}")
        held = Signal(numbers)
        m.d.comb += held.eq(coming - kept)
        self.claim(m, "available: the next word has come", dut.available == (coming != position))
        self.claim(m, "ready: there is room", dut.i.ready == (held != dut.depth))
        self.claim(m, "what is held fits the memory", held <= dut.depth)

        # one word: until it leaves, no other has its number
        followed, number, pick = Signal(), Signal(numbers), Signal()
        m.d.comb += pick.eq(arrives & self.free(1, "pick") & ~followed)
        word = recorded(m, pick, dut.i.payload, "word")
        taken = dut.take & followed & (position == number)
        with m.If(pick):
            m.d.sync += [followed.eq(1), number.eq(coming)]
        with m.Elif(taken & ~dut.keep):
            m.d.sync += followed.eq(0)

        split = dut.width - dut.late_width
        shown, expected = self._later(m, "early", taken, word[:split], 2)
        self.claim(m, "o is the word that was taken", ~shown | (dut.o == expected))
        if dut.late_width:
            marked = taken & dut.mark
            shown, expected = self._later(m, "late", marked, word[split:], 2 + dut.lag)
            self.claim(m, "late is that of the marked word", ~shown | (dut.late == expected))
            any_marked, _ = self._later(m, "mark", dut.take & dut.mark, word[split:], 2 + dut.lag)
            former = past(m, dut.late, "late_former")
            self.claim(m, "late stays until the next mark", any_marked | (dut.late == former))

    @staticmethod
    def _later(m: Module, name: str, event: Any, value: Any, cycles: int) -> tuple[Any, Any]:
        for cycle in range(cycles):
            event = past(m, event, f"{name}_event_{cycle}")
            value = past(m, value, f"{name}_value_{cycle}")
        return event, value

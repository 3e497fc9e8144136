"""Groups of activations in the parts that all engines share."""

from collections.abc import Sequence

from amaranth import Module, Signal, Value

from lutra_golden.matmul.engine import LANES, EngineParams
from lutra_hw.matmul.activations import ActivationSums
from lutra_sim.formal.property import Property, past, recorded

__all__ = ["SumsOfGroups"]


class SumsOfGroups(Property):
    """Sums come out in the order of their starts, each shifted as its group, with its shift.

    One start, any, is followed. ``params`` have depth tiles of one word.
    """

    def __init__(self, params: EngineParams) -> None:
        super().__init__(ActivationSums(params, 2))

    def rules(self, m: Module) -> None:
        dut = self.dut
        started = past(m, dut.start, "started")
        # a start in this cycle is shown three cycles later, until it is taken
        shown = past(m, past(m, started, "added"), "shown")
        waiting, there = Signal(3), Signal(3)
        m.d.sync += waiting.eq(waiting + dut.start - dut.take)
        m.d.comb += there.eq(shown + past(m, there - dut.take, "kept"))
        self.assume(m, ~dut.take | (there != 0), (waiting < dut.depth) | dut.take | ~dut.start)

        followed, ahead = Signal(), Signal(3)
        pick = dut.start & self.free(1, "pick") & ~followed
        mine = past(m, pick, "picked")
        sums = [
            _tree([dut.i[token][lane] for lane in range(LANES)])
            for token in range(dut.params.step_tokens)
        ]
        kept = [recorded(m, mine, value, f"sum_{k}") for k, value in enumerate(sums)]
        shifts = [
            recorded(m, mine, dut.i_shift[token], f"shift_{token}") for token in range(len(kept))
        ]
        leaves = followed & dut.take & (ahead == 0)
        with m.If(pick):
            m.d.sync += [followed.eq(1), ahead.eq(waiting - dut.take)]
        with m.Elif(dut.take & (ahead != 0)):
            m.d.sync += ahead.eq(ahead - 1)
        with m.Elif(leaves):
            m.d.sync += followed.eq(0)
        is_first = followed & (ahead == 0) & (there != 0)
        for token, (total, shift) in enumerate(zip(kept, shifts, strict=True)):
            signed_total = total.as_signed()
            expected = signed_total << shift if dut.params.offset_width else signed_total
            self.claim(m, f"the sum of token {token}", ~is_first | (dut.o[token] == expected))
            self.claim(m, f"its shift of token {token}", ~is_first | (dut.o_shift[token] == shift))


def _tree(values: Sequence[Value]) -> Value:
    while len(values) > 1:
        values = [a + b for a, b in zip(values[0::2], values[1::2], strict=True)]
    return values[0]

"""Shifts of groups of activations, from any magnitudes."""

from amaranth import Array, Module, Mux, Signal, Value

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.matmul.mac import MacParams
from lutra_hw.vector.group_shifts import GroupShifts
from lutra_sim.formal.property import Property

__all__ = ["ShiftOfGroups"]

_N_WORDS = 4  # at most, of a token
_SHORT = 2  # words of a group if ``short``
_WIDTH = 4


class ShiftOfGroups(Property):
    """Every word has the shift that the largest magnitude of its group leaves room for.

    A token of one to four words, in groups of two or of four; words of any magnitude come one
    behind the other, and the second pass as early as it may. The token's largest is any.
    """

    def __init__(self) -> None:
        groups = ActivationGroups(size=32, shift_max=3)
        params = MacParams(depth_tile=8, step_depth=8, act_tiles=4, a_groups=groups, sum_width=43)
        super().__init__(GroupShifts(params, _SHORT, 2, _WIDTH))

    @property
    def depth(self) -> int:
        # both passes, a cycle between them, and the latency
        return 2 * _N_WORDS + 1 + self.dut.latency + 1

    def rules(self, m: Module) -> None:
        dut = self.dut
        shift_max = dut.params.a_shift_max
        now = Signal(range(self.depth + 1))
        with m.If(now != self.depth):
            m.d.sync += now.eq(now + 1)
        length = self.constant(m, range(_N_WORDS + 1), "length")
        short = self.constant(m, 1, "short_groups")
        y_max = self.constant(m, _WIDTH, "largest")
        second = length + 1  # the second pass's first cycle
        measures, quantizes = now < length, (now >= second) & (now < second + length)
        self.assume(
            m,
            length != 0,
            length <= _N_WORDS,
            dut.short == short,
            dut.y_max == y_max,
            dut.measure == measures,
            dut.first == (measures & (now == 0)),
            dut.last == (measures & (now == length - 1)),
            dut.quantize == quantizes,
            dut.quantize_first == (quantizes & (now == second)),
            dut.quantize_last == (quantizes & (now == second + length - 1)),
        )

        # largest of the first two words, and of the others
        halves = [Signal(_WIDTH, name=f"half_{half}") for half in range(2)]
        here = Mux(dut.peaks[0] > dut.peaks[1], dut.peaks[0], dut.peaks[1])
        for half, largest in enumerate(halves):
            within = measures & (now >= _SHORT * half) & (now < _SHORT * (half + 1))
            with m.If(within & (here > largest)):
                m.d.sync += largest.eq(here)
        whole = Mux(halves[0] > halves[1], halves[0], halves[1])
        word = now - second - dut.latency
        due = (now >= second + dut.latency) & (now < second + dut.latency + length)
        peak = Mux(short, Array(halves)[(word >= _SHORT)], whole)
        doubled: list[Value] = [(peak << e) <= y_max for e in range(1, shift_max + 1)]
        self.claim(m, "shift is in its range", dut.shift <= shift_max)
        for e, fits in enumerate(doubled, 1):
            claim = (dut.shift <= shift_max - e) == fits
            self.claim(m, f"room for {e} bits is used, and no other", ~due | claim)

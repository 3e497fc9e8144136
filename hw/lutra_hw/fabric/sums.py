"""Sums of many operands, several rows to a cascade of DSP slices."""

from amaranth import Cat, ClockSignal, Const, Instance, Module, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lutra_golden.core.fabric import Fabric

__all__ = ["LANE_ROWS", "LANE_WIDTH", "PackedSum"]

LANE_WIDTH = 16
"""Bits of a DSP slice that the sum of a row has."""
LANE_ROWS = 3
"""Rows whose sums share a DSP slice."""
_WIDTH = LANE_WIDTH * LANE_ROWS
_B_WIDTH = 18
# multiplexers of a DSP48E2, in the fields of OPMODE: X = A:B, Y = C, Z = 0 or PCIN, W = 0
_X_AB, _Y_C, _Z_ZERO, _Z_PCIN, _W_ZERO = 0b11, 0b11, 0b000, 0b001, 0b00


class PackedSum(wiring.Component):
    """For each row the sum of ``n_operands`` unsigned words.

    Words of operands 2k and 2k + 1 come k cycles later than those of operands 0 and 1. Latency is
    ``latency = n_operands // 2 + 1`` cycles from the first operands to ``o``; throughput is one sum
    per cycle, and nothing stalls. Registers are not reset. Exact.

    In :attr:`Fabric.XCUP` three rows are added in one cascade of ``n_operands // 2`` DSP slices, in
    lanes of 16 bits: words are unsigned and a sum fits its lane, so that nothing passes from a lane
    to the next. Each slice adds two operands to the sum of the slice before it, and takes no LUT.

    Source: Xilinx UG579, chapters on the adder, on OPMODE and on cascades.

    Parameters
    ----------
    n_rows : number of sums.
    n_operands : words of a sum, an even number.
    width : bits of a word.
    fabric : :class:`Fabric`

    Members
    -------
    i : ``In(n_operands * n_rows * unsigned(width))``
    o : ``Out(n_rows * unsigned(o_width))``
    """

    def __init__(self, n_rows: int, n_operands: int, width: int, fabric: Fabric) -> None:
        for name, value in {"n_rows": n_rows, "n_operands": n_operands, "width": width}.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        if n_operands % 2:
            raise ValueError(f"n_operands must be even, not {n_operands}")
        self.o_width = width + ceil_log2(n_operands)
        if self.o_width > LANE_WIDTH:
            raise ValueError(
                f"width must be at most {LANE_WIDTH - ceil_log2(n_operands)} for {n_operands} "
                f"operands, whose sum has {LANE_WIDTH} bits, not {width}"
            )
        self.n_rows, self.n_operands, self.width = n_rows, n_operands, width
        self.fabric = Fabric(fabric)
        self.latency = n_operands // 2 + 1
        super().__init__(
            {
                "i": In(data.ArrayLayout(data.ArrayLayout(unsigned(width), n_rows), n_operands)),
                "o": Out(data.ArrayLayout(unsigned(self.o_width), n_rows)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        if self.fabric == Fabric.XCUP:
            for first in range(0, self.n_rows, LANE_ROWS):
                self._cascade(m, range(first, min(first + LANE_ROWS, self.n_rows)))
        else:
            for row in range(self.n_rows):
                self._add(m, row)
        return m

    def _add(self, m, row):
        """One row in registers and adders."""
        total = Const(0, self.o_width)
        for k in range(0, self.n_operands, 2):
            a = Signal(self.width, name=f"a_{row}_{k}", reset_less=True)
            b = Signal(self.width, name=f"b_{row}_{k}", reset_less=True)
            added = Signal(self.o_width, name=f"total_{row}_{k}", reset_less=True)
            m.d.sync += [
                a.eq(self.i[k][row]),
                b.eq(self.i[k + 1][row]),
                added.eq(total + (a + b)),
            ]
            total = added
        m.d.comb += self.o[row].eq(total)

    def _cascade(self, m, rows):
        """Rows in lanes of DSP slices."""
        total = cascade = Const(0, _WIDTH)
        for k in range(0, self.n_operands, 2):
            a_b, c = self._lanes(k, rows), self._lanes(k + 1, rows)
            total = Signal(_WIDTH, name=f"total_{rows[0]}_{k}")
            cascade_o = Signal(_WIDTH, name=f"cascade_{rows[0]}_{k}")
            z = _Z_PCIN if k else _Z_ZERO
            opmode = Cat(Const(_X_AB, 2), Const(_Y_C, 2), Const(z, 3), Const(_W_ZERO, 2))
            m.submodules[f"slice_{rows[0]}_{k}"] = Instance(
                "DSP48E2",
                p_USE_MULT="NONE",
                p_USE_SIMD="ONE48",
                p_AREG=1,
                p_ACASCREG=1,
                p_BREG=1,
                p_BCASCREG=1,
                p_CREG=1,
                p_PREG=1,
                p_MREG=0,
                # what never changes needs no registers
                p_OPMODEREG=0,
                p_ALUMODEREG=0,
                p_CARRYINREG=0,
                p_CARRYINSELREG=0,
                p_INMODEREG=0,
                i_CLK=ClockSignal(),
                i_A=a_b[_B_WIDTH:],
                i_B=a_b[:_B_WIDTH],
                i_C=c,
                i_PCIN=cascade,
                i_OPMODE=opmode,
                i_ALUMODE=Const(0, 4),
                i_INMODE=Const(0, 5),
                i_CARRYIN=Const(0, 1),
                i_CARRYINSEL=Const(0, 3),
                # of two registers in a row the second one is the only one
                i_CEA1=Const(0, 1),
                i_CEA2=Const(1, 1),
                i_CEB1=Const(0, 1),
                i_CEB2=Const(1, 1),
                i_CEC=Const(1, 1),
                i_CEP=Const(1, 1),
                i_RSTA=Const(0, 1),
                i_RSTB=Const(0, 1),
                i_RSTC=Const(0, 1),
                i_RSTP=Const(0, 1),
                o_P=total,
                o_PCOUT=cascade_o,
            )
            cascade = cascade_o
        for lane, row in enumerate(rows):
            m.d.comb += self.o[row].eq(total.word_select(lane, LANE_WIDTH))

    def _lanes(self, operand, rows):
        """Words of an operand, each in its lane."""
        gap = Const(0, LANE_WIDTH - self.width)
        words = [Cat(self.i[operand][row], gap) for row in rows]
        return Cat(words, Const(0, _WIDTH))[:_WIDTH]

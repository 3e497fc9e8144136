"""An accumulator's adder, which also doubles or drops what was accumulated."""

from amaranth import Cat, Const, Instance, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.core.fabric import Fabric

__all__ = ["TRUTH_TABLE", "Accumulate"]

_CHAIN = 8
"""Bits of a CARRY8."""


def _truth_table(o6, o5):
    """INIT of a LUT6_2 with I5 at 1, from functions of I0 to I4."""
    inputs = [[index >> k & 1 for k in range(5)] for index in range(32)]
    low = sum(o5(*bits) << index for index, bits in enumerate(inputs))
    high = sum(o6(*bits) << index for index, bits in enumerate(inputs))
    return low | high << 32


def _former(acc, below, first, double):
    """Bit of what is added to: nothing, the accumulator, or twice it."""
    return 0 if first else below if double else acc


TRUTH_TABLE = _truth_table(
    lambda i, acc, below, first, double: i ^ _former(acc, below, first, double),
    lambda i, acc, below, first, double: i,
)
"""INIT of the LUT of a bit."""


class Accumulate(wiring.Component):
    """``o = former + i``, modulo ``2 ** width``; ``former`` is 0 if ``first``, else ``2 * acc`` if
    ``double``, else ``acc``.

    Combinational. In :attr:`Fabric.XCUP` a bit is one LUT6_2 and one position of a CARRY8: the
    selection takes no LUT of its own.

    Source: Xilinx UG574, chapter on carry logic, for how LUTs feed a CARRY8.

    Parameters
    ----------
    width : bits of the accumulator.
    i_width : bits of what is added, no more than ``width``.
    fabric : :class:`Fabric`

    Members
    -------
    acc : ``In(signed(width))``
    i : ``In(signed(i_width))``
    first, double : ``In(1)``
    o : ``Out(signed(width))``
    """

    def __init__(self, width: int, i_width: int, fabric: Fabric) -> None:
        if width < 1:
            raise ValueError(f"width must be positive, not {width}")
        if not 1 <= i_width <= width:
            raise ValueError(f"i_width must be in 1..{width}, not {i_width}")
        self.width, self.i_width, self.fabric = width, i_width, Fabric(fabric)
        super().__init__(
            {
                "acc": In(signed(width)),
                "i": In(signed(i_width)),
                "first": In(1),
                "double": In(1),
                "o": Out(signed(width)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        if self.fabric == Fabric.XCUP:
            self._chain(m)
        else:
            former = Mux(self.first, 0, Mux(self.double, self.acc << 1, self.acc))
            m.d.comb += self.o.eq(former + self.i)
        return m

    def _chain(self, m):
        """A carry chain whose LUTs select."""
        propagate, generate = Signal(self.width), Signal(self.width)
        below = Cat(Const(0, 1), self.acc)
        for k in range(self.width):
            m.submodules[f"lut_{k}"] = Instance(
                "LUT6_2",
                p_INIT=Const(TRUTH_TABLE, 64),
                i_I0=self.i[min(k, self.i_width - 1)],
                i_I1=self.acc[k],
                i_I2=below[k],
                i_I3=self.first,
                i_I4=self.double,
                i_I5=Const(1, 1),
                o_O6=propagate[k],
                o_O5=generate[k],
            )
        carry = Const(0, 1)
        for first in range(0, self.width, _CHAIN):
            sums = Signal(_CHAIN, name=f"sums_{first}")
            carries = Signal(_CHAIN, name=f"carries_{first}")
            bits = slice(first, first + _CHAIN)
            m.submodules[f"carry_{first}"] = Instance(
                "CARRY8",
                p_CARRY_TYPE="SINGLE_CY8",
                i_CI=carry,
                i_CI_TOP=Const(0, 1),
                i_S=Cat(propagate[bits], Const(0, _CHAIN))[:_CHAIN],
                i_DI=Cat(generate[bits], Const(0, _CHAIN))[:_CHAIN],
                o_O=sums,
                o_CO=carries,
            )
            m.d.comb += self.o[bits].eq(sums)
            carry = carries[-1]

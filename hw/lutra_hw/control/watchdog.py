"""Watchdog: notices that a run makes no progress, without a clock of the host."""

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.control.registers import REGISTERS

__all__ = ["Watchdog"]


class Watchdog(wiring.Component):
    """Expires after ``limit`` cycles of a run in a row in which nothing moved.

    Then ``expired`` is high for a cycle, in which it begins to count anew. A limit of 0 is never.
    One that is set while a run goes on counts from there; one that replaces another, from the next
    move. Model: :func:`lutra_golden.control.watchdog.expiries`.

    Members
    -------
    limit : ``In(32)``
    running : ``In(1)``  cycles without it count for nothing
    moved : ``In(1)``
    expired : ``Out(1)``
    """

    def __init__(self):
        width = REGISTERS["WATCHDOG"].width
        super().__init__({"limit": In(width), "running": In(1), "moved": In(1), "expired": Out(1)})

    def elaborate(self, platform):
        m = Module()
        left, armed = Signal.like(self.limit), Signal()
        m.d.comb += self.expired.eq(self.running & (left == 0) & armed)
        m.d.sync += [left.eq(left - 1), armed.eq(self.limit != 0)]
        with m.If(~self.running | self.moved | (left == 0)):
            m.d.sync += left.eq(self.limit)
        return m

"""Failure of a run: which of several errors it is, and what is known of it."""

from amaranth import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.control.failure import UNITS
from lutra_golden.control.isa import HEADER, Unit
from lutra_golden.control.registers import ERROR_FIELDS, ErrorCode
from lutra_golden.core.ports import ADDRESS_WIDTH, Purpose
from lutra_hw.control.context import ERROR_CODE

__all__ = ["FAILURE_LAYOUT", "PORT_ERROR_LAYOUT", "FailureMux", "instruction_counts"]

PORT_ERROR_LAYOUT = data.StructLayout(
    {"error": 1, "response": ERROR_FIELDS["response"][1], "address": ADDRESS_WIDTH}
)
"""A transfer's error, one cycle; the rest counts in that cycle only."""

FAILURE_LAYOUT = data.StructLayout(
    {**{name: width for name, (_, width, _) in ERROR_FIELDS.items()}, "address": ADDRESS_WIDTH}
)
"""Parts of ERROR, and ERROR_ADDRESS."""


def instruction_counts() -> data.ArrayLayout:
    """Instructions that each unit has completed, in the order of :class:`Unit`."""
    return data.ArrayLayout(HEADER["wait_load"].width, len(Unit))


class FailureMux(wiring.Component):
    """One failure of all that come in a cycle: transfers first, in the order of :class:`Purpose`.

    Combinational. ``instruction`` is there without an error, too: what an abort ended.
    Model: :class:`lutra_golden.control.failure.Failure`.

    Members
    -------
    transfers : ``In(ArrayLayout(PORT_ERROR_LAYOUT, 5))``  in the order of :class:`Purpose`
    program : ``In(4)``  :class:`ErrorCode` of the sequencer
    completed : ``In(instruction_counts())``
    dispatched : ``In(16)``  instructions that left for their units
    o : ``Out(FAILURE_LAYOUT)``  ``code`` is NONE unless there is an error
    """

    def __init__(self):
        counts = instruction_counts()
        super().__init__(
            {
                "transfers": In(data.ArrayLayout(PORT_ERROR_LAYOUT, len(Purpose))),
                "program": In(ERROR_CODE),
                "completed": In(counts),
                "dispatched": In(counts.elem_shape),
                "o": Out(FAILURE_LAYOUT),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [self.o.code.eq(self.program), self.o.instruction.eq(self.dispatched)]
        # the first one is assigned last, and wins
        for number, (purpose, unit) in reversed([*enumerate(UNITS.items())]):
            transfer = self.transfers[number]
            assert purpose is list(Purpose)[number]
            with m.If(transfer.error):
                m.d.comb += [
                    self.o.code.eq(ErrorCode.BUS),
                    self.o.purpose.eq(number),
                    self.o.response.eq(transfer.response),
                    self.o.address.eq(transfer.address),
                ]
                if unit is not None:
                    m.d.comb += self.o.instruction.eq(self.completed[unit])
                else:
                    m.d.comb += self.o.instruction.eq(self.dispatched)
        return m

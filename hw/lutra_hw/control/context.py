"""Context of a run: the registers that tell the units which tokens and addresses."""

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.control.registers import CONTEXT, REGISTERS
from lutra_hw.axi.lite import RegisterBusSignature

__all__ = [
    "CONTEXT_WIDTHS",
    "ERROR_CODE",
    "REGISTER_ADDR_WIDTH",
    "RunContextSignature",
    "RunControlSignature",
]

ERROR_CODE = 4
"""Bits of an :class:`ErrorCode`."""
REGISTER_ADDR_WIDTH = 12

CONTEXT_WIDTHS = {name.lower(): REGISTERS[name].width for name in CONTEXT}
"""Bits of each field; a field is the register of the same name."""


class RunContextSignature(wiring.Signature):
    """Fields of :data:`CONTEXT_WIDTHS`, seen from the register file; stable during a run.

    A pass has tokens ``0..n_tokens - 1``, with logits from token ``logits_from`` on. The
    ``*_base`` are byte addresses; the logits of consecutive tokens are ``logits_stride`` bytes
    apart.
    """

    def __init__(self) -> None:
        super().__init__({name: Out(width) for name, width in CONTEXT_WIDTHS.items()})


class RunControlSignature(wiring.Signature):
    """Beginning and end of the runs of descriptors, seen from the register file.

    ``bell`` is the descriptor that comes next, in units of a doorbell; ``ready`` says that it may
    ``begin`` in this cycle. From the next cycle on the run is ``busy``, until it is over: a cycle
    after ``over``, or after a failure. One fails in the cycle of ``stop``; then ``clear`` is high
    until the memory owes nothing. While ``keeps`` a run that fails goes on after that, to be
    reported. While ``engaged`` a run of a descriptor is busy; ``frozen`` stops its counters. A
    ``refusal`` other than NONE is the run's first error, without a clear. ``bus`` comes before the
    host, and may write what shapes the run.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "bell": Out(REGISTERS["DOORBELL"].width),
                "ready": Out(1),
                "busy": Out(1),
                "stop": Out(1),
                "clear": Out(1),
                "begin": In(1),
                "engaged": In(1),
                "keeps": In(1),
                "frozen": In(1),
                "refusal": In(ERROR_CODE),
                "over": In(1),
                "bus": In(RegisterBusSignature(REGISTER_ADDR_WIDTH)),
            }
        )

"""Context of a run: the registers that tell the units which tokens and addresses."""

from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from lutra_golden.control.registers import CONTEXT, REGISTERS

__all__ = ["CONTEXT_WIDTHS", "RunContextSignature"]


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

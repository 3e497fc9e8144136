"""Layouts and signatures that units of the accelerator share: scales, memory ports, DMA streams."""

from amaranth import signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.arith.scale import SCALE, Scale
from lutra_golden.control.isa import INSTRUCTION_BYTES
from lutra_golden.core.ports import ADDRESS_WIDTH

__all__ = [
    "INSTRUCTION_SHAPE",
    "SCALE_LAYOUT",
    "ReadPortSignature",
    "WritePortSignature",
    "dma_command",
    "dma_write_data",
    "packed_scale",
    "scale_constant",
]

INSTRUCTION_SHAPE = unsigned(8 * INSTRUCTION_BYTES)

SCALE_LAYOUT = data.StructLayout({"m": unsigned(SCALE.m_width), "e": signed(SCALE.e_width)})
"""A scale: mantissa in the least significant bits, then the exponent."""


def scale_constant(scale: Scale) -> data.Const:
    """Return ``scale`` as a constant of :data:`SCALE_LAYOUT`."""
    return SCALE_LAYOUT.const({"m": int(scale.m), "e": int(scale.e)})


def packed_scale(word):
    """Return the fields ``(m, e)`` of a scale packed in 32 bits (memory, instructions)."""
    return word[: SCALE.m_width], word[16 : 16 + SCALE.e_width].as_signed()


class ReadPortSignature(wiring.Signature):
    """A memory's read port, seen from the reader: always enabled, data one cycle after ``addr``.

    ``addr`` is a struct of unsigned fields, for example ``{"token": 3, "word": 5}``.
    """

    def __init__(self, addr, payload):
        self.addr_layout = data.StructLayout(addr)
        self.payload_layout = payload
        super().__init__({"addr": Out(self.addr_layout), "data": In(payload)})


class WritePortSignature(wiring.Signature):
    """A memory's write port, seen from the writer: ``en`` for one cycle writes ``data``."""

    def __init__(self, addr, payload):
        self.addr_layout = data.StructLayout(addr)
        self.payload_layout = payload
        super().__init__({"en": Out(1), "addr": Out(self.addr_layout), "data": Out(payload)})


def dma_command(addr_width: int = ADDRESS_WIDTH) -> stream.Signature:
    """Stream of transfers: byte address of the first beat (aligned to a beat) and beat count."""
    layout = data.StructLayout({"addr": unsigned(addr_width), "beats": unsigned(24)})
    return stream.Signature(layout)


def dma_write_data(width: int) -> stream.Signature:
    """Stream of write beats with a strobe per byte."""
    layout = data.StructLayout({"data": unsigned(width), "strb": unsigned(width // 8)})
    return stream.Signature(layout)

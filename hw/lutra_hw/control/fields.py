"""Fields of an instruction word, cut where the golden instruction set says they lie."""

from amaranth import C, Cat, Mux, Signal
from amaranth.lib import data
from amaranth.utils import exact_log2

from lutra_golden.control.isa import FIELDS, FLAG_LOGITS, HEADER, Opcode

__all__ = ["argument", "header", "tile_tokens"]


def header(word, name: str):
    """Field ``name`` of the header of instruction ``word``."""
    field = HEADER[name]
    return word[field.start : field.start + field.width]


def argument(word, opcode: Opcode, name: str):
    """Field ``name`` of instruction ``word``, which is an ``opcode``, times its unit."""
    field = FIELDS[opcode][name]
    return Cat(C(0, exact_log2(field.unit)), word[field.start : field.start + field.width])


def tile_tokens(m, word, n_tokens, logits_from):
    """Tokens that instruction ``word`` works on: ``(first, count)``; the count may be zero."""
    tokens = Signal(data.StructLayout({"first": n_tokens.shape(), "count": n_tokens.shape()}))
    m.d.comb += [
        tokens.first.eq(Mux(header(word, "flags") & FLAG_LOGITS, logits_from, 0)),
        tokens.count.eq(Mux(tokens.first < n_tokens, n_tokens - tokens.first, 0)),
    ]
    return tokens.first, tokens.count

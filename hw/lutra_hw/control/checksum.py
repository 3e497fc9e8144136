"""Checksum of words that come one after another."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.control.blocks import WORD_WIDTH
from lutra_golden.control.checksum import CHECKSUM_TAPS, CHECKSUM_WIDTH

__all__ = ["Checksum"]


class Checksum(wiring.Component):
    """Checksum of 32-bit words, of which two are a word of 64 bits, the low one first.

    The sum has the word in the next cycle; after reset it is 0. ``swap`` exchanges its halves, so
    that both can be taken from ``half``; no word comes then.

    Model: :func:`lutra_golden.control.checksum.checksum`.

    Members
    -------
    en, word : ``In(1)``, ``In(32)``
    swap : ``In(1)``
    half : ``Out(32)``  low half of the sum
    """

    def __init__(self):
        super().__init__(
            {"en": In(1), "word": In(WORD_WIDTH), "swap": In(1), "half": Out(WORD_WIDTH)}
        )

    def elaborate(self, platform):
        m = Module()
        total, is_high = Signal(CHECKSUM_WIDTH), Signal()
        low, high = total[:WORD_WIDTH], total[WORD_WIDTH:]
        product = Signal(CHECKSUM_WIDTH)
        m.d.comb += [
            self.half.eq(low),
            product.eq((total << 1) ^ Mux(total[-1], CHECKSUM_TAPS, 0)),
        ]
        with m.If(self.swap):
            m.d.sync += total.eq(Cat(high, low))
        with m.Elif(self.en):
            m.d.sync += is_high.eq(~is_high)
            with m.If(is_high):
                m.d.sync += total.eq(Cat(low, high ^ self.word))
            with m.Else():
                m.d.sync += total.eq(product ^ self.word)
        return m

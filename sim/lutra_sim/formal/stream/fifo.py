"""The words of Amaranth's FIFOs, of depths that blocks use."""

from typing import Any, cast

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from lutra_sim.formal.property import Property, Token, recorded

__all__ = ["Fifo", "FifoOrder"]


class Fifo(wiring.Component):
    """One of Amaranth's FIFOs as a component with streams."""

    def __init__(self, kind: type[SyncFIFO | SyncFIFOBuffered], width: int, depth: int) -> None:
        self._fifo: Any = kind(width=width, depth=depth)
        self.depth = depth
        super().__init__(
            {
                "i": In(stream.Signature(width)),
                "o": Out(stream.Signature(width)),
                "level": Out(range(depth + 1)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m, ports = Module(), cast(Any, self)
        m.submodules.fifo = fifo = self._fifo
        wiring.connect(m, wiring.flipped(ports.i), fifo.w_stream)
        wiring.connect(m, fifo.r_stream, wiring.flipped(ports.o))
        m.d.comb += ports.level.eq(fifo.level)
        return m


class FifoOrder(Property):
    """Every word comes out once and in order, ``latency`` cycles after it came at most."""

    def __init__(self, kind: type[SyncFIFO | SyncFIFOBuffered], depth: int, latency: int) -> None:
        super().__init__(Fifo(kind, 4, depth))
        self._latency = latency

    def rules(self, m: Module) -> None:
        dut = self.dut
        token = Token(self, m, ["o"], width=(dut.depth + 1).bit_length())
        pick, _ = token.enter(dut.i.valid & dut.i.ready)
        here, _ = token.passes("o", dut.o.valid & dut.o.ready)
        word = recorded(m, pick, dut.i.payload, "word")
        held = token.left["o"]
        self.claim(m, "a word comes out in its turn", ~here | (dut.o.payload == word))
        self.claim(m, "level counts the words", dut.level == held)
        self.claim(m, "it holds up to its depth", dut.i.ready == (held != dut.depth))
        self.claim(m, "an empty FIFO offers nothing", ~dut.o.valid | (held != 0))
        waits = Signal(range(self._latency + 2))
        with m.If((held == 0) | dut.o.valid):
            m.d.sync += waits.eq(0)
        with m.Else():
            m.d.sync += waits.eq(waits + 1)
        self.claim(m, "a word is offered within the latency", waits < self._latency)

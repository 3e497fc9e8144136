"""Ring buffer of a stream that replays its words."""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["ReplayBuffer"]


class ReplayBuffer(wiring.Component):
    """Ring buffer whose reader takes words in passes, each of which it may replay.

    ``o`` follows ``take`` by two cycles; a word may be taken in the cycle after it was accepted,
    and one per cycle. A word leaves the buffer as it is taken; with ``keep`` the whole pass stays
    and the next pass begins with its first word again. A pass that is kept must fit the buffer.
    ``i`` is ready while there is room.

    Parameters
    ----------
    width : bits of a word.
    depth : words, a power of two.

    Members
    -------
    i : ``In(stream.Signature(unsigned(width)))``
    available : ``Out(1)``  the next word may be taken.
    take : ``In(1)``  only while ``available``.
    keep : ``In(1)``  the pass will be replayed; constant from a pass's first word to its last,
        low between the last pass of some words and the first of the next.
    end : ``In(1)``  with ``take``: this is the last word of a pass.
    o : ``Out(width)``
    """

    i: stream.Interface

    def __init__(self, width: int, depth: int) -> None:
        if width < 1:
            raise ValueError(f"width must be positive, not {width}")
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two from 2 on, not {depth}")
        self.width, self.depth = width, depth
        super().__init__(
            {
                "i": In(stream.Signature(unsigned(width))),
                "available": Out(1),
                "take": In(1),
                "keep": In(1),
                "end": In(1),
                "o": Out(width),
            }
        )

    def elaborate(self, platform):
        m = Module()

        m.submodules.memory = memory = Memory(shape=unsigned(self.width), depth=self.depth, init=[])
        w_port, r_port = memory.write_port(), memory.read_port()
        # one bit more than an address: a full buffer differs from an empty one
        written, taken, base, freed = (
            Signal(range(2 * self.depth), name=name)
            for name in ("written", "taken", "base", "freed")
        )
        loaded = Signal()
        m.d.comb += [
            w_port.en.eq(self.i.valid & self.i.ready),
            w_port.addr.eq(written),
            w_port.data.eq(self.i.payload),
            r_port.en.eq(self.take),
            r_port.addr.eq(taken),
            freed.eq(Mux(self.keep, base, taken)),
            self.i.ready.eq((written ^ freed) != self.depth),
            self.available.eq(written != taken),
        ]

        m.d.sync += loaded.eq(self.take)
        with m.If(loaded):
            m.d.sync += self.o.eq(r_port.data)
        with m.If(w_port.en):
            m.d.sync += written.eq(written + 1)
        with m.If(self.take):
            m.d.sync += taken.eq(taken + 1)
            with m.If(self.end & self.keep):
                m.d.sync += taken.eq(base)
            with m.Elif(self.end):
                m.d.sync += base.eq(taken + 1)
        return m

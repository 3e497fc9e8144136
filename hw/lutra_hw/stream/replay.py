"""Ring buffer of a stream that replays its words, and may give a part of them later."""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra_hw.pipeline import delay

__all__ = ["ReplayBuffer"]


class ReplayBuffer(wiring.Component):
    """Ring buffer whose reader takes words in passes, each of which it may replay.

    ``o`` follows ``take`` by two cycles; a word may be taken in the cycle after it was accepted,
    and one per cycle. A word leaves the buffer as it is taken; with ``keep`` the whole pass stays
    and the next pass begins with its first word again. A pass that is kept must fit the buffer.
    ``i`` is ready while there is room. The upper ``late_width`` bits of a word are its late part:
    that of a word which is taken with ``mark`` is ``late`` another ``lag`` cycles later, and stays
    until the next one. Waiting in the memory, it takes no registers.

    Parameters
    ----------
    width : bits of a word.
    depth : words, a power of two.
    late_width : bits of its late part; zero for none.
    lag : cycles by which the late part comes later.

    Members
    -------
    i : ``In(stream.Signature(unsigned(width)))``
    available : ``Out(1)``  the next word may be taken.
    take : ``In(1)``  only while ``available``.
    keep : ``In(1)``  the pass will be replayed; constant from a pass's first word to its last,
        low between the last pass of some words and the first of the next.
    end : ``In(1)``  with ``take``: this is the last word of a pass.
    o : ``Out(width - late_width)``
    mark : ``In(1)``  with ``take``: the word's late part is wanted.
    late : ``Out(late_width)``
    """

    i: stream.Interface

    def __init__(self, width: int, depth: int, *, late_width: int = 0, lag: int = 0) -> None:
        if width < 1:
            raise ValueError(f"width must be positive, not {width}")
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two from 2 on, not {depth}")
        if not 0 <= late_width < width:
            raise ValueError(f"late_width must be in 0..{width - 1}, not {late_width}")
        if lag < 0:
            raise ValueError(f"lag must not be negative, not {lag}")
        self.width, self.depth, self.late_width, self.lag = width, depth, late_width, lag
        super().__init__(
            {
                "i": In(stream.Signature(unsigned(width))),
                "available": Out(1),
                "take": In(1),
                "keep": In(1),
                "end": In(1),
                "o": Out(width - late_width),
                "mark": In(1),
                "late": Out(late_width),
            }
        )

    def elaborate(self, platform):
        m = Module()

        # one bit more than an address: a full buffer differs from an empty one
        written, taken, base, freed = (
            Signal(range(2 * self.depth), name=name)
            for name in ("written", "taken", "base", "freed")
        )
        write = Signal()
        split = self.width - self.late_width
        self._memory(m, "memory", write, written, self.i.payload[:split], self.take, taken, self.o)
        m.d.comb += freed.eq(Mux(self.keep, base, taken))
        if self.late_width:
            # a word's place is free when its late part has been read
            freed = delay(m, freed, self.lag)[-1]
            address = delay(m, taken, self.lag, reset_less=True)[-1]
            mark = delay(m, self.take & self.mark, self.lag, name="mark", reset_less=True)[-1]
            late = self.i.payload[split:]
            self._memory(m, "late_memory", write, written, late, mark, address, self.late)
        m.d.comb += [
            write.eq(self.i.valid & self.i.ready),
            self.i.ready.eq((written ^ freed) != self.depth),
            self.available.eq(written != taken),
        ]

        with m.If(write):
            m.d.sync += written.eq(written + 1)
        with m.If(self.take):
            m.d.sync += taken.eq(taken + 1)
            with m.If(self.end & self.keep):
                m.d.sync += taken.eq(base)
            with m.Elif(self.end):
                m.d.sync += base.eq(taken + 1)
        return m

    def _memory(self, m, name, write, w_addr, word, read, r_addr, o):
        """A memory of words, or of a part of them, with a register behind it."""
        m.submodules[name] = memory = Memory(shape=unsigned(len(word)), depth=self.depth, init=[])
        w_port, r_port = memory.write_port(), memory.read_port()
        m.d.comb += [
            w_port.en.eq(write),
            w_port.addr.eq(w_addr),
            w_port.data.eq(word),
            r_port.en.eq(read),
            r_port.addr.eq(r_addr),
        ]
        loaded = Signal(name=f"{name}_loaded")
        latest = Signal(len(word), name=f"{name}_latest", reset_less=True)
        m.d.sync += loaded.eq(read)
        with m.If(loaded):
            m.d.sync += latest.eq(r_port.data)
        m.d.comb += o.eq(latest)

"""Width converters between a unit and the DMA engine of a port of another width."""

from amaranth import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.axi.width import WidthParams
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.ports import dma_command, dma_write_data

__all__ = ["ReadWidth", "WriteWidth"]

_TRANSFERS = 4


def _check(params):
    if not isinstance(params, WidthParams):
        raise TypeError(f"params must be WidthParams, not {params!r}")


class ReadWidth(wiring.Component):
    """Words of a unit out of the beats that a :class:`DmaReader` of another width reads.

    A command goes on in the same cycle, in beats. To a narrower port a word is ``ratio`` beats: it
    is on ``o`` in the cycle of its last beat. To a wider one words are cut out of the beats in
    which they lie, one per cycle, in the cycle in which their beat is there; what lies beside them
    is dropped, and up to 4 commands go ahead of their data. Throughput is one beat or one word per
    cycle, whichever is narrower; nothing waits between commands. Reset drops everything.

    Model: :func:`lutra_golden.axi.width.words_of`, ``beats_of``.

    Parameters
    ----------
    params : :class:`WidthParams`
    addr_width : bits of a byte address.

    Members
    -------
    cmd : ``In(dma_command(addr_width))``  in words, the address that of a word
    o_cmd : ``Out(dma_command(addr_width))``  in beats, which must be fewer than 2**24
    i : ``In(stream.Signature(unsigned(8 * beat_bytes)))``  the lowest address in the LSBs
    o : ``Out(stream.Signature(unsigned(8 * word_bytes)))``  the lowest address in the LSBs
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: WidthParams, addr_width: int = ADDRESS_WIDTH):
        _check(params)
        self.params, self.addr_width = params, addr_width
        super().__init__(
            {
                "cmd": In(dma_command(addr_width)),
                "o_cmd": Out(dma_command(addr_width)),
                "i": In(stream.Signature(unsigned(8 * params.beat_bytes))),
                "o": Out(stream.Signature(unsigned(8 * params.word_bytes))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        if self.params.narrows:
            _multiply(m, self.params, self.cmd, self.o_cmd)
            self._gather(m)
        else:
            self._cut(m, _transfers(m, self.params, self.cmd, self.o_cmd))
        return m

    def _gather(self, m):
        params, i, o = self.params, self.i, self.o
        earlier = Signal(8 * (params.word_bytes - params.beat_bytes))
        count, last = Signal(range(params.ratio)), Signal()
        m.d.comb += [
            last.eq(count == params.ratio - 1),
            o.p.eq(Cat(earlier, i.p)),
            o.valid.eq(i.valid & last),
            i.ready.eq(~last | o.ready),
        ]
        with m.If(i.valid & i.ready):
            m.d.sync += [
                count.eq(Mux(last, 0, count + 1)),
                earlier.eq(Cat(earlier, i.p)[len(i.p) :]),
            ]

    def _cut(self, m, transfer):
        i, o = self.i, self.o
        lane, last = _words(m, self.params, transfer, o.valid & o.ready)
        m.d.comb += [
            o.p.eq(i.p.word_select(lane, 8 * self.params.word_bytes)),
            o.valid.eq(i.valid & transfer.valid),
            transfer.ready.eq(i.valid & o.ready & last),
            i.ready.eq(transfer.valid & o.ready & (last | lane.all())),
        ]


class WriteWidth(wiring.Component):
    """Words of a unit as beats for a :class:`DmaWriter` of another width.

    A command goes on in the same cycle, in beats. To a narrower port a word is ``ratio`` beats, the
    first in the cycle in which the word is there; it leaves with its last beat. To a wider one
    words of a command are gathered: a beat leaves in the cycle of its last word, with strobes of
    the words that came; up to 4 commands go ahead of their data, which waits for its command.
    Throughput is one beat or one word per cycle, whichever is narrower. Nothing stays here of a
    command all of whose words were taken, so the writer's ``idle`` is that of both. Reset drops
    everything.

    Model: :func:`lutra_golden.axi.width.word_beats`, ``beats_of``.

    Parameters
    ----------
    params : :class:`WidthParams`
    addr_width : bits of a byte address.

    Members
    -------
    cmd : ``In(dma_command(addr_width))``  in words, the address that of a word
    o_cmd : ``Out(dma_command(addr_width))``  in beats, which must be fewer than 2**24
    i : ``In(dma_write_data(8 * word_bytes))``
    o : ``Out(dma_write_data(8 * beat_bytes))``  data without a strobe may be anything
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: WidthParams, addr_width: int = ADDRESS_WIDTH):
        _check(params)
        self.params, self.addr_width = params, addr_width
        super().__init__(
            {
                "cmd": In(dma_command(addr_width)),
                "o_cmd": Out(dma_command(addr_width)),
                "i": In(dma_write_data(8 * params.word_bytes)),
                "o": Out(dma_write_data(8 * params.beat_bytes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        if self.params.narrows:
            _multiply(m, self.params, self.cmd, self.o_cmd)
            self._split(m)
        else:
            self._gather(m, _transfers(m, self.params, self.cmd, self.o_cmd))
        return m

    def _split(self, m):
        params, i, o = self.params, self.i, self.o
        count, last = Signal(range(params.ratio)), Signal()
        m.d.comb += [
            last.eq(count == params.ratio - 1),
            o.p.data.eq(i.p.data.word_select(count, 8 * params.beat_bytes)),
            o.p.strb.eq(i.p.strb.word_select(count, params.beat_bytes)),
            o.valid.eq(i.valid),
            i.ready.eq(o.ready & last),
        ]
        with m.If(o.valid & o.ready):
            m.d.sync += count.eq(Mux(last, 0, count + 1))

    def _gather(self, m, transfer):
        params, i, o = self.params, self.i, self.o
        lane, last = _words(m, params, transfer, i.valid & i.ready)
        # words of the beat that came before this one; the last lane is never kept
        kept = [Signal(i.p.shape(), name=f"kept_{index}") for index in range(params.ratio - 1)]
        complete, beat = Signal(), []
        for index in range(params.ratio):
            word = Signal(i.p.shape(), name=f"word_{index}")
            m.d.comb += word.eq(kept[index] if index < len(kept) else i.p)
            with m.If(lane == index):
                m.d.comb += word.eq(i.p)
            with m.Elif(lane < index):
                m.d.comb += word.strb.eq(0)
            beat.append(word)
        m.d.comb += [
            complete.eq(last | lane.all()),
            o.p.data.eq(Cat(word.data for word in beat)),
            o.p.strb.eq(Cat(word.strb for word in beat)),
            o.valid.eq(i.valid & transfer.valid & complete),
            i.ready.eq(transfer.valid & (~complete | o.ready)),
            transfer.ready.eq(i.valid & last & o.ready),
        ]
        with m.If(i.valid & i.ready):
            for index, word in enumerate(kept):
                with m.If(complete):
                    m.d.sync += word.strb.eq(0)
                with m.Elif(lane == index):
                    m.d.sync += word.eq(i.p)


def _multiply(m, params, cmd, o_cmd):
    """Commands to a narrower port: as many times ``ratio`` beats."""
    m.d.comb += [
        o_cmd.p.addr.eq(cmd.p.addr),
        o_cmd.p.beats.eq(cmd.p.beats * params.ratio),
        o_cmd.valid.eq(cmd.valid),
        cmd.ready.eq(o_cmd.ready),
    ]


def _transfers(m, params, cmd, o_cmd):
    """Commands to a wider port: the beats that the words lie in.

    Returns what is to be done with the data, a stream: the first word's place in its beat, and
    the index of the last one. A command of no words is not among them.
    """
    layout = data.StructLayout(
        {"first": range(params.ratio), "last": cmd.p.beats.shape()},
    )
    transfer = stream.Signature(layout).create(path=("transfer",))
    m.submodules.transfers = queue = SyncFIFO(width=layout.size, depth=_TRANSFERS)
    entry, is_empty = Signal(layout), cmd.p.beats == 0
    end = cmd.p.beats + entry.first + (params.ratio - 1)
    m.d.comb += [
        entry.first.eq(cmd.p.addr[exact_log2(params.word_bytes) :]),
        entry.last.eq(cmd.p.beats - 1),
        o_cmd.p.addr.eq(cmd.p.addr),
        o_cmd.p.beats.eq(Mux(is_empty, 0, end >> exact_log2(params.ratio))),
        o_cmd.valid.eq(cmd.valid & queue.w_rdy),
        cmd.ready.eq(o_cmd.ready & queue.w_rdy),
        queue.w_data.eq(entry),
        queue.w_en.eq(cmd.valid & o_cmd.ready & ~is_empty),
        transfer.p.eq(queue.r_data),
        transfer.valid.eq(queue.r_rdy),
        queue.r_en.eq(transfer.ready),
    ]
    return transfer


def _words(m, params, transfer, moved):
    """Place in its beat of the word that moves next, and whether it is the transfer's last."""
    index, last = Signal.like(transfer.p.last), Signal()
    lane = Signal(range(params.ratio))
    m.d.comb += [last.eq(index == transfer.p.last), lane.eq(transfer.p.first + index)]
    with m.If(moved):
        m.d.sync += index.eq(Mux(last, 0, index + 1))
    return lane, last

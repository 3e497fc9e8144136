"""Load unit: parameters, rotary tables and embeddings from memory into on-chip buffers."""

from amaranth import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.control.isa import FLAG_LOW, Opcode
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.buffers import (
    ChunkReadPort,
    ParamWritePort,
    ResidualWritePort,
    RopeWritePort,
    TokenReadPort,
)
from lutra_hw.control.chunks import ChunkWalker
from lutra_hw.control.context import RunContextSignature
from lutra_hw.control.fields import argument, header
from lutra_hw.ports import INSTRUCTION_SHAPE, dma_command

__all__ = ["LoadUnit"]

_ELEMENTS = 8  # of a word
_WORD_BYTES = 2 * _ELEMENTS


class _Kind(enum.Enum, shape=2):
    PARAM = 0
    ROPE = 1
    EMBED = 2


class LoadUnit(wiring.Component):
    """Executes LDPARAM, LDROPE and EMBED: asks for rows of int16 and writes them word by word.

    A row starts at a word of memory; only its last word may be cut. Addresses of the rows of an
    EMBED, and of the chunks of an LDROPE, are computed by shift and add while earlier ones are
    written. An instruction of n words takes n + b + 5 cycles and the memory's latency until
    ``done``, where b are the bits of ``n_words`` (EMBED) or of ``head_dim / 8`` (LDROPE), else 1,
    as long as a row, or the rows of a chunk, have b + 3 words; everything is written then. One of
    no words takes 2.

    Model: :meth:`lutra_golden.control.interpreter.Interpreter.run`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    cmd : ``In(stream.Signature(INSTRUCTION_SHAPE))``
    context : ``In(RunContextSignature())``
    tokens : ``Out(TokenReadPort(config))``
    chunks : ``Out(ChunkReadPort(config))``
    rd_cmd : ``Out(dma_command())``
    rd_data : ``In(stream.Signature(unsigned(8 * load_word_bytes)))``
    param_w : ``Out(ParamWritePort(config))``
    rope_w : ``Out(RopeWritePort(config))``
    embed_w : ``Out(ResidualWritePort(config))``
    embed_low : ``Out(1)``  ``embed_w`` writes only the 16 low bits of each element.
    done : ``Out(1)``  one cycle per instruction
    busy, stall : ``Out(1)``  an instruction is here; it waits for data
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "cmd": In(stream.Signature(INSTRUCTION_SHAPE)),
                "context": In(RunContextSignature()),
                "tokens": Out(TokenReadPort(config)),
                "chunks": Out(ChunkReadPort(config)),
                "rd_cmd": Out(dma_command()),
                "rd_data": In(stream.Signature(unsigned(8 * config.load_word_bytes))),
                "param_w": Out(ParamWritePort(config)),
                "rope_w": Out(RopeWritePort(config)),
                "embed_w": Out(ResidualWritePort(config)),
                "embed_low": Out(1),
                "done": Out(1),
                "busy": Out(1),
                "stall": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        kind = Signal(_Kind)
        n_rows, n_words = Signal(8), Signal(16)
        param_word, shift = Signal(16), Signal(5)
        reading, finished = Signal(), Signal()

        self._requests(m, kind, n_rows, n_words, param_word, shift, reading, finished)
        self._words(m, kind, n_rows, n_words, param_word, shift, reading, finished)
        return m

    def _requests(self, m, kind, n_rows, n_words, param_word, shift, reading, finished):
        """Take an instruction and ask for its rows, or those of a chunk, one transfer each."""
        config, word = self.config, self.cmd.p
        m.submodules.walker = walker = ChunkWalker(config)
        wiring.connect(m, walker.table, wiring.flipped(self.chunks))
        rope_words = exact_log2(config.head_dim // _ELEMENTS)
        beat_words = config.load_word_bytes // _WORD_BYTES

        offset, base = Signal(ADDRESS_WIDTH), Signal(ADDRESS_WIDTH)
        row = Signal(8)
        is_rope, last = Signal(), Signal()
        n_asked = Signal.like(n_words)  # words of the row
        # the row starts at base + multiplicand * multiplier words
        multiplicand, multiplier = Signal(ADDRESS_WIDTH - exact_log2(_WORD_BYTES)), Signal(16)
        address = Signal(ADDRESS_WIDTH)
        m.d.comb += [
            is_rope.eq(kind == _Kind.ROPE),
            walker.n_tokens.eq(self.context.n_tokens),
            walker.step.eq(is_rope & self.rd_cmd.valid & self.rd_cmd.ready),
            last.eq(Mux(is_rope, walker.chunk.last, row + 1 == n_rows)),
            self.tokens.addr.token.eq(row),
            self.rd_cmd.p.addr.eq(address),
            self.rd_cmd.p.beats.eq((n_asked + (beat_words - 1)) >> exact_log2(beat_words)),
        ]
        with m.FSM() as fsm:
            with m.State("Idle"):
                m.d.sync += [
                    # every instruction's address is its first field
                    offset.eq(argument(word, Opcode.LDPARAM, "address")),
                    param_word.eq(argument(word, Opcode.LDPARAM, "param_word")),
                    shift.eq(argument(word, Opcode.EMBED, "shift")),
                    self.embed_low.eq(header(word, "flags") & FLAG_LOW != 0),
                    row.eq(0),
                ]
                with m.Switch(header(word, "opcode")):
                    with m.Case(Opcode.LDPARAM):
                        m.d.sync += [
                            kind.eq(_Kind.PARAM),
                            n_rows.eq(1),
                            n_words.eq(argument(word, Opcode.LDPARAM, "n_words")),
                        ]
                    with m.Case(Opcode.LDROPE):
                        # rows of consecutive positions are one, and chunks follow each other
                        m.d.sync += [
                            kind.eq(_Kind.ROPE),
                            n_rows.eq(1),
                            n_words.eq(self.context.n_tokens << rope_words),
                        ]
                    with m.Default():
                        m.d.sync += [
                            kind.eq(_Kind.EMBED),
                            n_rows.eq(self.context.n_tokens),
                            n_words.eq(argument(word, Opcode.EMBED, "n_words")),
                        ]
                with m.If(self.cmd.valid):
                    m.next = "Base"
            with m.State("Base"):
                m.d.sync += base.eq(self.context.weight_base + offset)
                with m.If((n_rows == 0) | (n_words == 0)):
                    m.next = "Done"
                with m.Else():
                    m.next = "Row"
            with m.State("Row"):
                m.d.sync += [address.eq(base), n_asked.eq(n_words)]
                with m.Switch(kind):
                    with m.Case(_Kind.PARAM):
                        m.d.sync += multiplier.eq(0)
                    with m.Case(_Kind.ROPE):
                        m.d.sync += [
                            n_asked.eq(walker.chunk.count << rope_words),
                            multiplicand.eq(walker.chunk.position),
                            multiplier.eq(config.head_dim // _ELEMENTS),
                        ]
                    with m.Default():
                        m.d.sync += [multiplicand.eq(self.tokens.data), multiplier.eq(n_words)]
                m.next = "Multiply"
            with m.State("Multiply"):
                with m.If(multiplier[0]):
                    m.d.sync += address.eq(address + (multiplicand << exact_log2(_WORD_BYTES)))
                m.d.sync += [
                    multiplicand.eq(multiplicand << 1),
                    multiplier.eq(multiplier >> 1),
                ]
                with m.If(multiplier[1:] == 0):
                    m.next = "Request"
            with m.State("Request"):
                with m.If(self.rd_cmd.ready):
                    m.d.sync += row.eq(row + 1)
                    with m.If(last):
                        m.next = "Write"
                    with m.Else():
                        m.next = "Token"
            with m.State("Token"):
                # the token's number comes a cycle after its address, the chunk too
                m.next = "Row"
            with m.State("Write"):
                with m.If(finished):
                    m.next = "Done"
            with m.State("Done"):
                m.next = "Idle"
        m.d.comb += [
            self.cmd.ready.eq(fsm.ongoing("Idle")),
            self.busy.eq(~fsm.ongoing("Idle")),
            self.done.eq(fsm.ongoing("Done")),
            self.rd_cmd.valid.eq(fsm.ongoing("Request")),
        ]
        with m.If(fsm.ongoing("Base")):
            m.d.sync += reading.eq((n_rows != 0) & (n_words != 0))

    def _words(self, m, kind, n_rows, n_words, param_word, shift, reading, finished):
        """Cut the beats that come into words and write them."""
        config, rd_data = self.config, self.rd_data
        rope_bits = exact_log2(config.head_dim // _ELEMENTS)
        beat_words = config.load_word_bytes // _WORD_BYTES

        row, word, lane = Signal(8), Signal(16), Signal(range(beat_words))
        last_word, last_row, take = Signal(), Signal(), Signal()
        m.d.comb += [
            last_word.eq(word + 1 == n_words),
            last_row.eq(row + 1 == n_rows),
            take.eq(reading & rd_data.valid),
            rd_data.ready.eq(reading & ((lane == beat_words - 1) | last_word)),
            self.stall.eq(reading & ~rd_data.valid),
        ]
        with m.If(take):
            m.d.sync += [word.eq(word + 1), lane.eq(lane + 1)]
            with m.If(last_word):
                m.d.sync += [word.eq(0), lane.eq(0), row.eq(row + 1)]
                with m.If(last_row):
                    m.d.sync += [row.eq(0), reading.eq(0)]

        cut = Signal(data.ArrayLayout(signed(16), _ELEMENTS))
        cut_row, cut_word, cut_valid, cut_last = Signal(8), Signal(16), Signal(), Signal()
        m.d.sync += [cut_valid.eq(take), cut_last.eq(take & last_word & last_row)]
        with m.If(take):
            m.d.sync += [
                cut_row.eq(row),
                cut_word.eq(Mux(kind == _Kind.PARAM, param_word + word, word)),
            ]
            with m.Switch(lane):
                for index in range(beat_words):
                    with m.Case(index):
                        m.d.sync += cut.eq(rd_data.p[8 * _WORD_BYTES * index :])

        param_w, rope_w, embed_w = self.param_w, self.rope_w, self.embed_w
        m.d.comb += [
            param_w.en.eq(cut_valid & (kind == _Kind.PARAM)),
            param_w.addr.word.eq(cut_word),
            param_w.data.eq(cut),
            rope_w.en.eq(cut_valid & (kind == _Kind.ROPE)),
            rope_w.addr.token.eq(cut_word >> rope_bits),
            rope_w.addr.word.eq(cut_word),
            rope_w.data.eq(cut),
        ]
        m.d.sync += [embed_w.en.eq(cut_valid & (kind == _Kind.EMBED)), finished.eq(cut_last)]
        with m.If(cut_valid & (kind == _Kind.EMBED)):
            m.d.sync += [embed_w.addr.token.eq(cut_row), embed_w.addr.word.eq(cut_word)]
            m.d.sync += [embed_w.data[i].eq(cut[i] << shift) for i in range(_ELEMENTS)]

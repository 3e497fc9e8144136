"""Checks of the registers that a run is started with."""

from amaranth import Module, Mux, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.control.check import PROGRAM_WORDS_MAX, alignments
from lutra_golden.control.chunks import POSITION_WIDTH
from lutra_golden.control.descriptor import HEADER
from lutra_golden.control.registers import ErrorCode
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.buffers import ChunkReadPort
from lutra_hw.control.chunks import CHUNK_LAYOUT, ChunkWalker
from lutra_hw.control.context import ERROR_CODE, RunContextSignature

__all__ = ["RunCheck"]


class RunCheck(wiring.Component):
    """Code of the first rule that a run's registers and chunks break.

    ``wanted`` asks for a check, and stays high until it was used or is given up; ``checked`` is
    high 3 cycles later, and 2 cycles later still for each chunk behind the first, if ``step`` is
    high all the time. Registers, and chunks that were not passed, do not change meanwhile. Where
    ``described``, chunks have to be ``n_chunks``, and there has to be room for ``n_greedy`` tokens;
    where not, that is 0.
    The walk over the chunks is there for others, too, who say when to ``step``.

    Model: :func:`lutra_golden.control.check.check_run`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    context : ``In(RunContextSignature())``
    chunks : ``Out(ChunkReadPort(config))``
    wanted : ``In(1)``
    described : ``In(1)``
    n_chunks, n_greedy : ``In(8)``, ``In(16)``
    step : ``In(1)``
    valid : ``Out(1)``  ``chunk`` is there.
    chunk : ``Out(CHUNK_LAYOUT)``
    end : ``Out(17)``  the position behind it
    fetchable : ``Out(1)``  program or range: its address and length are right.
    checked : ``Out(1)``
    code : ``Out(4)``  an :class:`ErrorCode`, when ``checked``; NONE if a run may start
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "context": In(RunContextSignature()),
                "chunks": Out(ChunkReadPort(config)),
                "wanted": In(1),
                "described": In(1),
                "n_chunks": In(HEADER["n_chunks"].width),
                "n_greedy": In(HEADER["n_greedy"].width),
                "step": In(1),
                "valid": Out(1),
                "chunk": Out(CHUNK_LAYOUT),
                "end": Out(POSITION_WIDTH + 1),
                "fetchable": Out(1),
                "checked": Out(1),
                "code": Out(ERROR_CODE),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, context = self.config, self.context
        n_tokens = context.n_tokens
        align = alignments(config)
        walker = ChunkWalker(config)
        m.submodules.walker = ResetInserter(~self.wanted)(walker)
        wiring.connect(m, walker.table, wiring.flipped(self.chunks))
        chunk, looked, greedy = walker.chunk, Signal(), Signal()
        beyond, uncovered, short = Signal(), Signal(), Signal()
        m.d.comb += [
            walker.n_tokens.eq(n_tokens),
            walker.step.eq(self.valid & self.step),
            self.valid.eq(self.wanted & walker.valid & ~looked),
            self.chunk.eq(chunk),
            self.end.eq(chunk.position + chunk.count),
            greedy.eq(self.n_greedy != 0),
        ]
        m.d.sync += self.checked.eq(self.wanted & looked)
        # the last token that is made needs no place
        last = self.end + self.n_greedy
        bits = exact_log2(config.max_context)
        too_far = last[bits + 1 :].any() | (
            last[bits] & Mux(greedy, last[1:bits].any(), last[:bits].any())
        )
        with m.If(~self.wanted):
            m.d.sync += [looked.eq(0), beyond.eq(0)]
        with m.Elif(walker.step):
            m.d.sync += looked.eq(chunk.last)
            with m.If(too_far):
                m.d.sync += beyond.eq(1)
            with m.If(chunk.last):
                m.d.sync += uncovered.eq(
                    self.described & (walker.table.addr.entry + 1 != self.n_chunks)
                )
            with m.If(chunk.first == 0):
                m.d.sync += short.eq(greedy & (context.logits_from >= chunk.count))

        def odd(name):
            return getattr(context, name.lower())[: exact_log2(align[name])].any()

        words = context.program_bytes >> exact_log2(config.word_bytes)
        m.d.comb += self.fetchable.eq(
            ~(odd("PROGRAM_BASE") | odd("PROGRAM_BYTES"))
            & (words != 0)
            & (words <= PROGRAM_WORDS_MAX)
        )
        broken = {
            ErrorCode.DESCRIPTOR: uncovered,
            ErrorCode.N_TOKENS: (n_tokens == 0) | (n_tokens > config.pass_tokens),
            ErrorCode.LOGITS_FROM: (context.logits_from > n_tokens) | short,
            ErrorCode.CHUNK: beyond,
            ErrorCode.PROGRAM: ~self.fetchable,
            ErrorCode.WEIGHT_BASE: odd("WEIGHT_BASE"),
            ErrorCode.LOGITS: odd("LOGITS_BASE") | odd("LOGITS_STRIDE"),
        }
        code = Signal(ERROR_CODE)
        # the first one is assigned last, and wins
        for number, is_broken in reversed(broken.items()):
            with m.If(is_broken):
                m.d.comb += code.eq(number)
        m.d.sync += self.code.eq(code)
        return m

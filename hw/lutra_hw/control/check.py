"""Checks of the registers that a run is started with."""

from amaranth import Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.control.check import PROGRAM_WORDS_MAX, alignments
from lutra_golden.control.registers import ErrorCode
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.buffers import ChunkReadPort
from lutra_hw.control.chunks import ChunkWalker
from lutra_hw.control.context import RunContextSignature

__all__ = ["ERROR_CODE", "RunCheck"]

ERROR_CODE = 4
"""Bits of an :class:`ErrorCode`."""


class RunCheck(wiring.Component):
    """Code of the first rule that a run's registers and chunks break.

    ``wanted`` asks for a check, and stays high until it was used or is given up; ``checked`` is
    high 3 cycles later, and 2 cycles later still for each chunk behind the first. Registers and
    chunks do not change meanwhile.

    Model: :func:`lutra_golden.control.check.check_run`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    context : ``In(RunContextSignature())``
    chunks : ``Out(ChunkReadPort(config))``
    wanted : ``In(1)``
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
        chunk, beyond, looked = walker.chunk, Signal(), Signal()
        m.d.comb += [
            walker.n_tokens.eq(n_tokens),
            walker.step.eq(self.wanted & walker.valid & ~looked),
        ]
        m.d.sync += self.checked.eq(self.wanted & looked)
        with m.If(~self.wanted):
            m.d.sync += [looked.eq(0), beyond.eq(0)]
        with m.Elif(walker.step):
            m.d.sync += looked.eq(chunk.last)
            with m.If(chunk.position + chunk.count > config.max_context):
                m.d.sync += beyond.eq(1)

        def odd(name):
            return getattr(context, name.lower())[: exact_log2(align[name])].any()

        words = context.program_bytes >> exact_log2(config.word_bytes)
        broken = {
            ErrorCode.N_TOKENS: (n_tokens == 0) | (n_tokens > config.pass_tokens),
            ErrorCode.LOGITS_FROM: context.logits_from > n_tokens,
            ErrorCode.CHUNK: beyond,
            ErrorCode.PROGRAM: odd("PROGRAM_BASE")
            | odd("PROGRAM_BYTES")
            | (words == 0)
            | (words > PROGRAM_WORDS_MAX),
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

"""Runs of descriptors: from the doorbell to the result block."""

from amaranth import Cat, Module, Mux, ResetInserter, Signal, unsigned
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.control.blocks import WORD_WIDTH
from lutra_golden.control.chunks import POSITION_WIDTH, TOKENS_WIDTH
from lutra_golden.control.descriptor import (
    DOORBELL_BYTES,
    ENDS_MAX,
    HEADER,
    HEADER_BYTES,
    line_bytes,
)
from lutra_golden.control.registers import REGISTERS, ErrorCode
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.control.checksum import Checksum
from lutra_hw.control.chunks import CHUNK_LAYOUT
from lutra_hw.control.context import ERROR_CODE, RunContextSignature, RunControlSignature
from lutra_hw.control.descriptor import DescriptorWords
from lutra_hw.control.result import ResultWriter, results_width
from lutra_hw.ports import dma_command, dma_write_data

__all__ = ["RunState", "RunUnit", "connect_runs", "share_table"]

_LINE_PAIRS = DOORBELL_BYTES // 8


class RunState(enum.Enum, shape=5):
    """Step of a run of a descriptor."""

    IDLE = 0
    # the descriptor
    ASK = 1
    FETCH = 2
    READ = 3
    CHECK = 4
    # a pass, or a sum
    START = 5
    RUN = 6
    # its results
    TOKEN = 7
    PAIR = 8
    ANSWERED = 9
    # the next pass: chunk after chunk, then the tile
    CHUNK = 10
    LAST_TOKEN = 11
    MADE = 12
    ENDS = 13
    NEXT_CHUNK = 14
    N_TOKENS = 15
    LOGITS_FROM = 16
    # the end
    FAILED = 17
    REPORT = 18
    REPORTED = 19
    OVER = 20


class RunUnit(wiring.Component):
    """Carries out descriptors, in the order of their doorbells.

    Fetches a descriptor through the sequencer, block by block, while its words go into registers;
    has the run checked; has the sequencer run its passes, or fetch the range to sum; feeds
    arg-maxes back as the tokens of the next pass; and writes the result block, or nothing where the
    header cannot say where. A run that fails is reported when its units were cleared.

    A run of one token takes 137 cycles at most beside its pass and the memory, each chunk more 13,
    and a token that is fed back 24, and one more for each end token. Reset forgets the run.

    Model: :meth:`lutra_golden.control.interpreter.Interpreter.run_descriptor`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    control : ``In(RunControlSignature())``  of the register file
    context : ``In(RunContextSignature())``
    start, raw, block, line, word, enough, finished :  of the sequencer
    wanted, n_chunks, n_greedy, step, valid, chunk, end, fetchable, checked, code :  of the check
    wr_cmd, wr_data : ``Out(dma_command())``, ``Out(dma_write_data(word_width))``
    wr_idle : ``In(1)``  everything handed over before this cycle has been written.
    """

    word: stream.Interface

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "control": In(RunControlSignature()),
                "context": In(RunContextSignature()),
                "start": Out(1),
                "raw": Out(1),
                "block": Out(1),
                "line": Out(REGISTERS["DOORBELL"].width),
                "word": In(stream.Signature(unsigned(WORD_WIDTH))),
                "enough": Out(1),
                "finished": In(1),
                "wanted": Out(1),
                "n_chunks": Out(HEADER["n_chunks"].width),
                "n_greedy": Out(HEADER["n_greedy"].width),
                "step": Out(1),
                "valid": In(1),
                "chunk": In(CHUNK_LAYOUT),
                "end": In(POSITION_WIDTH + 1),
                "fetchable": In(1),
                "checked": In(1),
                "code": In(ERROR_CODE),
                "wr_cmd": Out(dma_command()),
                "wr_data": Out(dma_write_data(config.word_width)),
                "wr_idle": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        control, bus = self.control, self.control.bus
        words, result, checksum = (
            DescriptorWords(self.config),
            ResultWriter(self.config),
            Checksum(),
        )
        m.submodules.words = ResetInserter(~control.engaged)(words)
        m.submodules.result = ResetInserter(control.clear)(result)
        # a sum that was not finished is none
        m.submodules.checksum = ResetInserter(control.begin | control.stop)(checksum)
        run = _Run(self.config)
        found = words.o
        fetching = Signal()
        m.d.comb += [
            fetching.eq((run.state == RunState.ASK) | (run.state == RunState.FETCH)),
            control.engaged.eq(run.engaged),
            control.frozen.eq(run.reported),
            control.keeps.eq(run.engaged & run.known & words.has_result),
            control.over.eq(run.state == RunState.OVER),
            self.n_chunks.eq(found.n_chunks),
            self.n_greedy.eq(found.n_greedy),
            bus.write_strb.eq(-1),
            bus.read_en.eq(result.read_en),
            bus.read_addr.eq(result.read_addr),
            result.read_data.eq(bus.read_data),
            result.token.eq(run.item),
            result.report.eq(run.reported),
            result.pair.eq(run.n_results),
            result.n_results.eq(run.n_results),
            result.n_made.eq(run.n_made),
            result.tag.eq(found.tag),
            result.sum_half.eq(checksum.half),
            result.wr_idle.eq(self.wr_idle),
            checksum.swap.eq(result.swap),
        ]
        wiring.connect(m, result.wr_cmd, wiring.flipped(self.wr_cmd))
        wiring.connect(m, result.wr_data, wiring.flipped(self.wr_data))
        self._fetch(m, run, fetching, words, checksum)
        self._place(m, run, words.o.result_line, result)
        self._states(m, run, words, result)
        return m

    def _fetch(self, m, run, fetching, words, checksum):
        """Fetches of the sequencer, and the places of their words."""
        config = self.config
        line, most = line_bytes(config), HEADER_BYTES + 4 * (3 * config.pass_tokens + ENDS_MAX)
        with m.If(self.control.begin):
            m.d.sync += self.line.eq(self.control.bell)
        if most > line:
            # a descriptor may be longer than a block
            with m.Elif(self.finished & fetching):
                m.d.sync += self.line.eq(self.line + line // DOORBELL_BYTES)
        m.d.comb += [
            self.raw.eq(run.engaged & (fetching | words.o.is_sum)),
            self.block.eq(fetching),
            self.word.ready.eq(1),
            self.enough.eq(fetching & words.rest),
            words.en.eq(self.word.valid & fetching),
            words.word.eq(self.word.p),
            words.aligned.eq((self.line & (line // DOORBELL_BYTES - 1)) == 0),
            checksum.en.eq(self.word.valid & ~fetching),
            checksum.word.eq(self.word.p),
        ]

    def _place(self, m, run, result_line, result):
        """Line of the next result, in those behind the block, or of the block."""
        lines = run.n_results // _LINE_PAIRS
        behind = Mux(run.reported, 0, Cat(1, lines))
        m.d.comb += result.line.eq((Cat(1, result_line) + behind) >> 1)

    def _states(self, m, run, words, result):
        """From the doorbell to the end."""
        control, bus = self.control, self.control.bus
        m.d.comb += [
            bus.write_en.eq(words.write.en),
            bus.write_addr.eq(words.write.addr.register),
            bus.write_data.eq(words.write.data),
            words.end_at.eq(run.end_at),
            self.start.eq((run.state == RunState.ASK) | (run.state == RunState.START)),
            result.start.eq((run.state == RunState.PAIR) | (run.state == RunState.REPORTED)),
        ]
        with m.Switch(run.state):
            self._descriptor(m, run, words)
            self._pass(m, run, words.o, result)
            self._feed(m, run, words)
            self._report(m, run, result)
        # no pass is under way
        whole = (run.state == RunState.ANSWERED) | run.reported
        with m.If(run.engaged & ~control.busy):
            m.d.sync += [run.state.eq(RunState.IDLE), run.engaged.eq(0)]
        with m.Elif(run.engaged & control.stop):
            # what may not be in memory does not count
            m.d.sync += [
                run.state.eq(RunState.FAILED),
                run.n_results.eq(run.n_kept),
                run.failed.eq(1),
                run.reported.eq(0),
            ]
            # a report that fails is made once more, unless the host may have seen its status
            with m.If(run.failed | result.closing):
                m.d.sync += run.known.eq(0)
        with m.Elif(run.engaged & self.wr_idle & whole):
            m.d.sync += run.n_kept.eq(run.n_results)

    def _write(self, m, name, value, index=0):
        """Write a register, or an element of an array."""
        bus = self.control.bus
        m.d.comb += [
            bus.write_en.eq(1),
            bus.write_addr.eq(REGISTERS[name].address // 4 | index),
            bus.write_data.eq(value),
        ]

    def _descriptor(self, m, run, words):
        """States in which a descriptor is read and checked."""
        control = self.control
        with m.Case(RunState.IDLE):
            m.d.comb += control.begin.eq(control.ready)
            m.d.sync += [
                run.engaged.eq(control.ready),
                run.known.eq(0),
                run.failed.eq(0),
                run.reported.eq(0),
                run.n_results.eq(0),
                run.n_kept.eq(0),
                run.n_made.eq(0),
            ]
            with m.If(control.ready):
                m.d.sync += run.state.eq(RunState.ASK)
        with m.Case(RunState.ASK):
            m.d.sync += run.state.eq(RunState.FETCH)
        with m.Case(RunState.FETCH):
            with m.If(self.finished):
                m.d.sync += run.state.eq(RunState.READ)
        with m.Case(RunState.READ):
            m.d.sync += [run.known.eq(1), run.state.eq(RunState.REPORT)]
            with m.If(words.code != ErrorCode.NONE):
                m.d.comb += control.refusal.eq(words.code)
                with m.If(~words.has_result):
                    m.d.sync += run.state.eq(RunState.OVER)
            with m.Elif(~words.rest):
                m.d.sync += run.state.eq(RunState.ASK)
            with m.Elif(~words.o.is_sum):
                m.d.sync += run.state.eq(RunState.CHECK)
            with m.Elif(self.fetchable):
                m.d.sync += run.state.eq(RunState.START)
            with m.Else():
                m.d.comb += control.refusal.eq(ErrorCode.PROGRAM)
        with m.Case(RunState.CHECK):
            m.d.comb += [self.wanted.eq(1), self.step.eq(1)]
            with m.If(self.checked):
                m.d.comb += control.refusal.eq(self.code)
                m.d.sync += run.state.eq(
                    Mux(self.code == ErrorCode.NONE, RunState.START, RunState.REPORT)
                )

    def _pass(self, m, run, found, result):
        """States of a pass, or a sum, and of the results of its tokens."""
        context = self.context
        with m.Case(RunState.START):
            m.d.sync += run.state.eq(RunState.RUN)
        with m.Case(RunState.RUN):
            m.d.sync += run.item.eq(context.logits_from)
            with m.If(self.finished):
                m.d.sync += [
                    run.n_made.eq(run.n_made + ((found.n_greedy != 0) & ~found.is_sum)),
                    run.state.eq(Mux(found.is_sum, RunState.REPORT, RunState.TOKEN)),
                ]
        with m.Case(RunState.TOKEN):
            is_last = run.item == context.n_tokens
            m.d.sync += run.state.eq(Mux(is_last, RunState.ANSWERED, RunState.PAIR))
        with m.Case(RunState.PAIR):
            with m.If(result.done):
                m.d.sync += [
                    run.item.eq(run.item + 1),
                    run.n_results.eq(run.n_results + 1),
                    run.state.eq(RunState.TOKEN),
                ]
        with m.Case(RunState.ANSWERED):
            all_made = run.n_made == found.n_greedy[: len(run.n_made)]
            m.d.sync += [run.item.eq(0), run.matched.eq(0)]
            # the report waits for all that was written
            with m.If(self.wr_idle | all_made):
                m.d.sync += run.state.eq(Mux(all_made, RunState.REPORT, RunState.CHUNK))

    def _feed(self, m, run, words):
        """States that make the next pass: chunk after chunk, then the tile."""
        bus, found = self.control.bus, words.o
        with m.Case(RunState.CHUNK):
            last = self.chunk.first + self.chunk.count - 1
            m.d.comb += [
                self.wanted.eq(1),
                bus.read_en.eq(self.valid),
                bus.read_addr.eq(REGISTERS["ARGMAX"].address // 4 | last[:TOKENS_WIDTH]),
            ]
            with m.If(self.valid):
                m.d.sync += run.state.eq(RunState.LAST_TOKEN)
        with m.Case(RunState.LAST_TOKEN):
            m.d.comb += self.wanted.eq(1)
            m.d.sync += run.state.eq(RunState.MADE)
        with m.Case(RunState.MADE):
            m.d.comb += self.wanted.eq(1)
            self._write(m, "TOKEN", bus.read_data, run.item)
            m.d.sync += [
                run.made.eq(bus.read_data),
                run.end_at.eq(0),
                run.state.eq(Mux(found.n_ends == 0, RunState.NEXT_CHUNK, RunState.ENDS)),
            ]
        with m.Case(RunState.ENDS):
            m.d.comb += self.wanted.eq(1)
            m.d.sync += run.end_at.eq(run.end_at + 1)
            with m.If(words.end == run.made):
                m.d.sync += run.matched.eq(1)
            with m.If(run.end_at + 1 == found.n_ends):
                m.d.sync += run.state.eq(RunState.NEXT_CHUNK)
        with m.Case(RunState.NEXT_CHUNK):
            m.d.comb += [self.wanted.eq(1), self.step.eq(1)]
            # a token of its own
            self._write(m, "CHUNK", self.end[:POSITION_WIDTH] | 1 << POSITION_WIDTH, run.item)
            m.d.sync += [
                run.item.eq(run.item + 1),
                run.state.eq(Mux(self.chunk.last, RunState.N_TOKENS, RunState.CHUNK)),
            ]
        with m.Case(RunState.N_TOKENS):
            self._write(m, "N_TOKENS", found.n_chunks)
            m.d.sync += run.state.eq(RunState.LOGITS_FROM)
        with m.Case(RunState.LOGITS_FROM):
            self._write(m, "LOGITS_FROM", 0)
            m.d.sync += run.state.eq(Mux(run.matched, RunState.REPORT, RunState.START))

    def _report(self, m, run, result):
        """States at the end."""
        with m.Case(RunState.FAILED):
            with m.If(~self.control.clear):
                m.d.sync += run.state.eq(RunState.REPORT)
        with m.Case(RunState.REPORT):
            m.d.sync += [run.reported.eq(1), run.state.eq(RunState.REPORTED)]
        with m.Case(RunState.REPORTED):
            with m.If(result.done):
                m.d.sync += run.state.eq(RunState.OVER)


class _Run:
    """Registers of the descriptor that is carried out."""

    def __init__(self, config):
        self.state = Signal(RunState)
        self.engaged, self.failed, self.reported = (Signal() for _ in range(3))
        # a block was read whole, and with it the header; the end can be reported
        self.known = Signal()
        # no position is passed twice
        self.n_made = Signal(range(config.max_context + 2))
        # handed over, and in memory of passes that are whole
        self.n_results, self.n_kept = (Signal(results_width(config)) for _ in range(2))
        self.item = Signal(TOKENS_WIDTH)  # token or chunk of a pass
        # the token that a chunk made, the end token it is compared with, and whether any was one
        self.made, self.end_at, self.matched = Signal(WORD_WIDTH), Signal(range(ENDS_MAX)), Signal()


def connect_runs(m, registers, runs, sequencer, check):
    """Connect what starts runs: register file, runs of descriptors, sequencer, and check."""
    wiring.connect(m, registers.context, sequencer.context, check.context, runs.context)
    wiring.connect(m, registers.control, runs.control)
    wiring.connect(m, sequencer.word, runs.word)
    engaged = registers.control.engaged
    m.d.comb += [
        sequencer.start.eq(registers.start | runs.start),
        sequencer.raw.eq(runs.raw),
        sequencer.block.eq(runs.block),
        sequencer.line.eq(runs.line),
        sequencer.enough.eq(runs.enough),
        runs.finished.eq(sequencer.finished),
        registers.done.eq(sequencer.finished),
        check.described.eq(engaged),
        check.n_chunks.eq(runs.n_chunks),
        check.n_greedy.eq(runs.n_greedy),
        # registers are checked as soon as they change, so that a START need not wait
        check.wanted.eq(Mux(engaged, runs.wanted, ~registers.control.busy & ~registers.changed)),
        check.step.eq(runs.step | ~engaged),
        runs.valid.eq(check.valid),
        runs.chunk.eq(check.chunk),
        runs.end.eq(check.end),
        runs.fetchable.eq(check.fetchable),
        runs.checked.eq(check.checked),
        runs.code.eq(check.code),
        registers.checked.eq(check.checked),
        registers.refusal.eq(check.code),
    ]


def share_table(m, registers, check, chunks):
    """Let the check use the port of the load unit's ``chunks``, which loads nothing then."""
    table = registers.load_chunks
    m.d.comb += [
        table.addr.eq(Mux(check.wanted, check.chunks.addr, chunks.addr)),
        chunks.data.eq(table.data),
        check.chunks.data.eq(table.data),
    ]

"""Writes the result block of a descriptor, and the results of its tokens."""

from itertools import pairwise

from amaranth import C, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.control.blocks import WORD_WIDTH
from lutra_golden.control.chunks import TOKENS_WIDTH
from lutra_golden.control.descriptor import DESCRIPTOR_VERSION, DOORBELL_BYTES, HEADER
from lutra_golden.control.registers import COUNTERS, REGISTERS, STATUS_BUSY, STATUS_DONE
from lutra_golden.control.result import RESULT, RESULT_BYTES
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.control.context import REGISTER_ADDR_WIDTH
from lutra_hw.pipeline import delay
from lutra_hw.ports import dma_command, dma_write_data

__all__ = ["ResultWriter", "results_width"]

_N_WORDS = RESULT_BYTES // 4
_STATUS = RESULT["status"].first
# words that are listed, in order; the status comes at the end
_PLACES = sorted(
    word.first + i for name, word in RESULT.items() if name != "status" for i in range(word.count)
)
_PAIRS = DOORBELL_BYTES // 8
# of what the register file knows
_REGISTERS = {
    "ident": "IDENT",
    "fingerprint": "FINGERPRINT",
    "status": "STATUS",
    "error": "ERROR",
    "unit_state": "UNIT_STATE",
    "error_address": "ERROR_ADDRESS",
}


def results_width(config: AcceleratorConfig) -> int:
    """Bits of a number of results: a sequence has as many passes as there are positions."""
    return (config.pass_tokens * (config.max_context + 1)).bit_length()


def _sources() -> dict[int, int]:
    """Register, counted in words, of each word of a result block that is one."""
    places = {name: REGISTERS[register].address for name, register in _REGISTERS.items()}
    places |= {name: REGISTERS["COUNTER"].address + 8 * i for i, name in enumerate(COUNTERS)}
    return {
        RESULT[name].first + i: address // 4 + i
        for name, address in places.items()
        for i in range(RESULT[name].count)
    }


class ResultWriter(wiring.Component):
    """Writes arg-max and scale of a token, or the block in front of them.

    ``start`` begins with one or the other; what is beside it stays until ``done``, with which
    everything has been handed over. The block is a burst of whole data words but for ``status``,
    which is written when all that was answered, and ``done`` comes when that was. A data word takes
    a cycle for each word of the block that it has, and 3 more; more if the writer stalls. Reset
    drops what is under way.

    Model: :meth:`lutra_golden.control.result.Result.encode`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    start, report : ``In(1)``  begin; with the block.
    line : ``In(32)``  address of the block, or of the 32 results in which this one lies.
    token : ``In(8)``
    pair : ``In(5)``  place of the token's result in its line
    n_results : ``In(results_width(config))``
    n_made, tag, sum_half : ``In(16)``, ``In(32)``, ``In(32)``
    swap : ``Out(1)``  the checksum's other half is wanted.
    read_en, read_addr, read_data : ``Out(1)``, ``Out(10)``, ``In(32)``  of a register bus
    wr_cmd, wr_data : ``Out(dma_command())``, ``Out(dma_write_data(word_width))``
    wr_idle : ``In(1)``  everything handed over before this cycle has been written.
    closing : ``Out(1)``  all but the status is in memory, and that may be.
    done : ``Out(1)``
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self._n_parts = config.word_bytes // 4
        self._n_beats = max(RESULT_BYTES // config.word_bytes, 1)
        super().__init__(
            {
                "start": In(1),
                "report": In(1),
                "line": In(REGISTERS["DOORBELL"].width),
                "token": In(TOKENS_WIDTH),
                "pair": In(range(_PAIRS)),
                "n_results": In(results_width(config)),
                "n_made": In(HEADER["n_greedy"].width),
                "tag": In(WORD_WIDTH),
                "sum_half": In(WORD_WIDTH),
                "swap": Out(1),
                "read_en": Out(1),
                "read_addr": Out(REGISTER_ADDR_WIDTH - 2),
                "read_data": In(WORD_WIDTH),
                "wr_cmd": Out(dma_command()),
                "wr_data": Out(dma_write_data(config.word_width)),
                "wr_idle": In(1),
                "closing": Out(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # what comes next of the block, or of a token's result, and the data word that is made
        index, beat = Signal(range(_N_WORDS + 1)), Signal(range(self._n_beats))
        closing = self.closing
        commanded, offered, left = Signal(), Signal(), Signal()

        # a register is there 2 cycles after it was asked for
        asked = Signal(data.StructLayout({"valid": 1, "is_register": 1, "place": range(_N_WORDS)}))
        *_, due = delay(m, asked, 2)
        following = self._ask(m, index, asked)
        parts = self._take(m, due, left)
        self._write(m, parts, beat, closing)
        m.d.comb += [
            self.wr_cmd.valid.eq(commanded),
            self.wr_data.valid.eq(offered),
            left.eq(offered & self.wr_data.ready),
        ]
        with m.If(self.wr_cmd.ready):
            m.d.sync += commanded.eq(0)

        bits = exact_log2(_N_WORDS // self._n_beats)
        with m.FSM() as fsm:
            with m.State("Idle"):
                m.d.sync += [index.eq(0), beat.eq(0), closing.eq(0)]
                with m.If(self.start):
                    m.d.sync += commanded.eq(1)
                    m.next = "Words"
            with m.State("Words"):
                m.d.comb += asked.valid.eq(Mux(self.report, index >> bits == beat, ~index[1]))
                with m.If(asked.valid):
                    m.d.sync += index.eq(following)
                with m.Else():
                    m.next = "Last"
            with m.State("Last"):
                m.next = "Offer"
            with m.State("Offer"):
                with m.If(left):
                    m.d.sync += beat.eq(beat + 1)
                    m.next = "Settle"
                    with m.If(self.report & ~closing & (beat != self._n_beats - 1)):
                        m.next = "Words"
            with m.State("Settle"):
                with m.If(~commanded & (self.wr_idle | ~self.report)):
                    with m.If(self.report & ~closing):
                        m.d.sync += [
                            closing.eq(1),
                            index.eq(_STATUS),
                            beat.eq(_STATUS >> bits),
                            commanded.eq(1),
                        ]
                        m.next = "Words"
                    with m.Else():
                        m.d.comb += self.done.eq(1)
                        m.next = "Idle"
        m.d.comb += offered.eq(fsm.ongoing("Offer"))
        return m

    def _ask(self, m, index, asked):
        """Ask for the word of ``index``; the one that follows it."""
        arrays = [REGISTERS[name].address // 4 for name in ("ARGMAX", "SCALE")]
        m.d.comb += self.read_en.eq(asked.valid & asked.is_register)
        with m.If(self.report):
            m.d.comb += asked.place.eq(index)
            with m.Switch(index):
                for place, register in _sources().items():
                    with m.Case(place):
                        m.d.comb += [self.read_addr.eq(register), asked.is_register.eq(1)]
        with m.Else():
            m.d.comb += [
                asked.place.eq(Cat(index[0], self.pair)),
                self.read_addr.eq(Mux(index[0], arrays[1], arrays[0]) | self.token),
                asked.is_register.eq(1),
            ]
        following = Signal.like(index)
        m.d.comb += following.eq(index + 1)
        with m.Switch(index):
            ends = [_PLACES[-1], _STATUS]
            for place, behind in [*pairwise(_PLACES), *((end, _N_WORDS) for end in ends)]:
                if behind != place + 1:
                    with m.Case(place):
                        m.d.comb += following.eq(behind)
        return following

    def _take(self, m, due, left):
        """The parts of a data word: those that are due, the others are zero."""
        own, word = Signal(WORD_WIDTH), Signal(WORD_WIDTH)
        m.d.comb += word.eq(own | Mux(due.is_register, self.read_data, 0))
        with m.If(self.report):
            with m.Switch(due.place):
                with m.Case(RESULT["version"].first):
                    m.d.comb += own.eq(DESCRIPTOR_VERSION)
                with m.Case(RESULT["tag"].first):
                    m.d.comb += own.eq(self.tag)
                with m.Case(RESULT["n_results"].first):
                    m.d.comb += own.eq(self.n_results)
                with m.Case(RESULT["n_made"].first):
                    m.d.comb += own.eq(self.n_made)
                with m.Case(*(RESULT["checksum"].first + i for i in range(2))):
                    m.d.comb += own.eq(self.sum_half)
                with m.Case(_STATUS):
                    # the run is over when this is read by the host
                    status = self.read_data & ~C(STATUS_BUSY, WORD_WIDTH) | STATUS_DONE
                    m.d.comb += word.eq(status)
            m.d.comb += self.swap.eq(due.valid & (due.place == RESULT["checksum"].first))

        parts = [Signal(WORD_WIDTH, name=f"part_{i}") for i in range(self._n_parts)]
        with m.If(left):
            m.d.sync += [part.eq(0) for part in parts]
        with m.Elif(due.valid):
            with m.Switch(Cat(due.place, self.line)[: exact_log2(self._n_parts)]):
                for i, part in enumerate(parts):
                    with m.Case(i):
                        m.d.sync += part.eq(word)
        return parts

    def _write(self, m, parts, beat, closing):
        """Hand over a data word, with what is to be written of it, and where."""
        n_parts, word_bits = self._n_parts, exact_log2(self.config.word_bytes)
        place = Mux(self.report, Mux(closing, _STATUS, 0), Cat(C(0, 1), self.pair))
        address = Cat(C(0, 2), place[: exact_log2(_N_WORDS)], self.line)
        pair = address[3:word_bits]
        m.d.comb += [
            self.wr_cmd.p.addr.eq(Cat(C(0, word_bits), address[word_bits:])),
            self.wr_cmd.p.beats.eq(Mux(self.report & ~closing, self._n_beats, 1)),
            self.wr_data.p.data.eq(Cat(parts)),
        ]
        for i in range(n_parts):
            written = ~closing & (i < _N_WORDS)
            if i == _STATUS % n_parts:
                written = (beat == _STATUS // n_parts) == closing
            on = Mux(self.report, written, pair == i >> 1)
            m.d.comb += self.wr_data.p.strb[4 * i : 4 * i + 4].eq(on.replicate(4))

"""Writes the result block of a descriptor, word by word."""

from amaranth import C, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.control.blocks import WORD_WIDTH
from lutra_golden.control.chunks import TOKENS_WIDTH
from lutra_golden.control.descriptor import DESCRIPTOR_VERSION, DOORBELL_BYTES, HEADER
from lutra_golden.control.registers import COUNTERS, REGISTERS, STATUS_BUSY, STATUS_DONE
from lutra_golden.control.result import RESULT, RESULT_BYTES
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.control.context import REGISTER_ADDR_WIDTH
from lutra_hw.ports import dma_command, dma_write_data

__all__ = ["ResultWriter", "results_width"]

_N_WORDS = RESULT_BYTES // 4
_LAST = RESULT["status"].first
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
    """Writes arg-max and scale of a token, or the block in front of them, 4 bytes at a time.

    ``start`` begins with one or the other; what is beside it stays until ``done``, with which
    everything has been handed over. Of the block ``status`` is written last, when everything else
    was answered, and ``done`` comes when that was. A word that is a register takes 3 cycles, others
    2; more if the writer stalls. Reset drops what is under way.

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
    done : ``Out(1)``
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
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
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        index = Signal(range(_N_WORDS))
        value = Signal(WORD_WIDTH)
        place = Signal(range(_N_WORDS))
        offered = Signal()
        left, take = Signal(), Signal()
        is_register, word = Signal(), Signal(WORD_WIDTH)

        self._source(m, index, is_register, word)
        self._write(m, value, place, offered, left)
        with m.If(take):
            m.d.sync += [
                value.eq(word),
                place.eq(Mux(self.report, index, Cat(index[0], self.pair))),
                offered.eq(1),
            ]
        with m.Elif(left):
            m.d.sync += offered.eq(0)

        free = ~offered | left
        with m.FSM():
            with m.State("Idle"):
                m.d.sync += index.eq(0)
                with m.If(self.start):
                    m.next = "Ask"
            with m.State("Ask"):
                m.d.comb += self.read_en.eq(is_register)
                m.next = "Take"
                with m.If(is_register):
                    m.next = "Wait"
            with m.State("Wait"):
                m.next = "Take"
            with m.State("Take"):
                m.d.comb += take.eq(free)
                # what was read does not stay
                m.next = "Ask"
                with m.If(take):
                    m.d.sync += index.eq(index + Mux(self.report & (index == _LAST - 1), 2, 1))
                    m.d.comb += self.swap.eq((index == RESULT["checksum"].first) & self.report)
                    with m.If(Mux(self.report, (index == _LAST) | index.all(), index[0])):
                        m.next = "Settle"
            with m.State("Settle"):
                with m.If(~offered & (self.wr_idle | ~self.report)):
                    with m.If(self.report & (place != _LAST)):
                        m.d.sync += index.eq(_LAST)
                        m.next = "Ask"
                    with m.Else():
                        m.d.comb += self.done.eq(1)
                        m.next = "Idle"
        return m

    def _source(self, m, index, is_register, word):
        """The word of ``index``, and the register that it is, if it is one."""
        arrays = [REGISTERS[name].address // 4 for name in ("ARGMAX", "SCALE")]
        own, is_status = Signal(WORD_WIDTH), Signal()
        with m.If(self.report):
            with m.Switch(index):
                for place, register in _sources().items():
                    with m.Case(place):
                        m.d.comb += [self.read_addr.eq(register), is_register.eq(1)]
            with m.Switch(index):
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
                with m.Case(_LAST):
                    m.d.comb += is_status.eq(1)
        with m.Else():
            m.d.comb += [
                self.read_addr.eq(Mux(index[0], arrays[1], arrays[0]) | self.token),
                is_register.eq(1),
            ]
        m.d.comb += word.eq(own | Mux(is_register, self.read_data, 0))
        # the run is over when this is read by the host
        with m.If(is_status):
            m.d.comb += word.eq(self.read_data & ~C(STATUS_BUSY, WORD_WIDTH) | STATUS_DONE)

    def _write(self, m, value, place, offered, left):
        """Hand over a word with its address: one of the parts of a data word."""
        word_bytes = self.config.word_bytes
        n_parts, word_bits = word_bytes // 4, exact_log2(word_bytes)
        address = Cat(C(0, 2), place, self.line)
        part = address[2:word_bits]
        cmd_taken = Signal()
        data_taken = Signal()
        m.d.comb += [
            self.wr_cmd.p.addr.eq(Cat(C(0, word_bits), address[word_bits:])),
            self.wr_cmd.p.beats.eq(1),
            self.wr_cmd.valid.eq(offered & ~cmd_taken),
            self.wr_data.p.data.eq(value.replicate(n_parts)),
            self.wr_data.p.strb.eq(Cat((part == i).replicate(4) for i in range(n_parts))),
            self.wr_data.valid.eq(offered & ~data_taken),
            left.eq(offered & (cmd_taken | self.wr_cmd.ready) & (data_taken | self.wr_data.ready)),
        ]
        m.d.sync += [
            cmd_taken.eq(~left & offered & (cmd_taken | self.wr_cmd.ready)),
            data_taken.eq(~left & offered & (data_taken | self.wr_data.ready)),
        ]

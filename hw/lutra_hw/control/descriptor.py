"""Words of a descriptor: what is checked, what goes into registers, and what is kept."""

from amaranth import Module, Mux, Signal
from amaranth.lib import data, enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.control.blocks import WORD_WIDTH
from lutra_golden.control.descriptor import (
    DESCRIPTOR_VERSION,
    DOORBELL_BYTES,
    ENDS_MAX,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    Kind,
    line_bytes,
)
from lutra_golden.control.registers import CONTEXT, REGISTERS, ErrorCode
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.control.context import ERROR_CODE, REGISTER_ADDR_WIDTH
from lutra_hw.ports import WritePortSignature

__all__ = ["DESCRIBED_LAYOUT", "DescriptorWords", "register_write_port"]

_KEPT = ("tag", "n_tokens", "n_chunks", "n_ends", "n_greedy")
_FAULTS = data.StructLayout({"foreign": 1, "unfit": 1, "alien": 1, "n_tokens": 1})

DESCRIBED_LAYOUT = data.StructLayout(
    {
        "result_line": REGISTERS["DOORBELL"].width,  # address of the result block, like a doorbell
        "is_sum": 1,
        **{name: HEADER[name].width for name in _KEPT},
    }
)
"""Numbers of a descriptor that are needed later and are in no register."""


class _Part(enum.Enum, shape=3):
    HEADER = 0
    CHUNKS = 1
    TOKENS = 2
    ENDS = 3
    REST = 4


def register_write_port() -> WritePortSignature:
    """Writes of registers, whose addresses count words."""
    return WritePortSignature({"register": REGISTER_ADDR_WIDTH - 2}, WORD_WIDTH)


class DescriptorWords(wiring.Component):
    """Takes the words of a descriptor, one per cycle at most.

    What shapes its run is written to registers in the cycle in which it comes, be the header right
    or not; WATCHDOG only where all before it is right. A cycle after the header's last word
    ``code`` is its first error; there is no body then. ``rest`` says that the words from this one
    on do not count. After reset a header is due.

    Model: :func:`lutra_golden.control.descriptor.check_header`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    en, word : ``In(1)``, ``In(32)``
    aligned : ``In(1)``  the descriptor's address is that of a line.
    write : ``Out(register_write_port())``
    o : ``Out(DESCRIBED_LAYOUT)``
    rest : ``Out(1)``
    code : ``Out(4)``  :class:`ErrorCode` of the header
    has_result : ``Out(1)``  the header was read, and can be trusted to say where.
    end_at : ``In(3)``
    end : ``Out(32)``  end token ``end_at``, in the same cycle
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "en": In(1),
                "word": In(WORD_WIDTH),
                "aligned": In(1),
                "write": Out(register_write_port()),
                "o": Out(DESCRIBED_LAYOUT),
                "rest": Out(1),
                "code": Out(ERROR_CODE),
                "has_result": Out(1),
                "end_at": In(range(ENDS_MAX)),
                "end": Out(WORD_WIDTH),
            }
        )

    def elaborate(self, platform):
        m = Module()
        part, item, odd = Signal(_Part), Signal(8), Signal()
        index = Signal(range(HEADER_BYTES // 4))
        is_last_word, is_bad = Signal(), Signal()

        m.submodules.ends = ends = Memory(shape=WORD_WIDTH, depth=ENDS_MAX, init=[])
        store, read = ends.write_port(), ends.read_port(domain="comb")
        m.d.comb += [
            store.addr.eq(item),
            store.data.eq(self.word),
            store.en.eq(self.en & (part == _Part.ENDS)),
            read.addr.eq(self.end_at),
            self.end.eq(read.data),
        ]
        self._header(m, part, index, is_bad)
        self._registers(m, part, index, item, odd, is_bad)

        count = Signal(8)
        m.d.comb += [
            count.eq(
                Mux(
                    part == _Part.CHUNKS,
                    self.o.n_chunks,
                    Mux(part == _Part.TOKENS, self.o.n_tokens, self.o.n_ends),
                )
            ),
            is_last_word.eq((item + 1 == count) & (odd | (part != _Part.CHUNKS))),
            self.rest.eq(part == _Part.REST),
        ]
        with m.If(self.en):
            m.d.sync += [index.eq(index + 1), odd.eq(~odd & (part == _Part.CHUNKS))]
            with m.If(odd | (part != _Part.CHUNKS)):
                m.d.sync += item.eq(item + 1)
            with m.Switch(part):
                with m.Case(_Part.HEADER):
                    m.d.sync += item.eq(0)
                    with m.If(index.all()):
                        no_body = self.o.is_sum | is_bad
                        m.d.sync += part.eq(Mux(no_body, _Part.REST, _Part.CHUNKS))
                with m.Case(_Part.CHUNKS, _Part.TOKENS):
                    with m.If(is_last_word):
                        behind = Mux(self.o.n_ends == 0, _Part.REST, _Part.ENDS)
                        m.d.sync += [
                            item.eq(0),
                            part.eq(Mux(part == _Part.CHUNKS, _Part.TOKENS, behind)),
                        ]
                with m.Case(_Part.ENDS):
                    with m.If(is_last_word):
                        m.d.sync += part.eq(_Part.REST)
        return m

    def _header(self, m, part, index, is_bad):
        """Keep what is needed of the header, and find what is wrong with it."""
        config, o, word = self.config, self.o, self.word
        at = {name: field.first for name, field in HEADER.items()}
        line_bits, doorbell_bits = exact_log2(line_bytes(config)), exact_log2(DOORBELL_BYTES)
        low = Signal(8)
        m.d.comb += low.eq(word)
        out_of_tile = ~o.is_sum & ((low == 0) | (low > config.pass_tokens))

        # one comparison for four words
        identity, half = Signal(WORD_WIDTH), (1 << WORD_WIDTH) - 1
        expected = {
            at["magic"]: MAGIC,
            at["version"]: DESCRIPTOR_VERSION,
            at["fingerprint"]: config.fingerprint & half,
            at["fingerprint"] + 1: config.fingerprint >> WORD_WIDTH,
        }
        with m.Switch(index[:2]):
            for place, value in expected.items():
                with m.Case(place):
                    m.d.comb += identity.eq(value)

        # what this word breaks, and what any has
        broken = Signal(_FAULTS)
        kept = Signal(_FAULTS)
        widths = {
            word.first + i: min(word.width - WORD_WIDTH * i, WORD_WIDTH)
            for word in HEADER.values()
            for i in range(word.count)
        }
        with m.Switch(index):
            for width in sorted({*widths.values(), 0} - {WORD_WIDTH}):
                with m.Case(*(i for i in range(HEADER_BYTES // 4) if widths.get(i, 0) == width)):
                    m.d.comb += broken.foreign.eq(word[width:].any())
            with m.Case(at["magic"], at["version"]):
                m.d.comb += broken.foreign.eq(word != identity)
            with m.Case(at["result_base"]):
                m.d.comb += broken.foreign.eq(word[:line_bits].any() | ~self.aligned)
        with m.Switch(index):
            with m.Case(*(at["fingerprint"] + i for i in range(2))):
                m.d.comb += broken.alien.eq(word != identity)
            with m.Case(at["kind"]):
                m.d.comb += broken.unfit.eq(low > max(Kind))
            with m.Case(at["n_tokens"]):
                m.d.comb += broken.n_tokens.eq(out_of_tile)
            with m.Case(at["n_chunks"]):
                m.d.comb += broken.unfit.eq(out_of_tile)
            with m.Case(at["n_ends"]):
                m.d.comb += broken.unfit.eq(low > ENDS_MAX)
        with m.If(self.en & (part == _Part.HEADER)):
            m.d.sync += kept.eq(kept.as_value() | broken.as_value())
            with m.Switch(index):
                for name in _KEPT:
                    with m.Case(at[name]):
                        m.d.sync += getattr(o, name).eq(word)
                with m.Case(at["kind"]):
                    m.d.sync += o.is_sum.eq(low == Kind.CHECKSUM)
                split = WORD_WIDTH - doorbell_bits
                with m.Case(at["result_base"]):
                    m.d.sync += o.result_line[:split].eq(word[doorbell_bits:])
                with m.Case(at["result_base"] + 1):
                    m.d.sync += o.result_line[split:].eq(word)
        m.d.comb += [
            # the last word, which is zero, may be the first that is wrong
            is_bad.eq(kept.as_value().any() | broken.foreign),
            self.code.eq(_code(kept)),
            self.has_result.eq((part != _Part.HEADER) & ~kept.foreign),
        ]

    def _registers(self, m, part, index, item, odd, is_bad):
        """Write the registers and arrays that shape the run."""
        write = self.write
        header, known = Signal.like(write.addr.register), Signal()
        with m.Switch(index):
            for name in CONTEXT:
                field = HEADER[name.lower()]
                for i in range(field.count):
                    with m.Case(field.first + i):
                        m.d.comb += [header.eq(REGISTERS[name].address // 4 + i), known.eq(1)]
            with m.Case(HEADER["watchdog"].first):
                m.d.comb += [
                    header.eq(REGISTERS["WATCHDOG"].address // 4),
                    known.eq((self.word != 0) & ~is_bad),
                ]
        m.d.comb += write.data.eq(self.word)
        tables = {name: REGISTERS[name].address // 4 for name in ("CHUNK", "CHUNK_KV", "TOKEN")}
        with m.Switch(part):
            with m.Case(_Part.HEADER):
                m.d.comb += [write.en.eq(self.en & known), write.addr.register.eq(header)]
            with m.Case(_Part.CHUNKS):
                table = Mux(odd, tables["CHUNK_KV"], tables["CHUNK"])
                m.d.comb += [write.en.eq(self.en), write.addr.register.eq(table | item)]
            with m.Case(_Part.TOKENS):
                m.d.comb += [write.en.eq(self.en), write.addr.register.eq(tables["TOKEN"] | item)]


def _code(faults):
    """The code of the first of several faults."""
    unfit = faults.foreign | faults.unfit
    others = Mux(faults.alien, ErrorCode.FINGERPRINT, Mux(faults.n_tokens, ErrorCode.N_TOKENS, 0))
    return Mux(unfit, ErrorCode.DESCRIPTOR, others)

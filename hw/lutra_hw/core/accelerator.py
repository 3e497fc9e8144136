"""The accelerator: registers, sequencer, units, and the DMA engines behind its memory ports."""

from amaranth import Cat, ClockDomain, ClockSignal, DomainRenamer, Module, Signal
from amaranth.back import verilog
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.control.isa import Opcode, Unit
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.attention.attention import AttentionUnit
from lutra_hw.axi.arbiter import ReadArbiter
from lutra_hw.axi.reader import DmaReader
from lutra_hw.axi.signatures import Axi4LiteSignature, Axi4ReadSignature, Axi4Signature, drive
from lutra_hw.axi.writer import DmaWriter
from lutra_hw.control.fields import argument, tile_tokens
from lutra_hw.control.load import LoadUnit
from lutra_hw.control.registers import RegisterFile
from lutra_hw.control.sequencer import Sequencer
from lutra_hw.matmul.engine import MatmulEngine
from lutra_hw.vector.unit import VectorUnit

__all__ = ["Accelerator", "generate_verilog"]

_DATA_READERS = ("fetch", "load", "attention")  # in the order of their ids on m_axi_d


class Accelerator(wiring.Component):
    """An accelerator of ``config``: runs one program for one tile of tokens per START.

    Registers on ``s_axi``; weight words come in on ``m_axi_w``, one per beat; everything else is
    on ``m_axi_d``, where ``arid`` tells the instruction fetch, the load and the attention unit
    apart. One clock, synchronous reset.

    Model: :class:`lutra_golden.control.interpreter.Interpreter`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    s_axi : ``In(Axi4LiteSignature(12))``
    m_axi_w : ``Out(Axi4ReadSignature(weight_axi_width))``
    m_axi_d : ``Out(Axi4Signature(data_axi_width, id_width=2))``
    irq : ``Out(1)``
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "s_axi": In(Axi4LiteSignature()),
                "m_axi_w": Out(Axi4ReadSignature(config.weight_axi_width)),
                "m_axi_d": Out(Axi4Signature(config.data_axi_width, id_width=2)),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        # a reset of its own, from a register: none of the next-state logic hangs on an input pin,
        # which costs timing on an FPGA and half of the speed in a cycle-based simulator
        reset = Signal(init=1)
        m.domains.core = core = ClockDomain()
        m.d.sync += reset.eq(0)
        m.d.comb += [core.clk.eq(ClockSignal()), core.rst.eq(reset)]
        m.submodules.core = DomainRenamer("core")(self._core())
        return m

    def _core(self):
        m = Module()
        config = self.config
        m.submodules.registers = registers = RegisterFile(config)
        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.load = load = LoadUnit(config)
        m.submodules.matmul = matmul = MatmulEngine(config.matmul)
        m.submodules.vector = vector = VectorUnit(config)
        m.submodules.attention = attention = AttentionUnit(config)
        units = {
            Unit.LOAD: load,
            Unit.MATMUL: matmul,
            Unit.VECTOR: vector,
            Unit.ATTENTION: attention,
        }

        errors = self._weights(m, sequencer, matmul)
        errors += self._data(m, sequencer, load, attention, vector)
        self._commands(m, registers.context, sequencer, units)
        wiring.connect(m, load.param_w, vector.param_w)
        wiring.connect(m, load.rope_w, vector.rope_w)
        wiring.connect(m, load.embed_w, vector.embed_w)
        wiring.connect(m, load.tokens, registers.tokens)
        wiring.connect(m, vector.act, matmul.act)
        wiring.connect(m, vector.acc, matmul.acc)
        wiring.connect(m, vector.q_w, attention.q_w)
        wiring.connect(m, vector.qs_w, attention.qs_w)
        wiring.connect(m, vector.attention, attention.out)

        wiring.connect(m, wiring.flipped(self.s_axi), registers.s_axi)
        context = registers.context
        wiring.connect(m, context, sequencer.context, load.context, vector.context)
        m.d.comb += [
            sequencer.start.eq(registers.start),
            self.irq.eq(registers.irq),
            registers.done.eq(sequencer.finished),
            registers.error.eq(Cat(*errors, sequencer.error).any()),
            registers.saturated.eq(vector.saturated),
            registers.unit_state.eq(sequencer.unit_state),
            registers.argmax.eq(vector.argmax),
            registers.scales.eq(vector.scales),
        ]
        self._count(m, registers.events, units)
        return m

    def _weights(self, m, sequencer, matmul):
        """Weight words: DMA engine on m_axi_w."""
        config = self.config
        burst_beats = config.burst_bytes // config.weight_word_bytes
        m.submodules.weight_reader = reader = DmaReader(
            config.weight_axi_width,
            burst_beats=burst_beats,
            max_outstanding=config.max_outstanding,
            fifo_depth=(config.max_outstanding + 1) * burst_beats,
        )
        drive(m, self.m_axi_w, reader.axi)
        wiring.connect(m, sequencer.weight_cmd, reader.cmd)
        m.d.comb += [
            matmul.weights.p.eq(reader.o.p[: config.matmul.word_bits]),
            matmul.weights.valid.eq(reader.o.valid),
            reader.o.ready.eq(matmul.weights.ready),
        ]
        return [reader.error]

    def _data(self, m, sequencer, load, attention, vector):
        """Everything else: three readers and a writer on m_axi_d."""
        config = self.config
        burst_beats = config.burst_bytes // config.data_bytes
        m.submodules.data_arbiter = arbiter = ReadArbiter(len(_DATA_READERS), config.data_axi_width)
        errors = []
        users = dict(zip(_DATA_READERS, (sequencer, load, attention), strict=True))
        for port, (name, user) in zip(arbiter.i, users.items(), strict=True):
            # keys and values come in long runs that nothing should interrupt
            outstanding = config.max_outstanding if name == "attention" else 2
            reader = DmaReader(
                config.data_axi_width,
                burst_beats=burst_beats,
                max_outstanding=outstanding,
                fifo_depth=(outstanding + 1) * burst_beats,
            )
            m.submodules[f"{name}_reader"] = reader
            wiring.connect(m, user.rd_cmd, reader.cmd)
            wiring.connect(m, reader.o, user.rd_data)
            wiring.connect(m, reader.axi, port)
            errors.append(reader.error)
        m.submodules.writer = writer = DmaWriter(
            config.data_axi_width,
            burst_beats=burst_beats,
            max_outstanding=config.max_outstanding,
            fifo_depth=2 * burst_beats + 2,
        )
        wiring.connect(m, vector.wr_cmd, writer.cmd)
        wiring.connect(m, vector.wr_data, writer.data)
        m.d.comb += vector.wr_idle.eq(writer.idle)
        drive(m, self.m_axi_d, arbiter.o)
        drive(m, self.m_axi_d, writer.axi)
        return [*errors, writer.error]

    def _commands(self, m, context, sequencer, units):
        """Instructions, or what the units take in place of them, and what comes back."""
        wiring.connect(m, sequencer.load_cmd, units[Unit.LOAD].cmd)
        wiring.connect(m, sequencer.vector_cmd, units[Unit.VECTOR].cmd)

        tile, word = units[Unit.MATMUL].cmd, sequencer.matmul_cmd.p
        first, count = tile_tokens(m, word, context.n_tokens, context.logits_from)
        m.d.comb += [tile.p.token_first.eq(first), tile.p.token_count.eq(count)]
        for name in ("depth_tiles", "row_blocks", "planes", "acc_base", "shift"):
            m.d.comb += getattr(tile.p, name).eq(argument(word, Opcode.LMMA, name))
        m.d.comb += [
            tile.valid.eq(sequencer.matmul_cmd.valid),
            sequencer.matmul_cmd.ready.eq(tile.ready),
        ]

        attend, word = units[Unit.ATTENTION].cmd, sequencer.attention_cmd.p
        m.d.comb += [
            attend.p.kv_addr.eq(context.kv_base + argument(word, Opcode.ATTEND, "kv_offset")),
            attend.p.position.eq(context.position),
            attend.p.frac.eq(argument(word, Opcode.ATTEND, "frac")),
            attend.p.window.eq(argument(word, Opcode.ATTEND, "window")),
            attend.p.token_count.eq(context.n_tokens),
            attend.valid.eq(sequencer.attention_cmd.valid),
            sequencer.attention_cmd.ready.eq(attend.ready),
        ]
        for signal in ("done", "busy", "stall"):
            for unit, component in units.items():
                m.d.comb += getattr(sequencer, signal)[unit].eq(getattr(component, signal))

    def _count(self, m, events, units):
        for unit, component in units.items():
            name = unit.name.lower()
            m.d.comb += [
                events[f"{name}_busy"].eq(component.busy),
                events[f"{name}_stall"].eq(component.stall),
            ]
        w, d = self.m_axi_w, self.m_axi_d
        m.d.comb += [
            events.weight_read_beats.eq(w.rvalid & w.rready),
            events.data_read_beats.eq(d.rvalid & d.rready),
            events.data_write_beats.eq(d.wvalid & d.wready),
        ]


def generate_verilog(config: AcceleratorConfig) -> str:
    """Verilog of the accelerator of ``config``; the top module is ``accelerator``.

    The text names no path, so that the same sources give the same bytes anywhere.
    """
    return verilog.convert(
        Accelerator(config), name="accelerator", strip_internal_attrs=True, emit_src=False
    )

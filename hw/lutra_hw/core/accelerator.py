"""The accelerator: registers, sequencer, units, and the DMA engines behind its memory ports."""

from amaranth import (
    Cat,
    ClockDomain,
    ClockSignal,
    DomainRenamer,
    Module,
    ResetInserter,
    Signal,
)
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.axi.packed import PackedParams
from lutra_golden.axi.width import WidthParams
from lutra_golden.control.isa import Opcode, Unit
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import PortParams, Purpose, port_name
from lutra_hw.attention.attention import AttentionUnit
from lutra_hw.axi.arbiter import ReadArbiter
from lutra_hw.axi.packed import ReadPacked
from lutra_hw.axi.reader import DmaReader
from lutra_hw.axi.signatures import (
    Axi4LiteSignature,
    Axi4ReadSignature,
    Axi4Signature,
    Axi4WriteSignature,
    drive,
)
from lutra_hw.axi.stripe import Stripe
from lutra_hw.axi.width import ReadWidth, WriteWidth
from lutra_hw.axi.writer import DmaWriter
from lutra_hw.control.check import RunCheck
from lutra_hw.control.failure import FailureMux
from lutra_hw.control.fields import argument, tile_tokens
from lutra_hw.control.load import LoadUnit
from lutra_hw.control.registers import RegisterFile
from lutra_hw.control.runs import RunUnit, connect_runs, share_table
from lutra_hw.control.sequencer import Sequencer
from lutra_hw.control.watchdog import Watchdog
from lutra_hw.matmul.engines import build_engine
from lutra_hw.netlist import to_verilog
from lutra_hw.vector.unit import VectorUnit

__all__ = ["Accelerator", "generate_verilog"]


def _signature(port: PortParams):
    """Channels of a port; every read of it that may be under way at once has an id."""
    id_width = max(1, (len(port.reads) - 1).bit_length())
    if not port.writes:
        return Axi4ReadSignature(port.width, id_width=id_width)
    if not port.reads:
        return Axi4WriteSignature(port.width)
    return Axi4Signature(port.width, id_width=id_width)


class Accelerator(wiring.Component):
    """An accelerator of ``config``: runs a program for a tile of tokens, or descriptors.

    Registers on ``s_axi``, memory on the ports of the configuration. What several purposes read
    through one port is told apart by ``arid``, in the order of :class:`Purpose`; weights may come
    through several ports, side by side. The widths of ports and of what the units move are
    independent. One clock, synchronous resets: of the
    accelerator alone at any time, as it waits for what the memory owes; of both (``bus_rst``, with
    whatever is behind the memory ports), when nothing is owed any more.

    A run begins only if its registers fit the configuration. A bus error or an unknown opcode ends
    it at once: what was read then is never used, what a write has begun is written, and the units
    are as after a reset.

    Model: :class:`lutra_golden.control.interpreter.Interpreter`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    s_axi : ``In(Axi4LiteSignature(12))``
    m_axi_0, m_axi_1, ... : ``Out``  read, write or all channels, as the port is for
    irq : ``Out(1)``
    bus_rst : ``In(1)``
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "s_axi": In(Axi4LiteSignature()),
                **{
                    port_name(number): Out(_signature(port))
                    for number, port in enumerate(config.ports)
                },
                "irq": Out(1),
                "bus_rst": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        # a reset of its own, from a register: none of the next-state logic hangs on an input pin,
        # which costs timing on an FPGA and half of the speed in a cycle-based simulator
        reset, bus_reset = Signal(init=1), Signal(init=1, reset_less=True)
        m.domains.core = core = ClockDomain(reset_less=True)
        m.d.sync += [reset.eq(self.bus_rst), bus_reset.eq(self.bus_rst)]
        m.d.comb += core.clk.eq(ClockSignal())
        m.submodules.core = DomainRenamer("core")(self._core(reset, bus_reset))
        return m

    def _core(self, reset, bus_reset):
        m = Module()
        config = self.config
        registers, sequencer, load = RegisterFile(config), Sequencer(config), LoadUnit(config)
        runs = RunUnit(config)
        matmul, vector = build_engine(config.matmul), VectorUnit(config)
        attention = AttentionUnit(config)
        cleared = ResetInserter(registers.clear)
        m.submodules.registers = ResetInserter(reset)(registers)
        m.submodules.runs = ResetInserter(reset)(runs)
        m.submodules.check = check = RunCheck(config)
        m.submodules.failure = failure = FailureMux()
        m.submodules.watchdog = watchdog = Watchdog()
        m.submodules.sequencer = cleared(sequencer)
        m.submodules.load = cleared(load)
        m.submodules.matmul = cleared(matmul)
        m.submodules.vector = cleared(vector)
        m.submodules.attention = cleared(attention)
        units = {
            Unit.LOAD: load,
            Unit.MATMUL: matmul,
            Unit.VECTOR: vector,
            Unit.ATTENTION: attention,
        }

        users = {
            Purpose.FETCH: (sequencer.rd_cmd, sequencer.rd_data, config.word_bytes),
            Purpose.LOAD: (load.rd_cmd, load.rd_data, config.load_word_bytes),
            Purpose.ATTENTION: (attention.rd_cmd, attention.rd_data, config.word_bytes),
            Purpose.WEIGHTS: (sequencer.weight_cmd, matmul.weights, config.weight_word_bytes),
        }
        self._clear, self._bus_reset = registers.clear, bus_reset
        idle, beats = self._memory(m, users, vector, runs, registers.events, failure)
        m.d.sync += watchdog.moved.eq(Cat(*beats, sequencer.done).any())
        m.d.comb += registers.idle.eq(Cat(*idle).all())
        self._commands(m, registers.context, sequencer, units)
        wiring.connect(m, load.param_w, vector.param_w)
        wiring.connect(m, load.rope_w, vector.rope_w)
        wiring.connect(m, load.embed_w, vector.embed_w)
        m.d.comb += vector.embed_low.eq(load.embed_low)
        wiring.connect(m, load.tokens, registers.tokens)
        wiring.connect(m, registers.argmax, vector.argmax)
        wiring.connect(m, registers.scales, vector.scales)
        wiring.connect(m, vector.chunks, registers.vector_chunks)
        wiring.connect(m, attention.chunks, registers.attention_chunks)
        wiring.connect(m, vector.act, matmul.act)
        wiring.connect(m, vector.acc, matmul.acc)
        wiring.connect(m, vector.q_w, attention.q_w)
        wiring.connect(m, vector.qs_w, attention.qs_w)
        wiring.connect(m, vector.attention, attention.out)

        wiring.connect(m, wiring.flipped(self.s_axi), registers.s_axi)
        context = registers.context
        wiring.connect(m, context, load.context, vector.context)
        connect_runs(m, registers, runs, sequencer, check)
        share_table(m, registers, check, load.chunks)
        wiring.connect(m, vector.result_cmd, runs.wr_cmd)
        wiring.connect(m, vector.result_data, runs.wr_data)
        m.d.comb += [
            self.irq.eq(registers.irq),
            watchdog.limit.eq(registers.watchdog),
            watchdog.running.eq(registers.running),
            registers.expired.eq(watchdog.expired),
            failure.program.eq(sequencer.error),
            failure.completed.eq(sequencer.completed),
            failure.dispatched.eq(sequencer.dispatched),
            registers.failure.eq(failure.o),
            registers.saturated.eq(vector.saturated | attention.saturated),
            registers.unit_state.eq(sequencer.unit_state),
        ]
        self._count(m, registers.events, units)
        return m

    def _memory(self, m, users, vector, runs, events, failure):
        """DMA engines and width converters of all that is moved, and the ports that they share.

        ``users`` are, for everything that is read, the commands, the words and their bytes. Returns
        the signals that say that nothing is under way, and the transfers that move in a cycle.
        """
        idle, moves, engines = [], [], {purpose: [] for purpose in Purpose}
        for number, port in enumerate(self.config.ports):
            axi = getattr(self, port_name(number))
            readers = []
            for purpose in port.reads:
                readers.append(self._reader(m, number, purpose))
                engines[purpose].append(readers[-1])
            if len(readers) == 1:
                drive(m, axi, readers[0].axi)
            elif readers:
                arbiter = ReadArbiter(len(readers), port.width)
                m.submodules[f"arbiter_{number}"] = ResetInserter(self._bus_reset)(arbiter)
                for master, reader in zip(arbiter.i, readers, strict=True):
                    wiring.connect(m, reader.axi, master)
                drive(m, axi, arbiter.o)
            if port.writes:
                writer = self._writer(m, port, vector)
                m.d.comb += runs.wr_idle.eq(writer.idle)
                drive(m, axi, writer.axi)
                m.d.comb += events.data_write_beats.eq(axi.wvalid & axi.wready)
                engines[Purpose.WRITE].append(writer)
                moves += [axi.wvalid & axi.wready, axi.bvalid]
                idle.append(writer.settled)
        beats = {Purpose.WEIGHTS: 0, Purpose.LOAD: 0}
        for purpose, (cmd, words, word_bytes) in users.items():
            self._words(m, purpose, engines[purpose], cmd, words, word_bytes)
            kind = purpose if purpose == Purpose.WEIGHTS else Purpose.LOAD
            for reader in engines[purpose]:
                moves.append(reader.axi.rvalid & reader.axi.rready)
                beats[kind] += moves[-1]
                idle.append(reader.idle)
        m.d.comb += events.weight_read_beats.eq(beats[Purpose.WEIGHTS])
        m.d.comb += events.data_read_beats.eq(beats[Purpose.LOAD])
        for number, purpose in enumerate(Purpose):
            transfer = failure.transfers[number]
            *others, last = engines[purpose]
            m.d.comb += [
                transfer.error.eq(Cat(engine.error for engine in engines[purpose]).any()),
                transfer.response.eq(last.response),
                transfer.address.eq(last.address),
            ]
            # of several in a cycle, the first one is assigned last, and wins
            for engine in reversed(others):
                with m.If(engine.error):
                    m.d.comb += [
                        transfer.response.eq(engine.response),
                        transfer.address.eq(engine.address),
                    ]
        return idle, moves

    def _reader(self, m, number, purpose):
        """DMA engine that reads through a port."""
        port = self.config.ports[number]
        # weights, keys and values come in long runs that nothing should interrupt
        is_long = purpose in (Purpose.WEIGHTS, Purpose.ATTENTION)
        outstanding = port.max_outstanding if is_long else 2
        # a power of two in LUTs, and the output register; what is in block RAM has room
        depth = port.ahead_beats if is_long else 2 * port.burst_beats + 1
        reader = DmaReader(
            port.width,
            burst_beats=port.burst_beats,
            max_outstanding=outstanding,
            fifo_depth=max(depth, 4),
        )
        is_lane = len(self.config.ports_of(purpose)) > 1
        name = f"{purpose}_reader" + (f"_{number}" if is_lane else "")
        m.submodules[name] = ResetInserter(self._bus_reset)(reader)
        m.d.comb += reader.clear.eq(self._clear)
        return reader

    def _words(self, m, purpose, readers, cmd, words, word_bytes):
        """Words of ``word_bytes`` out of what the readers of a purpose read, as the commands say.

        Beats of several readers lie side by side.
        """
        source, beat_bytes = readers[0], readers[0].data_width // 8
        if len(readers) > 1:
            params = self.config.weight_stripe
            source, beat_bytes = Stripe(params), params.whole_bytes
            m.submodules[f"{purpose}_stripe"] = ResetInserter(self._clear)(source)
            for reader, lane_cmd, lane in zip(readers, source.o_cmd, source.i, strict=True):
                wiring.connect(m, lane_cmd, reader.cmd)
                wiring.connect(m, reader.o, lane)
        if word_bytes != beat_bytes:
            inner = source
            if PackedParams.fits(word_bytes, beat_bytes):
                source = ReadPacked(PackedParams(word_bytes=word_bytes, beat_bytes=beat_bytes))
            else:
                source = ReadWidth(WidthParams(word_bytes=word_bytes, beat_bytes=beat_bytes))
            m.submodules[f"{purpose}_width"] = ResetInserter(self._clear)(source)
            wiring.connect(m, source.o_cmd, inner.cmd)
            wiring.connect(m, inner.o, source.i)
        wiring.connect(m, cmd, source.cmd)
        m.d.comb += [
            # what fills up a weight word is dropped
            words.p.eq(source.o.p[: len(words.p)]),
            words.valid.eq(source.o.valid),
            source.o.ready.eq(words.ready),
        ]

    def _writer(self, m, port, vector):
        """Writes the words of the vector unit through a port."""
        writer = DmaWriter(
            port.width,
            burst_beats=port.burst_beats,
            max_outstanding=port.max_outstanding,
            fifo_depth=max(2 * port.burst_beats + 1, 4),
        )
        m.submodules.writer = ResetInserter(self._bus_reset)(writer)
        m.d.comb += writer.clear.eq(self._clear)
        if self.config.word_bytes == port.n_bytes:
            wiring.connect(m, vector.wr_cmd, writer.cmd)
            wiring.connect(m, vector.wr_data, writer.data)
        else:
            params = WidthParams(word_bytes=self.config.word_bytes, beat_bytes=port.n_bytes)
            width = WriteWidth(params)
            m.submodules.write_width = ResetInserter(self._clear)(width)
            wiring.connect(m, vector.wr_cmd, width.cmd)
            wiring.connect(m, vector.wr_data, width.i)
            wiring.connect(m, width.o_cmd, writer.cmd)
            wiring.connect(m, width.o, writer.data)
        m.d.comb += vector.wr_idle.eq(writer.idle)
        return writer

    def _commands(self, m, context, sequencer, units):
        """Connect instructions, or their substitutes, to the units, and the units' answers back."""
        wiring.connect(m, sequencer.load_cmd, units[Unit.LOAD].cmd)
        wiring.connect(m, sequencer.vector_cmd, units[Unit.VECTOR].cmd)

        tile, word = units[Unit.MATMUL].cmd, sequencer.matmul_cmd.p
        first, count = tile_tokens(m, word, context.n_tokens, context.logits_from)
        m.d.comb += [tile.p.token_first.eq(first), tile.p.token_count.eq(count)]
        for name in ("depth_tiles", "row_blocks", "planes", "acc_base"):
            m.d.comb += getattr(tile.p, name).eq(argument(word, Opcode.LMMA, name))
        shift = argument(word, Opcode.LMMA, "shift")
        if self.config.matmul.shift_min:
            shift = shift - self.config.matmul.shift_min
        m.d.comb += [
            tile.p.shift.eq(shift),
            tile.valid.eq(sequencer.matmul_cmd.valid),
            sequencer.matmul_cmd.ready.eq(tile.ready),
        ]

        attend, word = units[Unit.ATTENTION].cmd, sequencer.attention_cmd.p
        m.d.comb += [
            attend.p.kv_offset.eq(argument(word, Opcode.ATTEND, "kv_offset")),
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


def generate_verilog(config: AcceleratorConfig) -> str:
    """Verilog of the accelerator of ``config``; the top module is ``accelerator``.

    The text names no path, so that the same sources give the same bytes anywhere.
    """
    return to_verilog(Accelerator(config), "accelerator")

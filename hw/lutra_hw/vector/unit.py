"""The vector unit: everything between two matrix products but attention, and its memories."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.control.isa import (
    FLAG_BIAS,
    FLAG_CENTRE,
    FLAG_FIRST,
    FLAG_PLAIN,
    FLAG_QK_NORM,
    FLAG_STREAM,
    Opcode,
)
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.matmul.engine import LANES
from lutra_golden.vector.residual import RESIDUAL_WIDTH
from lutra_hw.buffers import (
    ArgmaxReadPort,
    AttentionReadPort,
    ChunkReadPort,
    ParamWritePort,
    QueryScaleWritePort,
    QueryWritePort,
    ResidualReadPort,
    ResidualWritePort,
    RopeWritePort,
    ScaleReadPort,
)
from lutra_hw.control.context import RunContextSignature
from lutra_hw.control.fields import argument, header, tile_tokens
from lutra_hw.matmul.contract import acc_read_port, act_write_port
from lutra_hw.ports import (
    INSTRUCTION_SHAPE,
    SCALE_LAYOUT,
    WritePortSignature,
    dma_command,
    dma_write_data,
    packed_scale,
)
from lutra_hw.vector.norm import NormQuant
from lutra_hw.vector.residual import Logits, ResidualAdd
from lutra_hw.vector.rope import RopeQuant

__all__ = ["VectorUnit"]


class VectorUnit(wiring.Component):
    """Executes NORMQ, ROPEQ, RESADD and LOGITS, one at a time, in order.

    An instruction takes 2 cycles to decode, and then what :class:`NormQuant`, :class:`RopeQuant`,
    :class:`ResidualAdd` or :class:`Logits` take; ROPEQ and LOGITS also wait until the writer is
    idle. ``done`` pulses once per instruction, the next one is accepted in the cycle after. NORMQ
    and LOGITS with ``FLAG_LOGITS`` process tokens ``logits_from`` to ``n_tokens - 1``, which may be
    none; all others process tokens ``0`` to ``n_tokens - 1``.

    The unit owns the residual stream, the parameter buffer, the rotary table and the activation
    scales of the tile. Their write ports are always ready; the writer must not touch what the
    current instruction uses. Reset changes none of them.

    Model: :class:`lutra_golden.control.interpreter.Interpreter`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    cmd : ``In(stream.Signature(INSTRUCTION_SHAPE))``  instructions of the vector unit as fetched.
    context : ``In(RunContextSignature())``
    chunks : ``Out(ChunkReadPort(config))``
    acc : ``Out(acc_read_port(config.matmul))``
    act : ``Out(act_write_port(config.matmul))``
    attention : ``Out(AttentionReadPort(config))``
    q_w, qs_w : ``Out(QueryWritePort(config))``, ``Out(QueryScaleWritePort(config))``
    param_w : ``In(ParamWritePort(config))``
    rope_w : ``In(RopeWritePort(config))``
    embed_w : ``In(ResidualWritePort(config))``  not while RESADD runs.
    embed_low : ``In(1)``  ``embed_w`` writes only the 16 low bits of each element.
    result_cmd, result_data : ``In(dma_command())``, ``In(dma_write_data(word_width))``
        What somebody else writes, while there is no instruction.
    wr_cmd, wr_data : ``Out(dma_command())``, ``Out(dma_write_data(word_width))``
    wr_idle : ``In(1)``  everything handed over before this cycle has been written.
    scales : ``In(ScaleReadPort(config))``  activation scales.
    argmax : ``In(ArgmaxReadPort(config))``
    saturated : ``Out(1)``  pulses when a value of NORMQ, ROPEQ or RESADD leaves its range.
    done, busy, stall : ``Out(1)``
    """

    def __init__(self, config: AcceleratorConfig):
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")
        self.config = config
        super().__init__(
            {
                "cmd": In(stream.Signature(INSTRUCTION_SHAPE)),
                "context": In(RunContextSignature()),
                "chunks": Out(ChunkReadPort(config)),
                "acc": Out(acc_read_port(config.matmul)),
                "act": Out(act_write_port(config.matmul)),
                "attention": Out(AttentionReadPort(config)),
                "q_w": Out(QueryWritePort(config)),
                "qs_w": Out(QueryScaleWritePort(config)),
                "param_w": In(ParamWritePort(config)),
                "rope_w": In(RopeWritePort(config)),
                "embed_w": In(ResidualWritePort(config)),
                "embed_low": In(1),
                "result_cmd": In(dma_command()),
                "result_data": In(dma_write_data(config.word_width)),
                "wr_cmd": Out(dma_command()),
                "wr_data": Out(dma_write_data(config.word_width)),
                "wr_idle": In(1),
                "scales": In(ScaleReadPort(config)),
                "argmax": In(ArgmaxReadPort(config)),
                "saturated": Out(1),
                "done": Out(1),
                "busy": Out(1),
                "stall": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.norm = norm = NormQuant(self.config)
        m.submodules.rope = rope = RopeQuant(self.config)
        m.submodules.residual_add = residual_add = ResidualAdd(self.config)
        m.submodules.logits = logits = Logits(self.config)
        blocks = {
            Opcode.NORMQ: norm,
            Opcode.ROPEQ: rope,
            Opcode.RESADD: residual_add,
            Opcode.LOGITS: logits,
        }
        instruction = Signal(INSTRUCTION_SHAPE)
        runs = {opcode: header(instruction, "opcode") == opcode.value for opcode in blocks}

        _read(m, self.acc, [(runs[opcode], block.acc) for opcode, block in blocks.items()])
        wiring.connect(m, norm.attention, wiring.flipped(self.attention))
        wiring.connect(m, norm.act, wiring.flipped(self.act))
        wiring.connect(m, rope.chunks, wiring.flipped(self.chunks))
        wiring.connect(m, rope.q_w, wiring.flipped(self.q_w))
        wiring.connect(m, rope.qs_w, wiring.flipped(self.qs_w))
        wiring.connect(m, logits.argmax, wiring.flipped(self.argmax))
        self._memories(m, runs, norm, rope, residual_add, logits)

        is_logits = runs[Opcode.LOGITS]
        for o, a, b, c in (
            (self.wr_cmd, logits.o_cmd, rope.kv_cmd, self.result_cmd),
            (self.wr_data, logits.o_data, rope.kv_data, self.result_data),
        ):
            m.d.comb += [
                o.p.eq(Mux(c.valid, c.p, Mux(is_logits, a.p, b.p))),
                o.valid.eq(a.valid | b.valid | c.valid),
                a.ready.eq(o.ready & is_logits),
                b.ready.eq(o.ready & ~is_logits),
                c.ready.eq(o.ready),
            ]
        m.d.comb += self.saturated.eq(norm.saturated | rope.saturated | residual_add.saturated)
        self._control(m, instruction, blocks)
        return m

    def _memories(self, m, runs, norm, rope, residual_add, logits):
        config, lanes = self.config, LANES
        norms, rotates, adds, scales_rows = (
            runs[code] for code in (Opcode.NORMQ, Opcode.ROPEQ, Opcode.RESADD, Opcode.LOGITS)
        )
        token_bits = len(self.embed_w.addr.token)

        write, added = self.embed_w.signature.create(path=("write",)), residual_add.residual_w
        m.d.comb += [
            write.en.eq(self.embed_w.en | added.en),
            write.addr.eq(Mux(added.en, added.addr, self.embed_w.addr)),
            write.data.eq(Mux(added.en, added.data, self.embed_w.data)),
        ]
        residual_r = self._residual(m, write, added.en | ~self.embed_low, token_bits)
        users = [(norms, norm.residual), (adds, residual_add.residual)]
        _read(m, residual_r, [*users, (scales_rows, logits.residual)])
        params_r = _memory(m, "params", self.param_w, config.vector.param_words).read_port()
        readers = [(norms, norm.param), (scales_rows, logits.param)]
        if config.vector.qkv_bias or config.vector.qk_norm:
            readers.append((rotates, rope.param))
        _read(m, params_r, readers)

        # cosine and sine of a dimension are read at once
        pairs = exact_log2(config.head_dim // (2 * lanes))
        word, token = self.rope_w.addr.word, self.rope_w.addr.token
        for part, name in enumerate(("cosines", "sines")):
            write = WritePortSignature(rope.rope.addr.shape().members, self.rope_w.data.shape())
            write = write.create(path=(name,))
            m.d.comb += [
                write.en.eq(self.rope_w.en & (word[pairs] == part)),
                write.addr.token.eq(token),
                write.addr.word.eq(word[:pairs]),
                write.data.eq(self.rope_w.data),
            ]
            table_r = _memory(m, name, write, 1 << pairs, token_bits).read_port()
            m.d.comb += [table_r.addr.eq(rope.rope.addr), rope.rope.data[part].eq(table_r.data)]

        scales = _memory(m, "scales", norm.scale_w, config.pass_tokens)
        users = [(norms, norm.scale_r), (rotates, rope.scale_r), (adds, residual_add.scale_r)]
        _read(m, scales.read_port(), users)
        scales_r = scales.read_port()
        m.d.comb += [scales_r.addr.eq(self.scales.addr), self.scales.data.eq(scales_r.data)]

    def _residual(self, m, write, writes_high, token_bits):
        """Read port of the residual stream, whose high halves are written if ``writes_high``."""
        config, half = self.config, RESIDUAL_WIDTH // 2
        port = ResidualReadPort(config).create(path=("residual_r",))
        halves = []
        for name, bits, enable in (
            ("residual_low", slice(half), 1),
            ("residual_high", slice(half, None), writes_high),
        ):
            part = WritePortSignature(write.addr.shape().members, data.ArrayLayout(half, LANES))
            part = part.create(path=(name,))
            m.d.comb += [
                part.en.eq(write.en & enable),
                part.addr.eq(write.addr),
                part.data.eq(Cat(write.data[lane][bits] for lane in range(LANES))),
            ]
            n_words = config.vector.hidden_max // LANES
            read = _memory(m, name, part, n_words, token_bits).read_port()
            m.d.comb += read.addr.eq(port.addr)
            halves.append(read.data)
        for lane in range(LANES):
            m.d.comb += port.data[lane].eq(Cat(part[lane] for part in halves))
        return port

    def _control(self, m, instruction, blocks):
        """One instruction after the other: decode, hand over, wait until it is done."""
        first, count = tile_tokens(m, instruction, self.context.n_tokens, self.context.logits_from)
        token_first, token_count = Signal(8), Signal(8)
        m.d.sync += [token_first.eq(first), token_count.eq(count)]
        registers = {
            "token_first": token_first,
            "token_count": token_count,
            "addr": self.context.logits_base,
            "stride": self.context.logits_stride,
            "first": header(instruction, "flags") & FLAG_FIRST != 0,
            "stream": header(instruction, "flags") & FLAG_STREAM != 0,
            "plain": header(instruction, "flags") & FLAG_PLAIN != 0,
            "bias": header(instruction, "flags") & FLAG_BIAS != 0,
            "centre": header(instruction, "flags") & FLAG_CENTRE != 0,
            "qk_norm": header(instruction, "flags") & FLAG_QK_NORM != 0,
        }
        for opcode, block in blocks.items():
            for name, shape in block.cmd.p.shape():
                field = getattr(block.cmd.p, name)
                if name in registers:
                    m.d.comb += field.eq(registers[name])
                elif shape.shape == SCALE_LAYOUT:
                    mantissa, exponent = packed_scale(argument(instruction, opcode, name))
                    m.d.comb += [field.m.eq(mantissa), field.e.eq(exponent)]
                else:
                    m.d.comb += field.eq(argument(instruction, opcode, name))

        opcode = header(instruction, "opcode")
        accepted, finished, writes, waiting = Signal(), Signal(), Signal(), Signal()
        with m.Switch(opcode):
            for code, block in blocks.items():
                with m.Case(code):
                    m.d.comb += [accepted.eq(block.cmd.ready), finished.eq(block.done)]
                    m.d.comb += writes.eq(code in (Opcode.ROPEQ, Opcode.LOGITS))
            with m.Default():
                m.d.comb += [accepted.eq(1), finished.eq(1)]
        with m.FSM() as control:
            for code, block in blocks.items():
                m.d.comb += block.cmd.valid.eq(control.ongoing("Start") & (opcode == code.value))
            with m.State("Idle"):
                m.d.comb += self.cmd.ready.eq(1)
                m.d.sync += instruction.eq(self.cmd.p)
                with m.If(self.cmd.valid):
                    m.next = "Decode"
            with m.State("Decode"):
                m.next = "Start"
            with m.State("Start"):
                with m.If(accepted):
                    m.next = "Run"
            with m.State("Run"):
                with m.If(finished):
                    m.next = "Write"
                    with m.If(~writes):
                        m.d.comb += self.done.eq(1)
                        m.next = "Idle"
            with m.State("Write"):
                m.d.comb += [self.done.eq(self.wr_idle), waiting.eq(~self.wr_idle)]
                with m.If(self.wr_idle):
                    m.next = "Idle"
        m.d.comb += [
            self.busy.eq(~control.ongoing("Idle")),
            self.stall.eq(
                waiting
                | (self.wr_cmd.valid & ~self.wr_cmd.ready)
                | (self.wr_data.valid & ~self.wr_data.ready)
            ),
        ]


def _memory(m, name, write, n_words, token_bits=0):
    """Memory of ``n_words`` words for each token, filled through ``write``."""
    m.submodules[name] = memory = Memory(
        shape=write.data.shape(), depth=n_words << token_bits, init=[]
    )
    port = memory.write_port()
    m.d.comb += [port.en.eq(write.en), port.addr.eq(write.addr), port.data.eq(write.data)]
    return memory


def _read(m, port, users):
    """Connect read port ``port`` with the user that runs, ``[(runs, user)]``; all see its data."""
    m.d.comb += [user.data.eq(port.data) for _, user in users]
    for index, (runs, user) in enumerate(users):
        with m.If(runs) if index == 0 else m.Elif(runs):
            m.d.comb += port.addr.eq(user.addr)

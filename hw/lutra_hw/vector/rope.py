"""Rotary position embedding and quantisation of queries, keys and values."""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_golden.matmul.engine import LANES
from lutra_golden.vector.heads import FIXED_WIDTH, NORM_WIDTH
from lutra_golden.vector.rope import ROPE_FRAC
from lutra_hw.arith.fixed import magnitude
from lutra_hw.arith.quantize import Quantizer
from lutra_hw.buffers import (
    ChunkReadPort,
    ParamReadPort,
    QueryScaleWritePort,
    QueryWritePort,
    RopeReadPort,
    ScaleReadPort,
)
from lutra_hw.control.chunks import ChunkWalker
from lutra_hw.matmul.contract import acc_read_port
from lutra_hw.pipeline import delay
from lutra_hw.ports import (
    SCALE_LAYOUT,
    dma_command,
    dma_write_data,
)
from lutra_hw.vector.head_scales import HeadScales
from lutra_hw.vector.heads import FixedHeads, head_word_layout, slot_layout

__all__ = ["RopeQuant", "rope_command"]

_QUEUE_BEATS = 4


def rope_command(config: AcceleratorConfig) -> data.StructLayout:
    """Tokens ``0..token_count - 1``; offset of the layer's cache from a chunk's base.

    ``bias`` and ``qk_norm`` are there if the configuration has them, with what belongs to them.
    """
    members = {
        "kv_offset": unsigned(32),
        "scale_q": SCALE_LAYOUT,
        "scale_k": SCALE_LAYOUT,
        "scale_v": SCALE_LAYOUT,
        "token_count": unsigned(8),
    }
    if config.vector.qkv_bias or config.vector.qk_norm:
        members |= {"param_word": unsigned(16)}
    if config.vector.qkv_bias:
        members |= {"bias": unsigned(1), "bias_frac": unsigned(8), "centre": unsigned(1)}
    if config.vector.qk_norm:
        members |= {"qk_norm": unsigned(1), "gamma_frac": unsigned(8), "eps": unsigned(16)}
    return data.StructLayout(members)


class RopeQuant(wiring.Component):
    """Rotates and quantises the heads of a token tile, and hands keys and values to memory.

    Three processes follow each other through the heads, queries first, then keys and values: the
    first reads a pair of blocks per cycle, rotates it and finds the largest magnitude; the second
    computes factor and scale of a head, 11 cycles each; the third rotates again and quantises, two
    cycles per pair, in every other cycle. The first works at most on the token after the third's.

    A token takes the larger of ``11 * H`` and ``H * head_dim / 8 + 2`` cycles for ``H`` heads of
    all kinds, a command :func:`rope_cycles` from acceptance to ``done`` if the DMA streams never
    wait. Each head of keys and values is one command and one beat, of which ``kv_row_bytes`` are
    strobed; the scales of a token follow in a beat of which ``kv_scale_bytes`` are strobed. While
    the streams wait, up to 4 beats are kept, then no further head is quantised; ``stall`` is high.
    ``done`` pulses after the last beat was handed over.

    Values take the way of the others with cosine one and sine zero. Accumulators of ``acc_width``
    bits and any table of int16 are exact.

    With ``bias`` or ``qk_norm`` both passes go through :class:`FixedHeads`, which takes a block
    per cycle, or with both flags, whose vectors come through one port, one in two cycles. So it
    does with ``bias`` and ``centre``, whose vectors are taken from the keys that were rotated. A
    head of queries or keys with a norm takes 23 cycles in the second process. So of ``Q`` such
    heads among ``H`` a token takes the larger of ``11 * H + 12 * Q`` and
    ``P * (H * head_dim / 8 + 1)`` cycles, where ``P`` is 2, or 4 with two flags.

    Model: :func:`lutra_golden.vector.rope.rope_quantize`, ``rope_quantize_fixed``.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    cmd : ``In(stream.Signature(rope_command(config)))``
        ``kv_offset`` is a multiple of a beat.
    chunks : ``Out(ChunkReadPort(config))``  positions are below ``max_context``.
    acc : ``Out(acc_read_port(config.matmul))``
        Head ``h`` is pairs ``h * head_dim / 16`` and on; pair ``j`` of it holds dimensions
        ``8 * j`` and ``head_dim / 2 + 8 * j`` and on.
    rope : ``Out(RopeReadPort(config))``
    param : ``Out(ParamReadPort(config))``  biases and gammas, if the
        configuration has any.
    scale_r : ``Out(ScaleReadPort(config))``
    q_w, qs_w : ``Out(QueryWritePort(config))``, ``Out(QueryScaleWritePort(config))``
    kv_cmd, kv_data : ``Out(dma_command())``, ``Out(dma_write_data(word_width))``
    saturated : ``Out(1)``  pulses when a head in fixed point has left its range.
    done, busy, stall : ``Out(1)``
    """

    def __init__(self, config: AcceleratorConfig):
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")
        self.config = config
        self._heads = config.n_heads + 2 * config.n_kv_heads
        self._pairs = config.head_dim // (2 * LANES)  # of one head
        self._is_fixed = config.vector.qkv_bias or config.vector.qk_norm
        members = {}
        if self._is_fixed:
            members |= {"param": Out(ParamReadPort(config))}
        super().__init__(
            {
                "cmd": In(stream.Signature(rope_command(config))),
                "chunks": Out(ChunkReadPort(config)),
                "acc": Out(acc_read_port(config.matmul)),
                "rope": Out(RopeReadPort(config)),
                "scale_r": Out(ScaleReadPort(config)),
                "q_w": Out(QueryWritePort(config)),
                "qs_w": Out(QueryScaleWritePort(config)),
                "kv_cmd": Out(dma_command()),
                "kv_data": Out(dma_write_data(config.word_width)),
                "saturated": Out(1),
                "done": Out(1),
                "busy": Out(1),
                "stall": Out(1),
                **members,
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, lanes = self.config, LANES
        y_width = config.matmul.acc_width + 17  # lo * cos - hi * sin
        if self._is_fixed:
            # no magnitude of a head with a norm passes 2**30
            width = NORM_WIDTH - 1 if config.vector.qk_norm else FIXED_WIDTH
            y_width = max(config.matmul.acc_width, width) + 17
        m.submodules.scales = scales = HeadScales(config, y_width - 1)
        m.submodules.quantizer = quantizer = Quantizer(lanes, y_width)
        command = Signal(rope_command(config))
        m.d.comb += [
            scales.scale_q.eq(command.scale_q),
            scales.scale_k.eq(command.scale_k),
            scales.scale_v.eq(command.scale_v),
            self.scale_r.addr.eq(scales.scale_r.addr),
            scales.scale_r.data.eq(self.scale_r.data),
        ]

        slot = Signal(slot_layout(config))
        acc, away = [self.acc.data[0], self.acc.data[1]], None
        if self._is_fixed:
            slot_0, acc, away = self._prepare(m, command, slot, scales)
        else:
            slot_0 = slot
        _, slot_1, _, slot_3, slot_4, _, _, slot_7 = delay(m, slot_0, 7)
        low, high = self._rotate(m, slot_1, acc, away, y_width)
        self._find_largest(m, [*low, *high], slot_7, scales)

        # cycle 5: low dimensions, cycle 6: high ones, both with the head's factor
        word = Signal(data.StructLayout({"high": 1, "slot": slot.shape()}))
        y_high = Signal(quantizer.y.shape())
        m.d.comb += scales.factor.addr.eq(Cat(slot_3.head, slot_3.token[0]))
        with m.If(slot_4.valid & slot_4.second):
            m.d.sync += [
                Cat(quantizer.y).eq(Cat(low)),
                Cat(y_high).eq(Cat(high)),
                quantizer.factor.eq(scales.factor.data),
                word.slot.eq(slot_4),
                word.high.eq(0),
            ]
        with m.Else():
            # there is a cycle between pairs of the second pass
            m.d.sync += [
                quantizer.y.eq(y_high),
                word.high.eq(1),
                word.slot.valid.eq(word.slot.valid & ~word.slot.record & ~word.high),
            ]
        queue_ready, record_full = self._hand_over(m, command, word, quantizer.q, scales)
        self._control(m, command, slot, scales, queue_ready, record_full)
        return m

    def _modes(self, command):
        """Two flags: heads are brought to fixed point; biases, and norms or centres are applied."""
        bias, centre = Const(0), Const(0)
        if self.config.vector.qkv_bias:
            bias, centre = command.bias, command.centre
        qk_norm = command.qk_norm if self.config.vector.qk_norm else Const(0)
        return bias | qk_norm, bias & (qk_norm | centre)

    def _prepare(self, m, command, slot, scales):
        """Heads in fixed point, when the command asks for them, or accumulators as they are.

        Returns the slot to rotate and, a cycle later, the elements of its pair; and what is taken
        from it when it has been rotated, in Q16, or None if the configuration has no biases.
        """
        config = self.config
        fixed, both = self._modes(command)
        m.submodules.heads = heads = FixedHeads(config)
        wiring.connect(m, heads.param, wiring.flipped(self.param))
        names = {"scale_q", "scale_k", "scale_v", "param_word", "bias", "bias_frac", "qk_norm"}
        names |= {"centre"}
        for name in sorted(names & heads.signature.members.keys()):
            m.d.comb += getattr(heads, name).eq(getattr(command, name))
        m.d.comb += [scales.fixed.eq(fixed), self.saturated.eq(heads.saturated)]
        if config.vector.qk_norm:
            m.d.comb += [
                scales.qk_norm.eq(command.qk_norm),
                scales.gamma_frac.eq(command.gamma_frac),
                scales.eps.eq(command.eps),
            ]
            wiring.connect(m, heads.squares, scales.squares)

        # the low block when the slot begins, the high one after it
        _, after_1, after_2 = delay(m, slot, 2)
        word, second_half = Signal(head_word_layout(config)), Signal(slot.shape())
        m.d.comb += [
            second_half.eq(Mux(both, after_2, after_1)),
            word.high.eq(~slot.valid),
            word.slot.eq(Mux(slot.valid, slot, second_half)),
            word.slot.valid.eq(fixed & (slot.valid | second_half.valid)),
            heads.i.eq(word),
        ]
        slot_0 = Signal(slot.shape(), name="slot_0")
        arrived = Signal(word.shape(), name="arrived")
        with m.If(fixed):
            m.d.comb += slot_0.eq(heads.o.slot)
            m.d.comb += slot_0.valid.eq(heads.o.slot.valid & heads.o.high)
            m.d.comb += self.scale_r.addr.eq(heads.scale_r.addr)
        with m.Else():
            m.d.comb += slot_0.eq(slot)
        m.d.comb += [
            self.acc.addr.token.eq(Mux(fixed, heads.acc.addr.token, slot.token)),
            self.acc.addr.pair.eq(Mux(fixed, heads.acc.addr.pair, Cat(slot.pair, slot.head))),
            heads.acc.data.eq(self.acc.data),
            heads.scale_r.data.eq(self.scale_r.data),
            self.rope.addr.token.eq(slot_0.token),
            self.rope.addr.word.eq(slot_0.pair),
        ]

        held = Signal(heads.y.shape())
        m.d.sync += arrived.eq(heads.o)
        with m.If(arrived.slot.valid & ~arrived.high):
            m.d.sync += held.eq(heads.y)
        element = signed(max(heads.y_width, config.matmul.acc_width))
        pair = []
        for half, y in enumerate((held, heads.y)):
            x = Signal(data.ArrayLayout(element, LANES), name=f"x_{half}")
            for lane in range(LANES):
                m.d.comb += x[lane].eq(Mux(fixed, y[lane], self.acc.data[half][lane]))
            pair.append(x)
        return slot_0, pair, self._hold_centre(m, arrived, heads)

    def _hold_centre(self, m, arrived, heads):
        """Centres of both blocks of a pair, until the products of its elements are added.

        Blocks of a pair come two cycles apart and pairs four, so none is overwritten before. A
        token ends with its values, which have no centre: what follows finds zeros.
        """
        if not self.config.vector.qkv_bias:
            return None
        away = [Signal(heads.away.shape(), name=f"away_{half}") for half in ("low", "high")]
        for half, held in enumerate(away):
            with m.If(arrived.slot.valid & (arrived.high == half)):
                m.d.sync += held.eq(heads.away)
        return away

    def _rotate(self, m, slot_1, acc, away, y_width):
        """Cycles 1 to 3 of a slot: low and high dimensions, rotated, valid in cycle 4."""
        config, lanes = self.config, LANES
        is_value = slot_1.head >= config.n_heads + config.n_kv_heads
        x_layout = acc[0].shape()
        x_low, x_high = (Signal(x_layout, name=n) for n in ("x_low", "x_high"))
        cos, sin = (Signal(data.ArrayLayout(signed(16), lanes), name=n) for n in ("cos", "sin"))
        m.d.sync += [x_low.eq(acc[0]), x_high.eq(acc[1])]
        low, high = [], []
        for lane in range(lanes):
            low_away, high_away = (
                (0, 0) if away is None else (half[lane] << ROPE_FRAC for half in away)
            )
            m.d.sync += [
                cos[lane].eq(Mux(is_value, 1 << ROPE_FRAC, self.rope.data[0][lane])),
                sin[lane].eq(Mux(is_value, 0, self.rope.data[1][lane])),
            ]
            low_cos, low_sin, high_cos, high_sin = (
                Signal(signed(len(x_low[lane]) + 16), name=f"{name}_{lane}")
                for name in ("low_cos", "low_sin", "high_cos", "high_sin")
            )
            y_low, y_high = (
                Signal(signed(y_width), name=f"{name}_{lane}") for name in ("y_low", "y_high")
            )
            m.d.sync += [
                low_cos.eq(x_low[lane] * cos[lane]),
                low_sin.eq(x_low[lane] * sin[lane]),
                high_cos.eq(x_high[lane] * cos[lane]),
                high_sin.eq(x_high[lane] * sin[lane]),
                y_low.eq(low_cos - high_sin - low_away),
                y_high.eq(high_cos + low_sin - high_away),
            ]
            low.append(y_low)
            high.append(y_high)
        return low, high

    def _find_largest(self, m, y_4, slot_7, scales):
        """Cycles 4 to 6: the pair's largest magnitude; cycle 7: the head's."""

        def larger(a, b):
            return Mux(a > b, a, b)

        width = len(y_4[0]) - 1
        magnitudes = [Signal(width, name=f"magnitude_{i}") for i in range(len(y_4))]
        m.d.sync += [a.eq(magnitude(y)) for a, y in zip(magnitudes, y_4, strict=True)]
        level, name = magnitudes, "of_two"
        while len(level) > 1:
            halves = [Signal(width, name=f"{name}_{i}") for i in range(len(level) // 2)]
            # two comparisons per cycle
            domain = m.d.comb if name == "of_two" else m.d.sync
            domain += [a.eq(larger(*level[2 * i : 2 * i + 2])) for i, a in enumerate(halves)]
            level, name = halves, "of_two" if name == "of_four" else "of_four"
        largest, so_far = Signal(width), Signal(width)
        with m.If(slot_7.pair == 0):
            m.d.comb += largest.eq(level[0])
        with m.Else():
            m.d.comb += largest.eq(larger(level[0], so_far))
        first_pass = slot_7.valid & ~slot_7.second
        with m.If(first_pass):
            m.d.sync += so_far.eq(largest)
        m.d.comb += [
            scales.maximum.en.eq(first_pass & (slot_7.pair == self._pairs - 1)),
            scales.maximum.addr.eq(Cat(slot_7.head, slot_7.token[0])),
            scales.maximum.data.eq(largest),
        ]

    def _hand_over(self, m, command, word, q, scales):
        """Queries to the attention unit; keys, values and scales to memory.

        Returns a pulse per beat that left the queue, and whether a token's scales are complete.
        """
        config, first_kv = self.config, self.config.n_heads
        beat_bits, row_bits, record_bits = (
            exact_log2(n) for n in (config.word_bytes, config.kv_row_bytes, config.kv_scale_bytes)
        )
        _, word_1, _, out = delay(m, word, Quantizer.latency)
        is_kv = out.slot.head >= first_kv

        m.d.comb += [
            self.q_w.en.eq(out.slot.valid & ~out.slot.record & ~is_kv),
            self.q_w.addr.token.eq(out.slot.token),
            self.q_w.addr.head.eq(out.slot.head),
            self.q_w.addr.word.eq(Mux(out.high, self._pairs, 0) + out.slot.pair),
            self.q_w.data.eq(q),
            self.qs_w.en.eq(scales.scale.en & (scales.scale.addr.head < first_kv)),
            self.qs_w.addr.token.eq(scales.scale.addr.token),
            self.qs_w.addr.head.eq(scales.scale.addr.head),
            self.qs_w.data.eq(scales.scale.data),
        ]

        # a head's words and a token's scales arrive in order: shifted in from the left
        half_bits = config.attention.key_width * config.head_dim // 2
        cached = Cat(element[: config.attention.key_width] for element in q)
        low, high, record = (
            Signal(width, name=name)
            for name, width in (
                ("low", half_bits),
                ("high", half_bits),
                ("record", 64 * config.n_kv_heads),
            )
        )
        next_high = Cat(high, cached)[-half_bits:]
        with m.If(out.slot.valid & ~out.high):
            m.d.sync += low.eq(Cat(low, cached)[-half_bits:])
        with m.If(out.slot.valid & out.high):
            m.d.sync += high.eq(next_high)
        record_full, m_e = Signal(), scales.scale.data
        with m.If(scales.scale.en & (scales.scale.addr.head >= first_kv)):
            packed = Cat(m_e.m, m_e.e, m_e.e[-1].replicate(16 - len(m_e.e)))
            m.d.sync += record.eq(Cat(record, packed)[-len(record) :])
            m.d.sync += record_full.eq(scales.scale.addr.head == self._heads - 1)
        m.d.comb += scales.hold.eq(record_full)

        # a token's record is its last; keys come no sooner than 4 cycles after the one before
        m.submodules.walker = walker = ChunkWalker(config)
        wiring.connect(m, walker.table, wiring.flipped(self.chunks))
        chunk, kv_addr = walker.chunk, Signal(ADDRESS_WIDTH)
        within = word.slot.token - chunk.first
        m.d.comb += [
            walker.n_tokens.eq(command.token_count),
            walker.step.eq(word.slot.valid & word.slot.record & (within + 1 == chunk.count)),
        ]

        # address: keys and values are rows, max_context of a head
        position, addr = Signal(16), Signal(ADDRESS_WIDTH)
        index, offset = Signal(range(2 * config.n_kv_heads)), Signal(ADDRESS_WIDTH)
        m.d.comb += index.eq(word_1.slot.head - first_kv)
        with m.If(word_1.slot.record):
            m.d.comb += offset.eq(config.kv_s_offset + (position << record_bits))
        with m.Else():
            row = Cat(position[: exact_log2(config.max_context)], index)
            m.d.comb += offset.eq(row << row_bits)
        m.d.sync += [
            kv_addr.eq(chunk.kv_base + command.kv_offset),
            position.eq(chunk.position + within),
            addr.eq(kv_addr + offset),
        ]

        entry = Signal(
            data.StructLayout({"record": 1, "addr": ADDRESS_WIDTH, "data": config.word_width})
        )
        m.submodules.queue = queue = SyncFIFOBuffered(
            width=len(entry.as_value()), depth=_QUEUE_BEATS
        )
        last_word = out.high & (out.slot.pair == self._pairs - 1)
        n_records = config.word_bytes // config.kv_scale_bytes
        padding = 8 * config.kv_scale_bytes - len(record)
        addr_3 = Signal.like(addr)
        m.d.sync += addr_3.eq(addr)
        m.d.comb += [
            queue.w_en.eq(out.slot.valid & (out.slot.record | (is_kv & last_word))),
            entry.record.eq(out.slot.record),
            entry.addr.eq(addr_3),
            entry.data.eq(
                Mux(
                    out.slot.record,
                    Cat(record, Const(0, padding)).replicate(n_records),
                    Cat(low, next_high).replicate(config.word_bytes // config.kv_row_bytes),
                )
            ),
            queue.w_data.eq(entry),
        ]
        with m.If(queue.w_en & out.slot.record):
            m.d.sync += record_full.eq(0)

        head = data.View(entry.shape(), queue.r_data)
        cmd_taken, data_taken, leaves = Signal(), Signal(), Signal()
        # bytes that are written at once, and which of them
        piece = min(config.kv_row_bytes, config.kv_scale_bytes)
        record_at, row_at = head.addr[record_bits:beat_bits], head.addr[row_bits:beat_bits]
        m.d.comb += [
            self.kv_cmd.valid.eq(queue.r_rdy & ~cmd_taken),
            self.kv_cmd.p.addr.eq(Cat(Const(0, beat_bits), head.addr[beat_bits:])),
            self.kv_cmd.p.beats.eq(1),
            self.kv_data.valid.eq(queue.r_rdy & ~data_taken),
            self.kv_data.p.data.eq(head.data),
            self.kv_data.p.strb.eq(
                Cat(
                    Mux(
                        head.record, record_at == first >> record_bits, row_at == first >> row_bits
                    ).replicate(piece)
                    for first in range(0, config.word_bytes, piece)
                )
            ),
            leaves.eq(
                queue.r_rdy & (cmd_taken | self.kv_cmd.ready) & (data_taken | self.kv_data.ready)
            ),
            queue.r_en.eq(leaves),
        ]
        m.d.sync += [
            cmd_taken.eq(~leaves & (cmd_taken | (self.kv_cmd.valid & self.kv_cmd.ready))),
            data_taken.eq(~leaves & (data_taken | (self.kv_data.valid & self.kv_data.ready))),
        ]
        return leaves, record_full

    def _control(self, m, command, slot, scales, leaves, record_full):
        """Which pair the next slot reads, and for which pass."""
        layout = data.StructLayout(
            {
                "token": 8,
                "head": slot.head.shape(),
                "pair": slot.pair.shape(),
                "acc_pair": self.acc.addr.pair.shape(),
            }
        )
        first, second, at = Signal(layout), Signal(layout), Signal(layout)
        first_step, second_step, running = Signal(), Signal(), Signal()
        first_end, second_end = Signal(), Signal()
        issues = running
        if self._is_fixed:
            # in fixed point a pair every other cycle, or every fourth
            fixed, both = self._modes(command)
            phase = Signal(2)
            m.d.sync += phase.eq(Mux(running, phase + 1, 0))
            issues = running & (~fixed | ~(phase[0] | (both & phase[1])))
        for place, step, end in ((first, first_step, first_end), (second, second_step, second_end)):
            last_pair = place.pair == self._pairs - 1
            m.d.comb += end.eq(last_pair & (place.head == self._heads - 1))
            with m.If(step):
                m.d.sync += [place.pair.eq(place.pair + 1), place.acc_pair.eq(place.acc_pair + 1)]
                with m.If(last_pair):
                    m.d.sync += [place.pair.eq(0), place.head.eq(place.head + 1)]
                with m.If(end):
                    m.d.sync += [place.head.eq(0), place.acc_pair.eq(0)]

        # the second pass waits for factors, for room in the queue and every other cycle
        record, beats = Signal(), Signal(range(_QUEUE_BEATS + 1))
        ready_heads = Signal(range(2 * self._heads + 1))
        begins, sends, rest, may_start = Signal(), Signal(), Signal(), Signal()
        room = beats != _QUEUE_BEATS
        is_kv = second.head >= self.config.n_heads
        with m.If(record):
            m.d.comb += may_start.eq(record_full & room)
        with m.Elif(second.pair == 0):
            m.d.comb += may_start.eq((ready_heads != 0) & (room | ~is_kv))
        with m.Else():
            m.d.comb += may_start.eq(1)
        m.d.comb += [
            slot.second.eq(issues & may_start & ~rest & (second.token != command.token_count)),
            slot.record.eq(slot.second & record),
            second_step.eq(slot.second & ~record),
            begins.eq(second_step & (second.pair == 0)),
            sends.eq(slot.record | (begins & is_kv)),
        ]
        m.d.sync += [
            rest.eq(slot.second),
            ready_heads.eq(ready_heads + scales.factored - begins),
            beats.eq(beats + sends - leaves),
        ]
        with m.If(second_step & second_end):
            m.d.sync += record.eq(1)
        with m.If(slot.record):
            m.d.sync += [record.eq(0), second.token.eq(second.token + 1)]

        # the first pass takes the other cycles, as long as the buffers by token hold its results
        ahead = Signal(range(3))
        m.d.comb += first_step.eq(
            issues & ~slot.second & (ahead != 2) & (first.token != command.token_count)
        )
        with m.If(first_step & first_end):
            m.d.sync += first.token.eq(first.token + 1)
        m.d.sync += ahead.eq(ahead + (first_step & first_end) - slot.record)

        m.d.comb += [
            at.eq(Mux(slot.second, second, first)),
            slot.valid.eq(slot.second | first_step),
            slot.token.eq(at.token),
            slot.head.eq(at.head),
            slot.pair.eq(at.pair),
        ]
        if not self._is_fixed:
            m.d.comb += [
                self.acc.addr.token.eq(at.token),
                self.acc.addr.pair.eq(at.acc_pair),
                self.rope.addr.token.eq(at.token),
                self.rope.addr.word.eq(at.pair),
            ]
        with m.FSM():
            with m.State("Idle"):
                m.d.comb += [self.cmd.ready.eq(1), scales.start.eq(1)]
                m.d.sync += [command.eq(self.cmd.p), first.token.eq(0), second.token.eq(0)]
                with m.If(self.cmd.valid):
                    m.next = "Run"
            with m.State("Run"):
                m.d.comb += [
                    running.eq(1),
                    self.done.eq((second.token == command.token_count) & (beats == 0)),
                ]
                with m.If(self.done):
                    m.next = "Idle"
        m.d.comb += [
            self.busy.eq(running),
            self.stall.eq(
                (self.kv_cmd.valid & ~self.kv_cmd.ready)
                | (self.kv_data.valid & ~self.kv_data.ready)
            ),
        ]

"""Integer attention of a token tile over a KV cache of int8 or int4 in memory."""

from amaranth import Array, Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from lutra_golden.arith.exp2 import EXP2
from lutra_golden.arith.scale import SCALE
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.matmul.engine import LANES
from lutra_golden.timing.attention import TREE_RADIX, AttentionTiming
from lutra_hw.arith.exp2 import Exp2Neg
from lutra_hw.arith.fixed import clip_shift, leaves, round_half, saturate, shift_guarded
from lutra_hw.arith.scale import ScaleMul, ScaleOp, ScaleUnit
from lutra_hw.attention.pairs import BEAT_SLOTS, PairIssuer, ends_pair
from lutra_hw.buffers import (
    AttentionReadPort,
    AttentionWritePort,
    ChunkReadPort,
    QueryScaleWritePort,
    QueryWritePort,
)
from lutra_hw.control.chunks import ChunkWalker
from lutra_hw.pipeline import delay
from lutra_hw.ports import (
    SCALE_LAYOUT,
    dma_command,
    packed_scale,
)

__all__ = ["ATTEND_COMMAND", "AttentionUnit"]

ATTEND_COMMAND = data.StructLayout(
    {
        "kv_offset": unsigned(32),  # of the layer's cache from a chunk's base, in bytes
        "frac": unsigned(8),  # fraction bits of the output
        "token_count": unsigned(8),  # zero tokens: done at once, nothing is fetched
        "window": unsigned(16),  # latest positions that a token sees, its own included; 0: all
    }
)

_SHIFT_MAX = 63


class _Finish(wiring.Component):
    """``saturate32(round(acc / den * 2**(e + 15 + frac)))`` of one KV head, eight dims per cycle.

    A :class:`ScaleUnit` makes the reciprocal of the next denominator while an item, a token's head,
    is written. ``saturated`` is high while a word is written of which an element left its range, or
    would have had to be shifted to the left; ``finished`` pulses when the output memory holds
    everything. ``den``, ``e`` and ``acc`` answer their addresses in the same cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        params = config.attention
        token, head = range(config.pass_tokens), range(params.q_per_kv)
        words = config.head_dim // LANES
        super().__init__(
            {
                "start": In(1),
                "group": In(range(config.n_kv_heads)),
                "token_last": In(token),
                "frac": In(8),
                "den_addr": Out(data.StructLayout({"token": token, "head": head})),
                "den": In(params.den_width),
                "acc_addr": Out(
                    data.StructLayout({"token": token, "head": head, "word": range(words)})
                ),
                "acc": In(data.ArrayLayout(signed(params.acc_width), LANES)),
                "e": In(signed(SCALE.e_width)),
                "o": Out(AttentionWritePort(config)),
                "busy": Out(1),
                "saturated": Out(1),
                "finished": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        q_per_kv, words = self.config.attention.q_per_kv, self.config.head_dim // LANES
        m.submodules.unit = unit = ScaleUnit()
        token, head = Signal.like(self.den_addr.token), Signal.like(self.den_addr.head)
        denominator, reciprocal = Signal(SCALE_LAYOUT), Signal(SCALE_LAYOUT)
        out = Signal.like(self.acc_addr)
        writing, last_item, output_free = Signal(), Signal(), Signal()
        last_word = out.word == words - 1
        m.d.comb += output_free.eq(~writing | last_word)

        # reciprocals, one (token, head) after another, heads first
        with m.FSM() as fsm:
            with m.State("Idle"):
                m.d.sync += [token.eq(0), head.eq(0)]
                with m.If(self.start):
                    m.next = "Convert"
            with m.State("Convert"), m.If(unit.i.ready):
                m.next = "Converting"
            with m.State("Converting"), m.If(unit.o.valid):
                m.d.sync += denominator.eq(unit.o.p)
                m.next = "Invert"
            with m.State("Invert"), m.If(unit.i.ready):
                m.next = "Inverting"
            with m.State("Inverting"), m.If(unit.o.valid & output_free):
                m.d.sync += head.eq(head + 1)
                m.next = "Convert"
                with m.If(head == q_per_kv - 1):
                    m.d.sync += [head.eq(0), token.eq(token + 1)]
                    with m.If(token == self.token_last):
                        m.next = "Last"
            with m.State("Last"), m.If(self.finished):
                m.next = "Idle"
            m.d.comb += [
                self.busy.eq(~fsm.ongoing("Idle")),
                unit.i.valid.eq(fsm.ongoing("Convert") | fsm.ongoing("Invert")),
                unit.i.p.op.eq(Mux(fsm.ongoing("Invert"), ScaleOp.RECIP, ScaleOp.FROM_INT)),
                unit.i.p.x.eq(self.den),
                unit.i.p.a.eq(denominator),
                unit.o.ready.eq(
                    fsm.ongoing("Converting") | (fsm.ongoing("Inverting") & output_free)
                ),
                self.den_addr.token.eq(token),
                self.den_addr.head.eq(head),
            ]
            load = fsm.ongoing("Inverting") & unit.o.valid & output_free

        # stage 0: eight accumulators of the item whose reciprocal is known
        m.d.comb += self.acc_addr.eq(out)
        with m.If(load):
            m.d.sync += [
                writing.eq(1),
                reciprocal.eq(unit.o.p),
                out.token.eq(token),
                out.head.eq(head),
                out.word.eq(0),
                last_item.eq((token == self.token_last) & (head == q_per_kv - 1)),
            ]
        with m.Elif(writing):
            m.d.sync += [writing.eq(~last_word), out.word.eq(out.word + 1)]

        # where the results of each stage belong
        place = data.StructLayout({"valid": 1, "last": 1, "addr": self.o.addr.shape()})
        place_0 = Signal(place)
        place_3 = delay(m, place_0, 3, name="place")[-1]
        m.d.comb += [
            place_0.valid.eq(writing),
            place_0.last.eq(last_item & last_word),
            place_0.addr.token.eq(out.token),
            place_0.addr.word.eq((self.group * q_per_kv + out.head) * words + out.word),
            self.o.en.eq(place_3.valid),
            self.o.addr.eq(place_3.addr),
        ]
        m.d.sync += self.finished.eq(place_3.valid & place_3.last)

        # stage 1: multiply; stage 2: shift; stage 3: round, saturate and write
        acc_1, r_1, e_1 = Signal.like(self.acc), Signal(SCALE_LAYOUT), Signal.like(self.e)
        shift_2, left_2, left_3 = Signal(range(_SHIFT_MAX + 1)), Signal(), Signal()
        right = -(r_1.e + e_1 + (EXP2.y_frac + self.frac))
        m.d.sync += [
            acc_1.eq(self.acc),
            r_1.eq(reciprocal),
            e_1.eq(self.e),
            shift_2.eq(clip_shift(right, _SHIFT_MAX)),
            left_2.eq(right < 0),
            left_3.eq(left_2),
        ]
        lost = Signal(LANES)
        m.d.comb += self.saturated.eq(place_3.valid & lost.any())
        for lane in range(LANES):
            scaled_2 = Signal(signed(len(acc_1[lane]) + SCALE.m_width + 1), name=f"scaled_{lane}")
            shifted_3 = Signal(signed(len(scaled_2) + 1), name=f"shifted_{lane}")
            m.d.sync += [
                scaled_2.eq(acc_1[lane] * r_1.m),
                shifted_3.eq(shift_guarded(scaled_2, shift_2)),
            ]
            rounded = round_half(shifted_3)
            m.d.comb += [
                self.o.data[lane].eq(saturate(rounded, 32)),
                lost[lane].eq(leaves(rounded, 32) | (left_3 & shifted_3.any())),
            ]
        return m


class AttentionUnit(wiring.Component):
    """Causal attention of a tile of queries; keys, values and their scales come through DMA.

    The chunks of a command's ``token_count`` tokens come one after another. For one of ``count``
    tokens at ``position``, of which any sees one of ``n`` positions (``position + count`` without a
    window): reads their scales, then for every KV head ``n`` keys and ``n`` values, each once and
    in ascending order, and leaves the result of every head in the output memory. A pair
    of a position and a token that sees it takes ``pair_cycles`` cycles in pass K (scores, their
    maximum) and as many in pass V (weights, weighted sum) for all ``q_per_kv`` heads that share the
    key, through the same multipliers, of 17 by ``key_width`` bits. Scores stay on chip. Pairs that
    the causal mask or the window hides are never issued.

    Throughput is one pair in ``pair_cycles`` cycles. Where that is 1, one token takes
    ``n_kv_heads * (2 * n + drain)`` cycles, those of its beats of scales, and the end of the last
    head; :meth:`AttentionTiming.cycles` is exact for a chunk. The next chunk begins when the one
    before is done.
    ``rd_data`` is the only stream with backpressure: it holds when :data:`BEAT_SLOTS` beats wait.
    After reset the unit is idle and its memories are zero.

    Model: :func:`lutra_golden.attention.attention.attend`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    cmd : ``In(stream.Signature(ATTEND_COMMAND))``  accepted with its last chunk.
    chunks : ``Out(ChunkReadPort(config))``
    q_w : ``In(QueryWritePort(config))``
    qs_w : ``In(QueryScaleWritePort(config))``
    rd_cmd, rd_data : DMA reader; the commands of a chunk are queued at once.
    out : ``In(AttentionReadPort(config))``
    done : ``Out(1)``  pulses once per command when the output memory is complete.
    saturated : ``Out(1)``  pulses, at the latest with ``done``, when a score or an output has left
        its range or would have had to be shifted to the left.
    busy : ``Out(1)``  a command is in the unit.
    stall : ``Out(1)``  a pair could be issued, but its beat has not come.
    """

    def __init__(self, config: AcceleratorConfig):
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")
        self.config, self._stages = config, AttentionTiming(config)
        super().__init__(
            {
                "cmd": In(stream.Signature(ATTEND_COMMAND)),
                "chunks": Out(ChunkReadPort(config)),
                "q_w": In(QueryWritePort(config)),
                "qs_w": In(QueryScaleWritePort(config)),
                "rd_cmd": Out(dma_command()),
                "rd_data": In(stream.Signature(unsigned(config.word_width))),
                "out": In(AttentionReadPort(config)),
                "done": Out(1),
                "saturated": Out(1),
                "busy": Out(1),
                "stall": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        heads = range(config.attention.q_per_kv)

        m.submodules.issuer = issuer = PairIssuer(config, self._stages.score)
        m.submodules.finish = finish = _Finish(config)
        n_stages = max(self._stages.score, self._stages.sum + 1)
        pair = delay(m, issuer.pair, n_stages, name="pair")
        m.d.comb += [
            issuer.rd_valid.eq(self.rd_data.valid),
            self.rd_data.ready.eq(issuer.rd_ready),
            issuer.finished.eq(finish.finished),
            self.stall.eq(issuer.stall),
        ]
        token_first = self._walk(m, issuer)
        wiring.connect(m, issuer.rd_cmd, wiring.flipped(self.rd_cmd))

        v_scale, key_scales = self._scales(m, issuer, pair, token_first)
        beat, queries = self._operands(m, issuer, pair, token_first)

        row, row_width = beat, 8 * self.config.kv_row_bytes
        multiplied = pair[self._stages.multiply]
        if issuer.rows > 1:
            rows = [beat[first:][:row_width] for first in range(0, len(beat), row_width)]
            row = Array(rows)[multiplied.position[: ceil_log2(issuer.rows)]]
        if self.config.attention.pair_cycles > 1:
            width = row_width // self.config.attention.pair_cycles
            parts = [row[first:][:width] for first in range(0, row_width, width)]
            row = Array(parts)[multiplied.part]
        score_w, score_r, max_w, max_old, max_r = self._score_memories(m, pair)
        den_w, den_old = self._denominators(m, pair, finish)
        shift = Signal(5)
        self._exponents(m, pair[self._stages.weigh], v_scale, finish, shift)

        banks, lost = [], []
        for head in heads:
            difference = Signal(EXP2.d_width, name=f"difference_{head}")
            m.d.sync += difference.eq(max_r.data[head] - score_r.data[head])
            power, weight = self._weight(m, head, difference, v_scale, shift)
            first = pair[self._stages.weigh].first
            m.d.comb += den_w.data[head].eq(Mux(first, 0, den_old.data[head]) + power)

            products = self._products(m, head, multiplied, weight, queries[head], row)
            score, score_lost = self._score_of(m, head, products, key_scales[head], pair)
            lost.append(score_lost)
            newer = pair[self._stages.score].first | (score > max_old.data[head])
            m.d.comb += [
                score_w.data[head].eq(score),
                max_w.data[head].eq(Mux(newer, score, max_old.data[head])),
            ]
            banks += self._accumulate(m, head, products, pair[self._stages.sum], finish)

        m.d.sync += self.saturated.eq((score_w.en & Cat(lost).any()) | finish.saturated)
        self._outputs(m, pair[self._stages.sum + 1], issuer, finish, token_first)
        m.d.comb += finish.acc.as_value().eq(
            Array(banks)[Cat(self._split_word(finish.acc_addr.word)[0], finish.acc_addr.head)]
        )
        return m

    def _split_word(self, word):
        """Place of a head's word in its part, and the part."""
        if self.config.attention.pair_cycles == 1:
            return word, Const(0, 0)
        bits = exact_log2(self.config.attention.part_dims // LANES)
        return word[:bits], word[bits:]

    def _walk(self, m, issuer):
        """Hand the chunks of a command to the issuer; return the first token of that under way."""
        m.submodules.walker = walker = ChunkWalker(self.config)
        wiring.connect(m, walker.table, wiring.flipped(self.chunks))
        chunk, p = walker.chunk, self.cmd.p
        token_first = Signal(range(self.config.pass_tokens))
        m.d.comb += [
            walker.n_tokens.eq(p.token_count),
            walker.step.eq(issuer.cmd.valid & issuer.cmd.ready),
            issuer.cmd.valid.eq(self.cmd.valid & walker.valid),
            issuer.cmd.p.kv_addr.eq(chunk.kv_base + p.kv_offset),
            issuer.cmd.p.position.eq(chunk.position),
            issuer.cmd.p.frac.eq(p.frac),
            issuer.cmd.p.token_count.eq(chunk.count),
            issuer.cmd.p.window.eq(p.window),
            self.cmd.ready.eq(issuer.cmd.ready & walker.valid & chunk.last),
            # with the last chunk the walker is back at the first
            self.busy.eq(issuer.busy | (chunk.first != 0)),
            self.done.eq(issuer.done & (chunk.first == 0)),
        ]
        with m.If(walker.step):
            m.d.sync += token_first.eq(chunk.first)
        return token_first

    def _score_memories(self, m, pair):
        """Ports of the scores and of their running maxima, all heads of a KV head in a word."""
        config, params = self.config, self.config.attention
        score_row = data.ArrayLayout(signed(params.score_width), params.q_per_kv)
        m.submodules.scores = scores = Memory(
            shape=score_row, depth=config.pass_tokens * config.max_context, init=[]
        )
        m.submodules.maxima = maxima = Memory(shape=score_row, depth=config.pass_tokens, init=[])
        score_w, score_r = scores.write_port(), scores.read_port()
        max_w, max_old = maxima.write_port(), maxima.read_port(domain="comb")
        max_r = maxima.read_port(domain="comb")
        scored = pair[self._stages.score]
        m.d.comb += [
            score_r.addr.eq(Cat(pair[0].position, pair[0].token)),
            score_r.en.eq(pair[0].valid & pair[0].values),
            max_r.addr.eq(pair[1].token),
            score_w.addr.eq(Cat(scored.position, scored.token)),
            score_w.en.eq(ends_pair(config, scored) & ~scored.values),
            max_old.addr.eq(scored.token),
            max_w.addr.eq(scored.token),
            max_w.en.eq(score_w.en),
        ]

        return score_w, score_r, max_w, max_old, max_r

    def _denominators(self, m, pair, finish):
        """Ports of the running sums of powers of two, by token; the end of a head reads them."""
        params = self.config.attention
        m.submodules.dens = dens = Memory(
            shape=data.ArrayLayout(params.den_width, params.q_per_kv),
            depth=self.config.pass_tokens,
            init=[],
        )
        den_w, den_old = dens.write_port(), dens.read_port(domain="comb")
        den_r = dens.read_port(domain="comb")
        weighed = pair[self._stages.weigh]
        m.d.comb += [
            den_old.addr.eq(weighed.token),
            den_w.addr.eq(weighed.token),
            den_w.en.eq(ends_pair(self.config, weighed) & weighed.values),
            den_r.addr.eq(finish.den_addr.token),
            finish.den.eq(den_r.data[finish.den_addr.head]),
        ]
        return den_w, den_old

    def _weight(self, m, head, difference, v_scale, shift):
        """``2 ** -difference``, and with the value's scale folded in: multiply, shift, round."""
        m.submodules[f"exp2_{head}"] = exp2 = Exp2Neg()
        scaled = Signal(EXP2.y_width + SCALE.m_width, name=f"weight_scaled_{head}")
        shifted = Signal(EXP2.y_width + 1, name=f"weight_shifted_{head}")
        weight = Signal(EXP2.y_width, name=f"weight_{head}")
        m.d.comb += exp2.d.eq(difference)
        m.d.sync += [
            scaled.eq(exp2.y * v_scale.m),
            shifted.eq((scaled >> (EXP2.y_frac - 1)) >> shift),
            weight.eq(round_half(shifted)),
        ]
        return exp2.y, weight

    def _products(self, m, head, multiplied, weight, query, row):
        """Products of a key and the query, or a value and its weight, by the same multipliers."""
        products, width = [], self.config.attention.key_width
        for dim in range(self.config.attention.part_dims):
            product = Signal(signed(16 + width), name=f"product_{head}_{dim}")
            operand = Mux(multiplied.values, weight, query[dim])
            with m.If(multiplied.valid):
                m.d.sync += product.eq(operand * row[width * dim :][:width].as_signed())
            products.append(product)
        return products

    def _outputs(self, m, last, issuer, finish, token_first):
        """The end of a head, and the memory that it writes."""
        m.submodules.outputs = outputs = Memory(
            shape=self.out.signature.payload_layout,
            depth=self.config.pass_tokens << len(self.out.addr.word),
            init=[],
        )
        out_w, out_r = outputs.write_port(), outputs.read_port()
        started, out_token = Signal.like(finish.group), Signal.like(token_first)
        m.d.comb += [
            finish.start.eq(last.valid & last.values & last.final),
            finish.group.eq(started),
            finish.token_last.eq(issuer.token_last),
            finish.frac.eq(issuer.frac),
            out_token.eq(token_first + finish.o.addr.token),
            out_w.en.eq(finish.o.en),
            out_w.addr.eq(Cat(finish.o.addr.word, out_token)),
            out_w.data.eq(finish.o.data),
            out_r.addr.eq(Cat(self.out.addr.word, self.out.addr.token)),
            self.out.data.eq(out_r.data),
        ]
        with m.If(finish.start):
            m.d.sync += started.eq(last.group)

    def _scales(self, m, issuer, pair, token_first):
        """Scales of key and value at stage ``weigh``, their products with the queries' at ``dot``.

        Returns the value's scale and, by head, the products.
        """
        config, n_kv, q_per_kv = self.config, self.config.n_kv_heads, self.config.attention.q_per_kv
        record = data.ArrayLayout(data.ArrayLayout(SCALE_LAYOUT, n_kv), 2)  # keys, values
        m.submodules.kv_scales = rows = Memory(
            shape=data.ArrayLayout(record, issuer.records), depth=issuer.scale_rows, init=[]
        )
        row_w, row_r = rows.write_port(), rows.read_port()
        row_bits = ceil_log2(issuer.records)
        picked = pair[self._stages.weigh - 1]
        m.d.comb += [
            row_w.en.eq(issuer.scale_en),
            row_w.addr.eq(issuer.scale_row),
            row_r.addr.eq(pair[self._stages.weigh - 2].position >> row_bits),
        ]
        for place in range(issuer.records):
            for index in range(2 * n_kv):
                start = 8 * config.kv_scale_bytes * place + 32 * index
                mantissa, exponent = packed_scale(self.rd_data.payload[start : start + 32])
                entry = row_w.data[place][index // n_kv][index % n_kv]
                m.d.comb += [entry.m.eq(mantissa), entry.e.eq(exponent)]
        k_scale, v_scale = (Signal(SCALE_LAYOUT, name=f"{kind}_scale") for kind in "kv")
        for kind, scale in enumerate((k_scale, v_scale)):
            entries = Array(
                row_r.data[place][kind][group].as_value()
                for place in range(issuer.records)
                for group in range(n_kv)
            )
            place = picked.position[:row_bits]
            m.d.sync += scale.as_value().eq(entries[place * n_kv + picked.group])

        # the queries' scales are read for the cycle in which the multipliers want them
        at = self._stages.dot - ScaleMul.latency
        k_scale = delay(m, k_scale, at - self._stages.weigh)[-1]
        m.submodules.q_scales = q_scales = Memory(
            shape=data.ArrayLayout(SCALE_LAYOUT, q_per_kv),
            depth=n_kv << len(self.qs_w.addr.token),
            init=[],
        )
        q_scale_w, q_scale_r = q_scales.write_port(granularity=1), q_scales.read_port()
        group, lane = self._split_head(m, self.qs_w.addr.head, "qs_w")
        token = Signal.like(token_first, name="q_scale_token")
        m.d.comb += [
            token.eq(token_first + pair[at - 1].token),
            q_scale_w.addr.eq(Cat(self.qs_w.addr.token, group)),
            q_scale_r.addr.eq(Cat(token, pair[at - 1].group)),
        ]
        products = []
        for head in range(q_per_kv):
            m.submodules[f"scale_mul_{head}"] = scale_mul = ScaleMul()
            m.d.comb += [
                q_scale_w.en[head].eq(self.qs_w.en & (lane == head)),
                q_scale_w.data[head].eq(self.qs_w.data),
                scale_mul.a.eq(q_scale_r.data[head]),
                scale_mul.b.eq(k_scale),
            ]
            products.append(scale_mul.o)
        return v_scale, products

    def _operands(self, m, issuer, pair, token_first):
        """The beat and, by head, the query at stage ``multiply``."""
        config, q_per_kv = self.config, self.config.attention.q_per_kv
        words = config.attention.part_dims // LANES
        m.submodules.beats = beats = Memory(
            shape=unsigned(config.word_width), depth=BEAT_SLOTS, init=[]
        )
        beat_w, beat_r = beats.write_port(), beats.read_port()
        m.submodules.queries = queries = Memory(
            shape=data.ArrayLayout(self.q_w.data.shape(), words * q_per_kv),
            depth=config.attention.pair_cycles * config.n_kv_heads << len(self.q_w.addr.token),
            init=[],
        )
        query_w, query_r = queries.write_port(granularity=1), queries.read_port()
        group, lane = self._split_head(m, self.q_w.addr.head, "q_w")
        at, (word_w, part_w) = pair[self._stages.multiply - 1], self._split_word(self.q_w.addr.word)
        parts_w, parts_r = ([part_w], [at.part]) if config.attention.pair_cycles > 1 else ([], [])
        token = Signal.like(token_first, name="query_token")
        m.d.comb += [
            token.eq(token_first + at.token),
            beat_w.en.eq(issuer.beat_en),
            beat_w.addr.eq(issuer.beat_slot),
            beat_w.data.eq(self.rd_data.payload),
            beat_r.en.eq(at.valid),
            beat_r.addr.eq(at.slot),
            issuer.release.eq(at.valid & at.last),
            query_w.addr.eq(Cat(*parts_w, self.q_w.addr.token, group)),
            query_r.en.eq(at.valid & ~at.values),
            query_r.addr.eq(Cat(*parts_r, token, at.group)),
        ]
        for index in range(words * q_per_kv):
            head, word = divmod(index, words)
            m.d.comb += [
                query_w.en[index].eq(self.q_w.en & (lane == head) & (word_w == word)),
                query_w.data[index].eq(self.q_w.data),
            ]
        by_head = [
            [query_r.data[head * words + word][i] for word in range(words) for i in range(LANES)]
            for head in range(q_per_kv)
        ]
        return beat_r.data, by_head

    def _split_head(self, m, head, name):
        """KV head of a query head, and its place among those that share it."""
        q_per_kv = self.config.attention.q_per_kv
        group = Signal(range(self.config.n_kv_heads), name=f"{name}_group")
        lane = Signal(range(q_per_kv), name=f"{name}_lane")
        places = [divmod(index, q_per_kv) for index in range(self.config.n_heads)]
        m.d.comb += [
            group.eq(Array(place[0] for place in places)[head]),
            lane.eq(Array(place[1] for place in places)[head]),
        ]
        return group, lane

    def _exponents(self, m, weighed, v_scale, finish, shift):
        """Largest exponent of a token's live value scales, kept while the next head's is found."""
        m.submodules.exponents = exponents = Memory(
            shape=signed(SCALE.e_width), depth=2 << len(weighed.token), init=[]
        )
        write, old = exponents.write_port(), exponents.read_port(domain="comb")
        largest = exponents.read_port(domain="comb")
        previous = Signal(signed(SCALE.e_width))
        larger = (v_scale.m != 0) & (v_scale.e > previous)
        distance = Signal(signed(SCALE.e_width + 1))
        m.d.comb += [
            old.addr.eq(Cat(weighed.token, weighed.group & 1)),
            previous.eq(Mux(weighed.first, SCALE.e_min, old.data)),
            write.addr.eq(old.addr),
            write.en.eq(weighed.valid & ~weighed.values),
            write.data.eq(Mux(larger, v_scale.e, previous)),
            largest.addr.eq(Cat(finish.acc_addr.token, finish.group & 1)),
            finish.e.eq(largest.data),
            distance.eq(old.data - v_scale.e),
        ]
        # only the scale of a zero lies above the largest exponent, and its weight is zero
        m.d.sync += shift.eq(clip_shift(distance, 31))

    def _score_of(self, m, head, products, scale, pair):
        """Score at stage ``score``: sum of the products, scaled, shifted, rounded, saturated.

        Also whether it has left its range, or would have had to be shifted to the left.
        """
        width = 8 + self.config.attention.key_width
        terms, stage = [product[:width].as_signed() for product in products], self._stages.sum
        while len(terms) > 1:
            sums = []
            for i in range(0, len(terms), TREE_RADIX):
                term = sum(terms[i : i + TREE_RADIX])
                sums.append(Signal(term.shape(), name=f"sum_{head}_{stage}_{i}"))
                with m.If(pair[stage].valid & ~pair[stage].values):
                    m.d.sync += sums[-1].eq(term)
            terms, stage = sums, stage + 1
        (dot,) = terms
        if self.config.attention.pair_cycles > 1:
            total = Signal(signed(self.config.attention.dot_width), name=f"dot_{head}")
            with m.If(pair[stage].valid & ~pair[stage].values):
                m.d.sync += total.eq(Mux(pair[stage].part == 0, 0, total) + dot)
            dot = total
        width = self.config.attention.dot_width + SCALE.m_width
        scaled = Signal(signed(width), name=f"score_scaled_{head}")
        shifted = Signal(signed(width + 1), name=f"score_shifted_{head}")
        score = Signal(signed(self.config.attention.score_width), name=f"score_{head}")
        shift = Signal(range(_SHIFT_MAX + 1), name=f"score_shift_{head}")
        left, lost = Signal(2, name=f"score_left_{head}"), Signal(name=f"score_lost_{head}")
        right, rounded = -(scale.e + self.config.attention.score_frac), round_half(shifted)
        m.d.sync += [
            scaled.eq(dot * scale.m),
            shift.eq(clip_shift(right, _SHIFT_MAX)),
            left.eq(Cat(right < 0, left[0])),
            shifted.eq(shift_guarded(scaled, shift)),
            score.eq(saturate(rounded, len(score))),
            lost.eq(leaves(rounded, len(score)) | (left[1] & shifted.any())),
        ]
        return score, lost

    def _accumulate(self, m, head, products, summed, finish):
        """Weighted sums of a head's dimensions by token, in banks of eight; returns what they read.

        The end of a head reads them while no pair of pass V is on its way.
        """
        banks = []
        row, parts = finish.acc.shape(), self.config.attention.pair_cycles
        depth, finished, now = self.config.pass_tokens, finish.acc_addr.token, summed.token
        if parts > 1:
            # a bank has the words of all parts, those of a token one behind the other
            depth *= parts
            finished = Cat(self._split_word(finish.acc_addr.word)[1], finished)
            now = Cat(summed.part, now)
        for first in range(0, len(products), LANES):
            name = f"acc_{head}_{first // LANES}"
            m.submodules[name] = bank = Memory(shape=row, depth=depth, init=[])
            write, read = bank.write_port(), bank.read_port(domain="comb")
            m.d.comb += [
                read.addr.eq(Mux(finish.busy, finished, now)),
                write.addr.eq(now),
                write.en.eq(summed.valid & summed.values),
            ]
            for lane in range(LANES):
                old = Mux(summed.first, 0, read.data[lane])
                m.d.comb += write.data[lane].eq(old + products[first + lane])
            banks.append(read.data.as_value())
        return banks

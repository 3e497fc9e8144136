"""Dequantisation of accumulators: into the residual stream, and into logits."""

from amaranth import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_golden.matmul.engine import LANES
from lutra_golden.vector.residual import LOGIT_SHIFT, LOGIT_WIDTH, RESIDUAL_WIDTH
from lutra_hw.arith.fixed import clip_shift, leaves, round_half, saturate, shift_guarded
from lutra_hw.arith.scale import ScaleMul
from lutra_hw.buffers import (
    ArgmaxReadPort,
    ParamReadPort,
    ResidualReadPort,
    ResidualWritePort,
    ScaleReadPort,
)
from lutra_hw.matmul.contract import acc_read_port
from lutra_hw.pipeline import delay
from lutra_hw.ports import (
    SCALE_LAYOUT,
    dma_command,
    dma_write_data,
)

__all__ = ["LOGITS_COMMAND", "RESIDUAL_COMMAND", "Logits", "ResidualAdd"]

RESIDUAL_COMMAND = data.StructLayout(
    {
        "scale_w": SCALE_LAYOUT,
        "n_words": unsigned(16),
        "frac": unsigned(8),
        "token_count": unsigned(8),
    }
)
"""Words of eight elements, of tokens ``0..token_count - 1``."""

_SHIFT_MAX = 63


class ResidualAdd(wiring.Component):
    """Adds dequantised accumulators to the residual stream: ``saturate32(x + round(acc * c))``.

    ``c`` is the token's activation scale times the weight scale, rounded once, in ``frac`` fraction
    bits. A command takes :func:`residual_cycles` from acceptance to ``done``; throughput is one
    word of eight elements per cycle. There is no backpressure. ``done`` pulses with the last write,
    ``saturated`` with every write of which a lane was clamped, or would have had to be shifted to
    the left.

    Model: :func:`lutra_golden.vector.residual.residual_add`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    cmd : ``In(stream.Signature(RESIDUAL_COMMAND))``  ``n_words`` is not zero.
    acc : ``Out(acc_read_port(config.matmul))``  natural order of rows, from block 0 on.
    scale_r : ``Out(ScaleReadPort(config))``
    residual : ``Out(ResidualReadPort(config))``
    residual_w : ``Out(ResidualWritePort(config))``
    saturated, done, busy : ``Out(1)``
    """

    def __init__(self, config: AcceleratorConfig):
        _check(config)
        self.config = config
        super().__init__(
            {
                "cmd": In(stream.Signature(RESIDUAL_COMMAND)),
                "acc": Out(acc_read_port(config.matmul)),
                "scale_r": Out(ScaleReadPort(config)),
                "residual": Out(ResidualReadPort(config)),
                "residual_w": Out(ResidualWritePort(config)),
                "saturated": Out(1),
                "done": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.scale_mul = scale_mul = ScaleMul()

        # what is known of a word when it is read: it travels with it
        word = Signal(
            data.StructLayout(
                {"valid": 1, "odd": 1, "final": 1, "addr": self.residual.addr.shape()}
            )
        )
        word_1, _, word_3, _, _, word_6 = delay(m, word, 6)[1:]
        m.d.comb += [
            self.acc.addr.token.eq(word.addr.token),
            self.acc.addr.pair.eq(word.addr.word >> 1),
            # needed two cycles after the accumulators
            self.residual.addr.eq(word_3.addr),
            self.residual_w.addr.eq(word_6.addr),
            self.residual_w.en.eq(word_6.valid),
        ]

        # the token's factor: 4 cycles from the address of its scale, 2 from its first word's
        frac, scale_w = Signal(8), Signal(SCALE_LAYOUT)
        factor, shift = Signal(unsigned(16)), Signal(range(_SHIFT_MAX + 1))
        right = Signal(signed(12))
        m.d.comb += [
            scale_mul.a.eq(self.scale_r.data),
            scale_mul.b.eq(scale_w),
            right.eq(-(scale_mul.o.e + frac)),
        ]
        m.d.sync += [
            factor.eq(scale_mul.o.m),
            shift.eq(clip_shift(right, _SHIFT_MAX)),
        ]
        # the product is a cycle behind the factor
        shift_3, left, left_3 = Signal.like(shift), Signal(), Signal()
        m.d.sync += [shift_3.eq(shift), left.eq(right < 0), left_3.eq(left)]
        left_4 = delay(m, left_3, 1)[-1]

        clamped = Signal(LANES)
        m.d.comb += self.saturated.eq(word_6.valid & clamped.any())
        for lane in range(LANES):
            block = Mux(word_1.odd, self.acc.data[1][lane], self.acc.data[0][lane])
            operand = Signal(signed(config.matmul.acc_width), name=f"operand_{lane}")
            product = Signal(signed(config.matmul.acc_width + 16), name=f"product_{lane}")
            guarded = Signal(signed(len(product) + 1), name=f"guarded_{lane}")
            total = Signal(signed(max(len(product), RESIDUAL_WIDTH) + 2), name=f"total_{lane}")
            lost_5 = Signal(name=f"lost_{lane}")
            m.d.sync += [
                operand.eq(block),
                product.eq(operand * factor),
                guarded.eq(shift_guarded(product, shift_3)),
                # round half up and add with one carry
                total.eq(
                    Cat(1, guarded[1:]).as_signed()
                    + Cat(guarded[0], self.residual.data[lane]).as_signed()
                ),
                lost_5.eq(left_4 & guarded.any()),
                self.residual_w.data[lane].eq(saturate(total >> 1, RESIDUAL_WIDTH)),
                clamped[lane].eq(leaves(total >> 1, RESIDUAL_WIDTH) | lost_5),
            ]

        n_words, tokens_left = Signal(16), Signal(8)
        token, next_word = Signal(8), Signal(16)
        last_word = next_word == n_words - 1
        m.d.comb += [
            self.scale_r.addr.token.eq(token),
            word.odd.eq(next_word[0]),
            word.final.eq(last_word & (tokens_left == 1)),
            word.addr.token.eq(token),
            word.addr.word.eq(next_word),
        ]
        with m.FSM() as control:
            with m.State("Idle"):
                m.d.comb += self.cmd.ready.eq(1)
                m.d.sync += [
                    scale_w.eq(self.cmd.p.scale_w),
                    frac.eq(self.cmd.p.frac),
                    n_words.eq(self.cmd.p.n_words),
                    tokens_left.eq(self.cmd.p.token_count),
                    token.eq(0),
                ]
                with m.If(self.cmd.valid):
                    m.next = "Scale"
            with m.State("Scale"):
                m.d.sync += next_word.eq(0)
                with m.If(tokens_left == 0):
                    m.d.comb += self.done.eq(1)
                    m.next = "Idle"
                with m.Else():
                    m.next = "Factor"
            with m.State("Factor"):
                m.next = "Words"
            with m.State("Words"):
                m.d.comb += word.valid.eq(1)
                m.d.sync += next_word.eq(next_word + 1)
                with m.If(last_word):
                    m.d.sync += [token.eq(token + 1), tokens_left.eq(tokens_left - 1)]
                    m.next = "Scale"
                    with m.If(word.final):
                        m.next = "Drain"
            with m.State("Drain"):
                with m.If(word_6.valid & word_6.final):
                    m.d.comb += self.done.eq(1)
                    m.next = "Idle"
        m.d.comb += self.busy.eq(~control.ongoing("Idle"))
        return m


LOGITS_COMMAND = data.StructLayout(
    {
        "row_first": unsigned(32),
        "n_words": unsigned(16),
        "param_word": unsigned(16),
        "acc_base": unsigned(16),
        "first": unsigned(1),
        "stream": unsigned(1),
        "token_first": unsigned(8),
        "token_count": unsigned(8),
        "addr": unsigned(ADDRESS_WIDTH),
        "stride": unsigned(32),
    }
)
"""A run of rows of the head for a range of tokens; ``addr`` is the address of row 0 of token 0.

With ``stream`` set it is a run of elements of the residual stream, from word ``acc_base`` on.
"""

_QUEUE_BEATS = 8


class Logits(wiring.Component):
    """Logits of a run of vocabulary rows to memory, and each token's arg-max over the runs.

    ``round(acc * row_scale / 2**7)`` of ``8 * n_words`` rows from ``row_first`` on, for tokens
    ``token_first`` to ``token_first + token_count - 1``, as little-endian int32 at ``addr +
    token * stride + 4 * row_first``: one DMA command per token. What int32 does not hold is
    clamped. With ``stream`` set elements of the residual stream go there as they are.

    ``argmax`` of a token is the first row of its largest logit over all commands since
    the last with ``first`` set; before that it is undefined. Reset does not change it.

    A command takes :func:`logits_cycles` from acceptance to ``done`` if the DMA streams never wait;
    throughput is 8 rows per cycle. While they wait, up to 8 beats are kept, then no more words
    are read; ``stall`` is high. ``done`` pulses after the last beat has been handed over.

    Model: :func:`lutra_golden.vector.residual.logits`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    cmd : ``In(stream.Signature(LOGITS_COMMAND))``
        Whole beats: ``n_words`` (not zero) and ``row_first / 8`` are multiples of the words of a
        beat, ``addr`` and ``stride`` of its bytes.
    acc : ``Out(acc_read_port(config.matmul))``  natural order of rows, from ``acc_base`` on.
    param : ``Out(ParamReadPort(config))``  row scales.
    residual : ``Out(ResidualReadPort(config))``
    o_cmd, o_data : ``Out(dma_command())``, ``Out(dma_write_data(word_width))``
    argmax : ``In(ArgmaxReadPort(config))``
    done, busy, stall : ``Out(1)``
    """

    def __init__(self, config: AcceleratorConfig):
        _check(config)
        word_bits = LANES * LOGIT_WIDTH
        self.config = config
        self._words_per_beat = config.word_width // word_bits
        super().__init__(
            {
                "cmd": In(stream.Signature(LOGITS_COMMAND)),
                "acc": Out(acc_read_port(config.matmul)),
                "param": Out(ParamReadPort(config)),
                "residual": Out(ResidualReadPort(config)),
                "o_cmd": Out(dma_command()),
                "o_data": Out(dma_write_data(config.word_width)),
                "argmax": In(ArgmaxReadPort(config)),
                "done": Out(1),
                "busy": Out(1),
                "stall": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, lanes, words_per_beat = self.config, LANES, self._words_per_beat
        m.submodules.beats = beats = SyncFIFOBuffered(width=config.word_width, depth=_QUEUE_BEATS)

        # what is known of a word when it is read: it travels with it
        word = Signal(
            data.StructLayout(
                {
                    "valid": 1,
                    "odd": 1,  # the pair's second block
                    "send": 1,  # completes a beat
                    "first": 1,  # of its token
                    "last": 1,
                    "token": range(config.pass_tokens),
                    "block": self.residual.addr.word.shape(),
                }
            )
        )
        word_1, word_2, _, word_4, _, word_6 = delay(m, word, 6)[1:]

        # cycles 1 to 3: operands, product, rounded logit
        operand = Signal(data.ArrayLayout(signed(config.matmul.acc_width), lanes))
        row_scale = Signal(data.ArrayLayout(signed(16), lanes))
        m.d.sync += operand.eq(Mux(word_1.odd, self.acc.data[1], self.acc.data[0]))
        m.d.sync += row_scale.eq(self.param.data)
        # elements of the residual stream take the place of rounded logits
        stream = Signal()
        m.d.comb += [
            self.residual.addr.token.eq(word_2.token),
            self.residual.addr.word.eq(word_2.block),
        ]
        logits = [Signal(signed(LOGIT_WIDTH), name=f"logit_{lane}") for lane in range(lanes)]
        for lane, logit in enumerate(logits):
            product = Signal(signed(config.matmul.acc_width + 16), name=f"product_{lane}")
            m.d.sync += product.eq(operand[lane] * row_scale[lane])
            rounded = round_half(product[LOGIT_SHIFT - 1 :].as_signed())
            rounded = saturate(rounded, LOGIT_WIDTH)
            m.d.sync += logit.eq(Mux(stream, self.residual.data[lane], rounded))

        # cycle 4: into the queue, the words of a beat from the right
        earlier = [Signal(len(Cat(logits)), name=f"earlier_{i}") for i in range(words_per_beat - 1)]
        with m.If(word_4.valid):
            for older, newer in zip(earlier, [*earlier[1:], Cat(logits)], strict=False):
                m.d.sync += older.eq(newer)
        m.d.comb += [
            beats.w_data.eq(Cat(*earlier, *logits)),
            beats.w_en.eq(word_4.valid & word_4.send),
            self.o_data.valid.eq(beats.r_rdy),
            self.o_data.p.data.eq(beats.r_data),
            self.o_data.p.strb.eq(-1),
            beats.r_en.eq(self.o_data.ready),
        ]
        first, row_first = Signal(), Signal(32)
        self._find_largest(m, logits, word_6, first, row_first)

        self._control(m, word, beats, first, stream, row_first)
        return m

    def _control(self, m, word, beats, first, stream, row_first):
        """Read the words of each token in order, as long as the queue has room for their beats."""
        words_per_beat = self._words_per_beat
        n_words, left = Signal(16), Signal(16)
        param_word, param_first = Signal(16), Signal(16)
        block, block_first = Signal(16), Signal(16)
        token, skip, tokens_left = Signal(8), Signal(8), Signal(8)
        token_addr, stride = Signal(ADDRESS_WIDTH), Signal(32)
        in_flight = Signal(range(_QUEUE_BEATS + 1))
        beat_word = Signal(range(max(words_per_beat, 2)))
        take, give, finished = Signal(), Signal(), Signal()
        last = left == 1
        m.d.comb += [
            self.acc.addr.token.eq(token),
            self.acc.addr.pair.eq(block >> 1),
            self.param.addr.word.eq(param_word),
            word.odd.eq(block[0]),
            word.send.eq(beat_word == words_per_beat - 1),
            word.last.eq(last),
            word.token.eq(token),
            word.block.eq(block),
            take.eq(word.valid & (beat_word == 0)),
            give.eq(beats.r_rdy & beats.r_en),
        ]
        m.d.sync += in_flight.eq(in_flight + take - give)
        with m.If(self.o_cmd.ready):
            m.d.sync += self.o_cmd.valid.eq(0)

        with m.FSM() as control:
            with m.State("Idle"):
                m.d.comb += self.cmd.ready.eq(1)
                m.d.sync += [
                    row_first.eq(self.cmd.p.row_first),
                    n_words.eq(self.cmd.p.n_words),
                    param_first.eq(self.cmd.p.param_word),
                    block_first.eq(self.cmd.p.acc_base),
                    first.eq(self.cmd.p.first),
                    stream.eq(self.cmd.p.stream),
                    tokens_left.eq(self.cmd.p.token_count),
                    skip.eq(self.cmd.p.token_first),
                    token.eq(0),
                    token_addr.eq(self.cmd.p.addr + (self.cmd.p.row_first << 2)),
                    stride.eq(self.cmd.p.stride),
                ]
                with m.If(self.cmd.valid):
                    m.next = "Skip"
            with m.State("Skip"):
                with m.If((skip == 0) | (tokens_left == 0)):
                    m.next = "Token"
                with m.Else():
                    m.d.sync += [
                        skip.eq(skip - 1),
                        token.eq(token + 1),
                        token_addr.eq(token_addr + stride),
                    ]
            with m.State("Token"):
                m.d.sync += [
                    left.eq(n_words),
                    param_word.eq(param_first),
                    block.eq(block_first),
                    beat_word.eq(0),
                ]
                with m.If(tokens_left == 0):
                    m.next = "Drain"
                with m.Elif(~self.o_cmd.valid):
                    m.d.sync += [
                        self.o_cmd.p.addr.eq(token_addr),
                        self.o_cmd.p.beats.eq(n_words // words_per_beat),
                        self.o_cmd.valid.eq(1),
                    ]
                    m.next = "Words"
            with m.State("Words"):
                m.d.comb += [
                    word.valid.eq((beat_word != 0) | (in_flight != _QUEUE_BEATS)),
                    word.first.eq(left == n_words),
                ]
                with m.If(word.valid):
                    m.d.sync += [
                        left.eq(left - 1),
                        param_word.eq(param_word + 1),
                        block.eq(block + 1),
                        beat_word.eq(Mux(word.send, 0, beat_word + 1)),
                    ]
                    with m.If(last):
                        m.d.sync += [
                            token.eq(token + 1),
                            tokens_left.eq(tokens_left - 1),
                            token_addr.eq(token_addr + stride),
                        ]
                        m.next = "Token"
            with m.State("Drain"):
                m.d.comb += finished.eq((in_flight == 0) & ~self.o_cmd.valid)
                with m.If(finished):
                    m.next = "Idle"
        m.d.comb += [
            self.done.eq(finished),
            self.busy.eq(~control.ongoing("Idle")),
            self.stall.eq(
                (self.o_cmd.valid & ~self.o_cmd.ready) | (self.o_data.valid & ~self.o_data.ready)
            ),
        ]

    def _find_largest(self, m, logits, word_6, first, row_first):
        """Cycles 4 and 5: the word's largest logit; cycle 6: against the token's."""
        best = [(logit, 0) for logit in logits]
        for level in range(3):
            domain = m.d.comb if level == 0 else m.d.sync
            merged = []
            for i in range(0, len(best), 2):
                (a, a_lane), (b, b_lane) = best[i : i + 2]
                value = Signal(signed(LOGIT_WIDTH), name=f"largest_{level}_{i // 2}")
                lane = Signal(level + 1, name=f"lane_{level}_{i // 2}")
                # the first lane wins a tie
                larger = Signal(name=f"larger_{level}_{i // 2}")
                m.d.comb += larger.eq(b > a)
                domain += value.eq(Mux(larger, b, a))
                domain += lane.eq(Mux(larger, b_lane | (1 << level), a_lane))
                merged.append((value, lane))
            best = merged
        ((value_6, lane_6),) = best

        row = Signal(32)
        row_6 = Signal(32)
        m.d.comb += row_6.eq(Mux(word_6.first, row_first, row))
        with m.If(word_6.valid):
            m.d.sync += row.eq(row_6 + LANES)

        tables = [
            Memory(shape=shape, depth=self.config.pass_tokens, init=[])
            for shape in (signed(LOGIT_WIDTH), self.argmax.data.shape())
        ]
        m.submodules.values, m.submodules.rows = values, rows = tables
        known, found = values.read_port(domain="comb"), rows.read_port()
        restart = word_6.first & first
        better = restart | (value_6 > known.data)
        m.d.comb += [
            known.addr.eq(word_6.token),
            found.addr.eq(self.argmax.addr.token),
            self.argmax.data.eq(found.data),
        ]
        for table, new in ((values, value_6), (rows, row_6 | lane_6)):
            write = table.write_port()
            m.d.comb += [
                write.addr.eq(word_6.token),
                write.data.eq(new),
                write.en.eq(word_6.valid & better),
            ]


def _check(config):
    if not isinstance(config, AcceleratorConfig):
        raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")

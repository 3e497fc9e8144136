"""Heads in fixed point, before rotation: biases of the projections, and the norm of every head."""

from amaranth import Cat, Module, Mux, Shape, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.arith.scale import SCALE
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.matmul.engine import LANES
from lutra_golden.vector.heads import (
    FIXED_FRAC,
    FIXED_SHIFTS,
    FIXED_WIDTH,
    NORM_SHIFT,
    NORM_WIDTH,
    SQUARES_WIDTH,
)
from lutra_hw.arith.fixed import clip_shift, leaves, round_shift, saturate, shift_guarded
from lutra_hw.arith.scale import ScaleMul
from lutra_hw.buffers import ParamReadPort, ScaleReadPort
from lutra_hw.matmul.contract import acc_read_port
from lutra_hw.pipeline import delay
from lutra_hw.ports import SCALE_LAYOUT, WritePortSignature

__all__ = ["FixedHeads", "head_word_layout", "slot_layout"]

_PARAM_WIDTH = 16
_ALIGNED = signed(_PARAM_WIDTH + FIXED_FRAC)  # a parameter in Q16


def slot_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Control bits that are known when a pair of blocks is read and travel with it."""
    return data.StructLayout(
        {
            "valid": 1,
            "second": 1,  # quantise; else find the maximum
            "record": 1,  # no pair, but the token's scales
            "token": range(config.pass_tokens),
            "head": range(config.n_heads + 2 * config.n_kv_heads),
            "pair": range(config.head_dim // (2 * LANES)),
        }
    )


def head_word_layout(config: AcceleratorConfig) -> data.StructLayout:
    """One block of a pair, the low or the high one."""
    return data.StructLayout({"high": 1, "slot": slot_layout(config)})


class FixedHeads(wiring.Component):
    """Accumulators times their scale in Q16, plus bias, times gamma, one block after the other.

    ``y`` of a word follows it by :attr:`latency` cycles, 10 with ``qk_norm`` in the configuration
    and 8 without. Throughput is one word of eight elements per cycle, but with both ``bias`` and
    ``qk_norm`` or ``centre`` set one in every other cycle, because both are read through one port:
    valid words are then an even number of cycles apart. There is no backpressure. The sum of a
    head's squares is written when the head's last word has passed; words of a head come in order,
    those of the second pass do not count.

    Model: :func:`lutra_golden.vector.heads.fixed_heads`, ``head_norm``.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`
        With ``qkv_bias``, ``qk_norm`` or both; without one of them its members are not there.

    Members
    -------
    scale_q, scale_k, scale_v : ``In(SCALE_LAYOUT)``  weight scales.
    param_word : ``In(16)``  first word of biases and gammas.
    bias, bias_frac : ``In(1)``, ``In(8)``  whether there are biases, and their fraction bits.
    centre : ``In(1)``  whether centres of keys follow the biases; not with ``qk_norm``.
    qk_norm : ``In(1)``  whether queries and keys are multiplied by gamma.
    i : ``In(head_word_layout(config))``
    scale_r : ``Out(ScaleReadPort(config))``
    acc : ``Out(acc_read_port(config.matmul))``
    param : ``Out(ParamReadPort(config))``
    o : ``Out(head_word_layout(config))``  the word whose elements are in ``y`` in the next cycle.
    y : ``Out(ArrayLayout(signed(y_width), 8))``
    away : ``Out(ArrayLayout(signed(32), 8))``  the centre of a key's elements in Q16, beside them;
        zeros beside others. There with ``qkv_bias``, like ``bias``, ``bias_frac`` and ``centre``.
    saturated : ``Out(1)``  a word passes of which an element, bias and all, left 28 bits.
    squares : ``Out(WritePortSignature({head, odd}, unsigned(63)))``  sums of squares, at head and
        the token's last bit.
    """

    def __init__(self, config: AcceleratorConfig):
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")
        if not (config.vector.qkv_bias or config.vector.qk_norm):
            raise ValueError(f"config must have qkv_bias or qk_norm, unlike {config.name!r}")
        self.config = config
        n_heads = config.n_heads + 2 * config.n_kv_heads
        members = {
            "scale_q": In(SCALE_LAYOUT),
            "scale_k": In(SCALE_LAYOUT),
            "scale_v": In(SCALE_LAYOUT),
            "param_word": In(16),
            "i": In(head_word_layout(config)),
            "scale_r": Out(ScaleReadPort(config)),
            "acc": Out(acc_read_port(config.matmul)),
            "param": Out(ParamReadPort(config)),
            "o": Out(head_word_layout(config)),
            "y": Out(data.ArrayLayout(signed(self.y_width), LANES)),
            "saturated": Out(1),
        }
        if config.vector.qkv_bias:
            members |= {
                "bias": In(1),
                "bias_frac": In(8),
                "centre": In(1),
                "away": Out(data.ArrayLayout(_ALIGNED, LANES)),
            }
        if config.vector.qk_norm:
            entry = {"head": range(n_heads), "odd": 1}
            squares = WritePortSignature(entry, unsigned(SQUARES_WIDTH))
            members |= {"qk_norm": In(1), "squares": Out(squares)}
        super().__init__(members)

    @property
    def y_width(self) -> int:
        """Width of an element."""
        return NORM_WIDTH if self.config.vector.qk_norm else FIXED_WIDTH

    @property
    def latency(self) -> int:
        """Cycles from a word to its elements."""
        return 10 if self.config.vector.qk_norm else 8

    def elaborate(self, platform):
        m = Module()
        config = self.config
        words = delay(m, self.i, 10)
        m.d.comb += self.o.eq(words[self.latency - 1])
        bias, gamma = self._read_params(m, words)

        # cycles 1 to 3: the scale of the accumulators, a cycle before they are there
        m.submodules.scale_mul = mul = ScaleMul()
        head = words[1].slot.head
        is_query, is_key = head < config.n_heads, head < config.n_heads + config.n_kv_heads
        low, high = FIXED_SHIFTS
        factor, shift = Signal(SCALE.m_width), Signal(range(high - low + 1))
        right, shift_5 = Signal(signed(SCALE.e_width + 2)), Signal.like(shift)
        m.d.comb += [
            self.scale_r.addr.token.eq(words[0].slot.token),
            mul.a.eq(self.scale_r.data),
            mul.b.eq(Mux(is_query, self.scale_q, Mux(is_key, self.scale_k, self.scale_v))),
            self.acc.addr.token.eq(words[2].slot.token),
            self.acc.addr.pair.eq(Cat(words[2].slot.pair, words[2].slot.head)),
            # from its lowest value on
            right.eq(-(mul.o.e + FIXED_FRAC + low)),
        ]
        m.d.sync += [
            factor.eq(mul.o.m),
            shift.eq(clip_shift(right, high - low)),
            shift_5.eq(shift),
        ]

        # cycles 3 to 7: scaled, shifted, rounded and added with one carry, saturated
        v = [Signal(signed(FIXED_WIDTH), name=f"v_{lane}") for lane in range(LANES)]
        lost, passing = Signal(LANES), words[8].slot
        m.d.comb += self.saturated.eq(passing.valid & ~passing.record & lost.any())
        for lane, element in enumerate(v):
            acc = Mux(words[3].high, self.acc.data[1][lane], self.acc.data[0][lane])
            operand = Signal(signed(config.matmul.acc_width), name=f"operand_{lane}")
            product = Signal(
                signed(config.matmul.acc_width + SCALE.m_width), name=f"product_{lane}"
            )
            wide = Signal(signed(len(product) - low), name=f"wide_{lane}")
            guarded = Signal(signed(len(wide) + 1), name=f"guarded_{lane}")
            total = Signal(signed(len(wide) + 2), name=f"total_{lane}")
            m.d.comb += wide.eq(product << -low)
            m.d.sync += [
                operand.eq(acc),
                product.eq(operand * factor),
                guarded.eq(shift_guarded(wide, shift_5)),
                total.eq(Cat(1, guarded[1:]).as_signed() + Cat(guarded[0], bias[lane]).as_signed()),
                element.eq(saturate(total >> 1, FIXED_WIDTH)),
                lost[lane].eq(leaves(total >> 1, FIXED_WIDTH)),
            ]

        if not config.vector.qk_norm:
            m.d.comb += Cat(self.y).eq(Cat(v))
            return m
        # cycles 8 and 9: times gamma, or as it is
        is_normed = self.qk_norm & (words[9].slot.head < config.n_heads + config.n_kv_heads)
        for lane, element in enumerate(v):
            product = Signal(signed(FIXED_WIDTH + _PARAM_WIDTH), name=f"normed_{lane}")
            plain = Signal(signed(FIXED_WIDTH), name=f"plain_{lane}")
            m.d.sync += [
                product.eq(element * gamma[lane]),
                plain.eq(element),
                self.y[lane].eq(Mux(is_normed, round_shift(product, NORM_SHIFT), plain)),
            ]
        self._sum_squares(m, words, v)
        return m

    def _read_params(self, m, words):
        """Biases of the word in cycle 6, aligned, and gammas of that in cycle 8.

        Their addresses are three cycles apart, so with words in every other cycle they do not
        meet.
        """
        config, address = self.config, Shape.cast(self.param.addr.word.shape())
        head_words = config.head_dim // LANES
        bias_word, gamma_word = Signal(address), Signal(address)
        aligned = [Signal(_ALIGNED, name=f"bias_{lane}") for lane in range(LANES)]
        gamma_first = self.param_word
        if config.vector.qkv_bias:
            at, shift = words[3].slot, Signal(range(FIXED_FRAC + 1))
            n_words = (config.n_heads + 2 * config.n_kv_heads) * head_words
            m.d.sync += [
                bias_word.eq(self.param_word + Cat(words[3].high, at.pair, at.head)),
                shift.eq(FIXED_FRAC - self.bias_frac),
            ]
            for lane, bias in enumerate(aligned):
                m.d.sync += bias.eq(Mux(self.bias, self.param.data[lane] << shift, 0))
            gamma_first = gamma_first + Mux(self.bias, n_words, 0)
            m.d.comb += self.param.addr.word.eq(bias_word)
            self._read_centre(m, words, shift)
        if config.vector.qk_norm:
            at, is_key = words[6].slot, words[6].slot.head >= config.n_heads
            of_head = Cat(words[6].high, at.pair)
            m.d.sync += gamma_word.eq(gamma_first + Mux(is_key, head_words, 0) + of_head)
            with m.If(self.qk_norm & words[7].slot.valid):
                m.d.comb += self.param.addr.word.eq(gamma_word)
        return aligned, self.param.data

    def _read_centre(self, m, words, shift):
        """Centres of the word in cycle 8, when gammas come, aligned and in time with ``y``."""
        config = self.config
        at, key = words[6].slot, words[8].slot.head - config.n_heads
        head_words = config.head_dim // LANES
        # the centre of a key follows its biases by all keys and values
        skipped = 2 * config.n_kv_heads * head_words
        word = Signal(Shape.cast(self.param.addr.word.shape()), name="centre_word")
        m.d.sync += word.eq(self.param_word + skipped + Cat(words[6].high, at.pair, at.head))
        with m.If(self.centre & words[7].slot.valid):
            m.d.comb += self.param.addr.word.eq(word)
        read = self.centre & words[8].slot.valid & (key >= 0) & (key < config.n_kv_heads)
        found = Signal(self.away.shape())
        for lane in range(LANES):
            m.d.comb += found[lane].eq(Mux(read, self.param.data[lane] << shift, 0))
        m.d.comb += self.away.eq(delay(m, found, self.latency - 8)[-1])

    def _sum_squares(self, m, words, v):
        """Cycle 8: squares; cycle 9: of four elements; cycle 10: the head's."""
        width = 2 * FIXED_WIDTH - 1
        squares = [Signal(width, name=f"square_{lane}") for lane in range(len(v))]
        sums = [Signal(width + 2, name=f"of_four_{i}") for i in range(2)]
        total, so_far = Signal(SQUARES_WIDTH), Signal(SQUARES_WIDTH)
        for square, x in zip(squares, v, strict=True):
            m.d.sync += square.eq((x * x).as_unsigned())
        for of_four, (a, b, c, d) in zip(sums, (squares[:4], squares[4:]), strict=True):
            m.d.sync += of_four.eq((a + b) + (c + d))
        at = words[10].slot
        first_word = (at.pair == 0) & ~words[10].high
        measured = at.valid & ~at.second
        last_pair = at.pair == self.config.head_dim // (2 * LANES) - 1
        m.d.comb += [
            total.eq(Mux(first_word, 0, so_far) + sums[0] + sums[1]),
            self.squares.en.eq(measured & last_pair & words[10].high),
            self.squares.addr.eq(Cat(at.head, at.token[0])),
            self.squares.data.eq(total),
        ]
        with m.If(measured):
            m.d.sync += so_far.eq(total)

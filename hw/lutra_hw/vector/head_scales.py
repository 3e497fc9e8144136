"""Factors and scales of heads from their largest magnitudes, in the golden model's order."""

from amaranth import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.arith.quantize import Q_MAX, q_max_of
from lutra_golden.arith.scale import scale_from_int, scale_recip
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.vector.heads import EPS_FRAC, FIXED_FRAC, FIXED_UNIT, NORM_SHIFT, SQUARES_WIDTH
from lutra_golden.vector.rope import ROPE_FRAC
from lutra_hw.arith.scale import ScaleMul, ScaleOp, ScaleUnit
from lutra_hw.buffers import HeadScaleWritePort, ScaleReadPort
from lutra_hw.pipeline import delay
from lutra_hw.ports import SCALE_LAYOUT, ReadPortSignature, WritePortSignature, scale_constant

__all__ = ["HeadScales"]


class _Product(enum.Enum, shape=unsigned(3)):
    """Products of the scale multiplier, in this order for every head."""

    NONE = 0
    UNIT = 1  # activation scale x weight scale
    STEP = 2  # maximum / q_max
    SCALE = 3  # both: the head's scale
    FACTOR = 4  # q_max / maximum


class HeadScales(wiring.Component):
    """Factor and scale of every head of a tile from its largest magnitude, in order.

    ``q_max`` is 127, or that of ``key_width`` bits for keys and values.
    Takes 11 cycles per head, 23 with a norm: the result of one operation is the operand of the
    next. A factor can be read from the cycle after ``factored`` on, a scale is offered for one
    cycle. With ``fixed`` a head's elements are worth 2**-16, or with ``qk_norm`` those of queries
    and keys what the root of their squares says, and ``scale_r`` is not used.

    Model: :func:`lutra_golden.vector.rope.rope_quantize`, ``rope_quantize_fixed``.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`
    y_width : int
        Width of a magnitude.

    Members
    -------
    start : ``In(1)``  the next maximum is that of the first head of token 0
    scale_q, scale_k, scale_v : ``In(SCALE_LAYOUT)``
    hold : ``In(1)``  begins no head of keys or values
    maximum : ``In(...)``  write port for maxima, at head and the token's last bit
    scale_r : ``Out(ScaleReadPort(config))``
    factor : ``In(ReadPortSignature(...))``  factors, at head and the token's last bit
    factored : ``Out(1)``  the next factor is written
    scale : ``Out(HeadScaleWritePort(config))``
    fixed : ``In(1)``  only of configurations with ``qkv_bias`` or ``qk_norm``.
    qk_norm, gamma_frac, eps : ``In``  only with ``qk_norm`` in the configuration, like
    squares : ``In(...)``  write port for sums of squares, at head and the token's last bit, each
        before its head's maximum.
    """

    def __init__(self, config: AcceleratorConfig, y_width: int):
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(f"config must be an AcceleratorConfig, not {config!r}")
        self.config, self.y_width = config, y_width
        self.n_heads = config.n_heads + 2 * config.n_kv_heads
        entry = {"head": range(self.n_heads), "odd": 1}
        members = {}
        if config.vector.qkv_bias or config.vector.qk_norm:
            members |= {"fixed": In(1)}
        if config.vector.qk_norm:
            squares = WritePortSignature(entry, unsigned(SQUARES_WIDTH))
            members |= {
                "qk_norm": In(1),
                "gamma_frac": In(8),
                "eps": In(16),
                "squares": In(squares),
            }
        super().__init__(
            {
                "start": In(1),
                "scale_q": In(SCALE_LAYOUT),
                "scale_k": In(SCALE_LAYOUT),
                "scale_v": In(SCALE_LAYOUT),
                "hold": In(1),
                "maximum": In(WritePortSignature(entry, unsigned(y_width))),
                "scale_r": Out(ScaleReadPort(config)),
                "factor": In(ReadPortSignature(entry, SCALE_LAYOUT)),
                "factored": Out(1),
                "scale": Out(HeadScaleWritePort(config)),
                **members,
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        depth = 1 << self.maximum.addr.shape().size
        m.submodules.maxima = maxima = Memory(shape=unsigned(self.y_width), depth=depth, init=[])
        m.submodules.factors = factors = Memory(shape=SCALE_LAYOUT, depth=depth, init=[])
        m.submodules.unit = unit = ScaleUnit()
        m.submodules.mul = mul = ScaleMul()
        max_w, max_r = maxima.write_port(), maxima.read_port()
        factor_w, factor_r = factors.write_port(), factors.read_port()
        m.d.comb += [
            max_w.en.eq(self.maximum.en),
            max_w.addr.eq(self.maximum.addr),
            max_w.data.eq(self.maximum.data),
            factor_r.addr.eq(self.factor.addr),
            self.factor.data.eq(factor_r.data),
        ]

        fetch, current, waiting, taken = self._next_head(m, max_r)
        # the multiplier takes one product after the other
        op, integer = Signal(_Product), Signal(SCALE_LAYOUT)
        (_, _, op_2), (_, _, current_2) = delay(m, op, mul.latency), delay(m, current, mul.latency)
        step, normed, held_step = self._products(m, op, op_2, unit, mul, fetch, current)
        m.d.comb += [
            self.scale.en.eq(op_2 == _Product.SCALE),
            self.scale.addr.eq(current_2),
            self.scale.data.eq(mul.o),
            factor_w.en.eq(op_2 == _Product.FACTOR),
            factor_w.addr.eq(Cat(current_2.head, current_2.token[0])),
            factor_w.data.eq(mul.o),
            self.factored.eq(factor_w.en),
        ]

        m.d.comb += [unit.i.p.x.eq(max_r.data), unit.i.p.e.eq(0), unit.i.p.a.eq(integer)]
        may_begin = (waiting != 0) & ((fetch.head < config.n_heads) | ~self.hold)
        with m.FSM():
            self._states(m, unit, op, op_2, integer, may_begin, taken, step, normed, held_step)
            if config.vector.qk_norm:
                self._norm_states(m, unit, op, integer, current)
        return m

    def _next_head(self, m, max_r):
        """The head whose maximum is read; a written one can be read a cycle later."""
        config = self.config
        depth = 1 << self.maximum.addr.shape().size
        head_layout = data.StructLayout(
            {"token": range(config.pass_tokens), "head": range(self.n_heads)}
        )
        fetch, current = Signal(head_layout), Signal(head_layout)
        waiting, written, taken = Signal(range(depth + 1)), Signal(), Signal()
        m.d.comb += [
            max_r.addr.eq(Cat(fetch.head, fetch.token[0])),
            self.scale_r.addr.token.eq(fetch.token),
        ]
        m.d.sync += [written.eq(self.maximum.en), waiting.eq(waiting + written - taken)]
        with m.If(taken):
            m.d.sync += [current.eq(fetch), fetch.head.eq(fetch.head + 1)]
            with m.If(fetch.head == self.n_heads - 1):
                m.d.sync += [fetch.head.eq(0), fetch.token.eq(fetch.token + 1)]
        with m.If(self.start):
            m.d.sync += [fetch.eq(0)]
        return fetch, current, waiting, taken

    def _products(self, m, op, op_2, unit, mul, fetch, current):
        """Operands of the multiplier, and its results that are operands again."""
        config = self.config
        weight, head_unit, step = Signal(SCALE_LAYOUT), Signal(SCALE_LAYOUT), Signal(SCALE_LAYOUT)
        # of a head with a norm: the scale waits for the root
        normed, held_step, root = Signal(), Signal(SCALE_LAYOUT), Signal(SCALE_LAYOUT)
        if config.vector.qk_norm:
            m.d.comb += [
                normed.eq(self.qk_norm & (current.head < config.n_heads + config.n_kv_heads)),
                root.m.eq(unit.o.p.m),
                root.e.eq(
                    Mux(
                        unit.o.p.m == 0, 0, unit.o.p.e - (FIXED_FRAC - NORM_SHIFT) - self.gamma_frac
                    )
                ),
            ]
        q_max, inv_q_max = Signal(SCALE_LAYOUT), Signal(SCALE_LAYOUT)
        cached = current.head >= config.n_heads
        for whole, signal in ((True, q_max), (False, inv_q_max)):
            query, kv = (
                scale_constant(each if whole else scale_recip(each))
                for each in map(scale_from_int, (Q_MAX, q_max_of(config.attention.key_width)))
            )
            m.d.comb += signal.eq(Mux(cached, kv, query))
        is_query = fetch.head < config.n_heads
        is_key = fetch.head < config.n_heads + config.n_kv_heads
        m.d.comb += [
            weight.eq(Mux(is_query, self.scale_q, Mux(is_key, self.scale_k, self.scale_v))),
            step.m.eq(mul.o.m),
            step.e.eq(Mux(mul.o.m == 0, 0, mul.o.e - ROPE_FRAC)),
        ]
        with m.Switch(op):
            with m.Case(_Product.UNIT):
                m.d.comb += [mul.a.eq(self.scale_r.data), mul.b.eq(weight)]
            with m.Case(_Product.STEP):
                m.d.comb += [mul.a.eq(unit.o.p), mul.b.eq(inv_q_max)]
            with m.Case(_Product.SCALE):
                m.d.comb += [mul.a.eq(step), mul.b.eq(head_unit)]
                if config.vector.qk_norm:
                    with m.If(normed):
                        m.d.comb += [mul.a.eq(held_step), mul.b.eq(root)]
            with m.Default():
                m.d.comb += [mul.a.eq(unit.o.p), mul.b.eq(q_max)]
        with m.If(op_2 == _Product.UNIT):
            m.d.sync += head_unit.eq(mul.o)
            if config.vector.qkv_bias or config.vector.qk_norm:
                with m.If(self.fixed):
                    m.d.sync += head_unit.eq(scale_constant(FIXED_UNIT))
        return step, normed, held_step

    def _states(self, m, unit, op, op_2, integer, may_begin, taken, step, normed, held_step):
        """A head: its maximum as a scale, the factor, and without a norm the scale."""
        with m.State("Integer"):
            m.d.comb += [
                unit.i.p.op.eq(ScaleOp.FROM_INT),
                unit.i.valid.eq(may_begin),
                taken.eq(unit.i.valid & unit.i.ready),
            ]
            with m.If(taken):
                m.d.comb += op.eq(_Product.UNIT)
                m.next = "Step"
        with m.State("Step"):
            m.d.comb += unit.o.ready.eq(1)
            m.d.sync += integer.eq(unit.o.p)
            with m.If(unit.o.valid):
                m.d.comb += op.eq(_Product.STEP)
                m.next = "Reciprocal"
        with m.State("Reciprocal"):
            m.d.comb += [unit.i.p.op.eq(ScaleOp.RECIP), unit.i.valid.eq(1)]
            with m.If(unit.i.ready):
                m.next = "Factor"
        with m.State("Factor"):
            m.d.comb += unit.o.ready.eq(1)
            with m.If(op_2 == _Product.STEP):
                m.d.comb += op.eq(_Product.SCALE)
                if self.config.vector.qk_norm:
                    m.d.sync += held_step.eq(step)
                    with m.If(normed):
                        m.d.comb += op.eq(_Product.NONE)
            with m.If(unit.o.valid):
                m.d.comb += op.eq(_Product.FACTOR)
                m.next = "Integer"
                if self.config.vector.qk_norm:
                    with m.If(normed):
                        m.next = "Squares"

    def _norm_states(self, m, unit, op, integer, current):
        """Behind the factor: the root of the head's squares, and then the scale."""
        depth = 1 << self.maximum.addr.shape().size
        m.submodules.sums = sums = Memory(shape=unsigned(SQUARES_WIDTH), depth=depth, init=[])
        write, read, log2_dim = (
            sums.write_port(),
            sums.read_port(),
            exact_log2(self.config.head_dim),
        )
        total = Signal(SQUARES_WIDTH)
        m.d.comb += [
            write.en.eq(self.squares.en),
            write.addr.eq(self.squares.addr),
            write.data.eq(self.squares.data),
            read.addr.eq(Cat(current.head, current.token[0])),
        ]
        m.d.sync += total.eq(read.data + (self.eps << log2_dim))
        with m.State("Squares"):
            m.d.comb += [
                unit.i.p.op.eq(ScaleOp.FROM_INT),
                unit.i.p.x.eq(total),
                unit.i.p.e.eq(-(EPS_FRAC + log2_dim)),
                unit.i.valid.eq(1),
            ]
            with m.If(unit.i.ready):
                m.next = "Mean"
        with m.State("Mean"):
            m.d.comb += unit.o.ready.eq(1)
            m.d.sync += integer.eq(unit.o.p)
            with m.If(unit.o.valid):
                m.next = "Square"
        with m.State("Square"):
            m.d.comb += [unit.i.p.op.eq(ScaleOp.RSQRT), unit.i.valid.eq(1)]
            with m.If(unit.i.ready):
                m.next = "Root"
        with m.State("Root"):
            m.d.comb += unit.o.ready.eq(1)
            with m.If(unit.o.valid):
                m.d.comb += op.eq(_Product.SCALE)
                m.next = "Integer"

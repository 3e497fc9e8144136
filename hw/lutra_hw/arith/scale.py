"""Arithmetic on scales: one unit with every operation, and a pipelined multiplier."""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra_golden.arith.scale import SCALE, recip_table, rsqrt_table
from lutra_golden.timing.arith import SCALE_MUL_LATENCY
from lutra_hw.arith.fixed import round_half
from lutra_hw.ports import SCALE_LAYOUT

__all__ = ["SCALE_COMMAND", "ScaleMul", "ScaleOp", "ScaleUnit"]


class ScaleOp(enum.Enum, shape=unsigned(3)):
    """Operations of :class:`ScaleUnit`."""

    FROM_INT = 0
    MUL = 1
    ADD = 2
    RECIP = 3
    RSQRT = 4


SCALE_COMMAND = data.StructLayout(
    {
        "op": ScaleOp,
        "x": unsigned(64),
        "e": signed(SCALE.e_width),
        "a": SCALE_LAYOUT,
        "b": SCALE_LAYOUT,
    }
)
"""FROM_INT takes ``x`` and ``e``, MUL and ADD ``a`` and ``b``, RECIP and RSQRT ``a``."""


def _round(guarded, e):
    """Mantissa and exponent of ``guarded * 2**(e - 1)``, rounded once.

    ``guarded`` has 18 bits: a mantissa in 16:1, a guard bit below it, and bit 17 for a value that
    is one bit longer; then, and when the rounding carries, the mantissa is a power of two. A value
    that is one bit shorter is exact, its guard bit does not count.
    """
    rounded = round_half(guarded)[:17]
    carry, top = rounded[16], rounded[15]
    m = Mux(carry | top, Cat(rounded[:15], 1), rounded[:15] << 1)
    return m[:16], e + Mux(carry, 1, Mux(top, 0, -1))


class ScaleUnit(wiring.Component):
    """Scales from integers, products, sums, reciprocals and reciprocal square roots of scales.

    One operation at a time. Its result is offered :data:`SCALE_LATENCY` cycles after the command
    was accepted (FROM_INT 4, MUL 3, ADD 5, RECIP 5, RSQRT 6) and waits until it is accepted; the
    next command is accepted in the cycle after that. Operands are zero or normalised; exponents
    must stay within ``signed(10)``.

    One 17 x 17 multiplier serves MUL and the Newton steps, which start from tables of 256 seeds;
    one rounding stage serves every operation.

    Model: :mod:`lutra_golden.arith.scale` (``scale_from_int``, ``scale_mul``, ``scale_add``,
    ``scale_recip``, ``scale_rsqrt``).

    Members
    -------
    i : ``In(stream.Signature(SCALE_COMMAND))``
    o : ``Out(stream.Signature(SCALE_LAYOUT))``
    """

    i: In(stream.Signature(SCALE_COMMAND))
    o: Out(stream.Signature(SCALE_LAYOUT))

    def elaborate(self, platform):
        m = Module()
        seeds = [*recip_table().tolist(), *rsqrt_table().tolist()]
        m.submodules.seeds = table = Memory(shape=unsigned(16), depth=len(seeds), init=seeds)
        seed_port = table.read_port()

        command = self.i.payload
        op, result = Signal(ScaleOp), Signal(SCALE_LAYOUT)
        a, b = Signal(SCALE_LAYOUT), Signal(SCALE_LAYOUT)
        e = Signal(signed(SCALE.e_width + 2))  # of the result, as far as it is known
        rsqrt = op == ScaleOp.RSQRT
        odd = command.a.e[0]
        is_rsqrt = command.op == ScaleOp.RSQRT
        m.d.comb += seed_port.addr.eq(
            Mux(is_rsqrt, Cat(command.a.m[8:15], odd, Const(1, 1)), command.a.m[7:15])
        )
        seed = seed_port.data  # held while an operation is in flight

        # the multiplier and the corrections of the Newton steps:
        # (2**32 - product) >> 15 for RECIP, ((3 << 31) - product) >> 16 for RSQRT
        x = Signal(17)
        left, right, product = Signal(17), Signal(17), Signal(34)
        correction = Signal(17)
        inexact = Mux(rsqrt, product[:16].any(), product[:15].any())
        below = Mux(rsqrt, (3 << 15) - product[16:34], (1 << 17) - product[15:33])
        m.d.sync += [product.eq(left * right), correction.eq(below - inexact)]

        # the normaliser, 64 bits; ADD aligns and adds in it
        wide = Signal(64)
        shift = Signal(6)

        def normalise(steps):
            """Shift leading zeros out of ``wide`` by each of ``steps``."""
            value, count = wide, Const(0, 1)
            for step in steps:
                clear = Signal(name=f"clear_{step}")
                shifted = Signal(64, name=f"shifted_{step}")
                m.d.comb += [
                    clear.eq(~value[64 - step :].any()),
                    shifted.eq(Mux(clear, value << step, value)),
                ]
                value, count = shifted, count + Mux(clear, step, 0)
            return [wide.eq(value), e.eq(e - count)]

        # the rounding: where the mantissa lies in the operation's result
        guarded, rounded_e = Signal(18), Signal(signed(SCALE.e_width + 2))
        nothing = Signal()
        rounded_m, final_e = _round(guarded, rounded_e)
        with m.Switch(op):
            with m.Case(ScaleOp.FROM_INT):
                m.d.comb += [
                    guarded.eq(wide[47:64]),
                    rounded_e.eq(e),
                    nothing.eq(~wide[63]),
                ]
            with m.Case(ScaleOp.MUL):
                m.d.comb += [
                    guarded.eq(Mux(product[31], product[15:32], product[14:31])),
                    rounded_e.eq(e + product[31]),
                    nothing.eq(~product[30:32].any()),
                ]
            with m.Case(ScaleOp.ADD):
                m.d.comb += [
                    guarded.eq(Mux(wide[32], wide[16:33], wide[15:32])),
                    rounded_e.eq(e + wide[32]),
                    nothing.eq(~wide[31:33].any()),
                ]
            with m.Default():
                m.d.comb += [
                    guarded.eq(product[15:33]),
                    rounded_e.eq(e),
                    nothing.eq(~a.m[15]),
                ]

        swap = ((b.e > a.e) | (a.m == 0)) & (b.m != 0)
        distance = Signal(signed(SCALE.e_width + 1))
        m.d.comb += distance.eq(Mux(swap, b.e - a.e, a.e - b.e))

        m.d.comb += self.o.payload.eq(result)
        with m.FSM() as fsm:
            m.d.comb += [
                self.i.ready.eq(fsm.ongoing("Idle")),
                self.o.valid.eq(fsm.ongoing("Output")),
                seed_port.en.eq(fsm.ongoing("Idle")),
            ]
            with m.State("Idle"):
                m.d.sync += [
                    op.eq(command.op),
                    a.eq(command.a),
                    b.eq(command.b),
                    wide.eq(command.x),
                    x.eq(Mux(is_rsqrt & odd, command.a.m << 1, command.a.m)),
                ]
                with m.Switch(command.op):
                    with m.Case(ScaleOp.FROM_INT):
                        m.d.sync += e.eq(command.e + 48)
                    with m.Case(ScaleOp.MUL):
                        m.d.sync += e.eq(command.a.e + command.b.e + 15)
                    with m.Case(ScaleOp.RECIP):
                        m.d.sync += e.eq(-31 - command.a.e)
                    with m.Case(ScaleOp.RSQRT):
                        m.d.sync += e.eq(-23 - (command.a.e >> 1))
                with m.If(self.i.valid):
                    with m.Switch(command.op):
                        with m.Case(ScaleOp.FROM_INT):
                            m.next = "Coarse"
                        with m.Case(ScaleOp.ADD):
                            m.next = "Order"
                        with m.Case(ScaleOp.RSQRT):
                            m.next = "Square"
                        with m.Default():
                            m.next = "Multiply"
            with m.State("Coarse"):
                m.d.sync += normalise((32, 16, 8))
                m.next = "Fine"
            with m.State("Fine"):
                m.d.sync += normalise((4, 2, 1))
                m.next = "Round"
            with m.State("Order"):
                m.d.sync += [
                    e.eq(Mux(swap, b.e, a.e)),
                    x.eq(Mux(swap, b.m, a.m)),
                    wide.eq(Mux(swap, a.m, b.m) << 16),
                    # beyond 32 nothing is left; a negative distance is that of a zero
                    shift.eq(Mux(distance[5:].any(), 32, distance[:5])),
                ]
                m.next = "Align"
            with m.State("Align"):
                m.d.sync += wide.eq(wide[:32] >> shift)
                m.next = "Sum"
            with m.State("Sum"):
                m.d.sync += wide.eq(wide[:32] + (x[:16] << 16))
                m.next = "Round"
            with m.State("Square"):
                m.d.comb += [left.eq(seed), right.eq(seed)]
                m.next = "Multiply"
            with m.State("Multiply"):
                m.d.comb += [
                    left.eq(x),
                    right.eq(Mux(rsqrt, product[15:32], Mux(op == ScaleOp.RECIP, seed, b.m))),
                ]
                m.next = "Round"
                with m.If(op != ScaleOp.MUL):
                    m.next = "Correct"
            with m.State("Correct"):
                m.next = "Newton"
            with m.State("Newton"):
                m.d.comb += [left.eq(seed), right.eq(correction)]
                m.next = "Round"
            with m.State("Round"):
                m.d.sync += [
                    result.m.eq(Mux(nothing, 0, rounded_m)),
                    result.e.eq(Mux(nothing, 0, final_e)),
                ]
                m.next = "Output"
            with m.State("Output"):
                with m.If(self.o.ready):
                    m.next = "Idle"
        return m


class ScaleMul(wiring.Component):
    """``o = a * b``, one product per cycle.

    Latency is :attr:`latency` cycles: multiply, round. Throughput is one product per cycle; there
    is no backpressure. Operands are zero or normalised.

    Model: :func:`lutra_golden.arith.scale.scale_mul`.

    Members
    -------
    valid : ``In(1)``
    a, b : ``In(SCALE_LAYOUT)``
    o_valid : ``Out(1)``  ``valid``, ``latency`` cycles later.
    o : ``Out(SCALE_LAYOUT)``
    """

    latency = SCALE_MUL_LATENCY

    valid: In(1)
    a: In(SCALE_LAYOUT)
    b: In(SCALE_LAYOUT)
    o_valid: Out(1)
    o: Out(SCALE_LAYOUT)

    def elaborate(self, platform):
        m = Module()
        product, e, valid = Signal(32), Signal(signed(SCALE.e_width + 1)), Signal()
        m.d.sync += [
            product.eq(self.a.m * self.b.m),
            e.eq(self.a.e + self.b.e),
            valid.eq(self.valid),
            self.o_valid.eq(valid),
        ]

        long = product[31]
        guarded = Signal(18)
        m.d.comb += guarded.eq(Mux(long, product[15:32], product[14:31]))
        rounded_m, rounded_e = _round(guarded, e + Mux(long, 16, 15))
        nothing = ~product[30:32].any()
        m.d.sync += [
            self.o.m.eq(Mux(nothing, 0, rounded_m)),
            self.o.e.eq(Mux(nothing, 0, rounded_e)),
        ]
        return m

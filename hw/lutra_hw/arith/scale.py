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


class _Registers:
    """Registers of :class:`ScaleUnit`, and the operands of its multiplier."""

    def __init__(self) -> None:
        self.op = Signal(ScaleOp, name="op")
        self.a, self.b = Signal(SCALE_LAYOUT, name="a"), Signal(SCALE_LAYOUT, name="b")
        # of the result, as far as it is known
        self.e = Signal(signed(SCALE.e_width + 2), name="e")
        self.x = Signal(17, name="x")
        # the normaliser; ADD aligns and adds in it
        self.wide = Signal(64, name="wide")
        self.left, self.right = Signal(17, name="left"), Signal(17, name="right")
        self.product = Signal(34, name="product")


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
        r = _Registers()
        seed_port, seed = self._seeds(m)
        correction = self._multiplier(m, r)
        rounded = self._round_result(m, r)
        self._control(m, r, seed_port, seed, correction, rounded)
        return m

    def _seeds(self, m):
        """Read port of the seeds of the Newton steps, and the seed of the operation in flight."""
        command = self.i.payload
        seeds = [*recip_table().tolist(), *rsqrt_table().tolist()]
        m.submodules.seeds = table = Memory(shape=unsigned(16), depth=len(seeds), init=seeds)
        seed_port = table.read_port()

        odd, is_rsqrt = command.a.e[0], command.op == ScaleOp.RSQRT
        m.d.comb += seed_port.addr.eq(
            Mux(is_rsqrt, Cat(command.a.m[8:15], odd, Const(1, 1)), command.a.m[7:15])
        )
        return seed_port, seed_port.data  # held while an operation is in flight

    def _multiplier(self, m, r):
        """The multiplier, and the corrections of the Newton steps, which are returned.

        They are (2**32 - product) >> 15 for RECIP, ((3 << 31) - product) >> 16 for RSQRT.
        """
        rsqrt, product, correction = r.op == ScaleOp.RSQRT, r.product, Signal(17)
        inexact = Mux(rsqrt, product[:16].any(), product[:15].any())
        below = Mux(rsqrt, (3 << 15) - product[16:34], (1 << 17) - product[15:33])
        m.d.sync += [product.eq(r.left * r.right), correction.eq(below - inexact)]
        return correction

    def _round_result(self, m, r):
        """Mantissa and exponent of the result, from where the mantissa lies in it."""
        e, wide, product = r.e, r.wide, r.product
        guarded, rounded_e = Signal(18), Signal(signed(SCALE.e_width + 2))
        nothing = Signal()
        rounded_m, final_e = _round(guarded, rounded_e)
        with m.Switch(r.op):
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
                    nothing.eq(~r.a.m[15]),
                ]
        return Mux(nothing, 0, rounded_m), Mux(nothing, 0, final_e)

    def _control(self, m, r, seed_port, seed, correction, rounded):
        """One operation after the other: FROM_INT, ADD, or by way of the multiplier."""
        command, result, e = self.i.payload, Signal(SCALE_LAYOUT), r.e
        is_rsqrt = command.op == ScaleOp.RSQRT
        swap = ((r.b.e > r.a.e) | (r.a.m == 0)) & (r.b.m != 0)
        distance = Signal(signed(SCALE.e_width + 1))
        m.d.comb += distance.eq(Mux(swap, r.b.e - r.a.e, r.a.e - r.b.e))

        m.d.comb += self.o.payload.eq(result)
        with m.FSM() as fsm:
            m.d.comb += [
                self.i.ready.eq(fsm.ongoing("Idle")),
                self.o.valid.eq(fsm.ongoing("Output")),
                seed_port.en.eq(fsm.ongoing("Idle")),
            ]
            with m.State("Idle"):
                m.d.sync += [
                    r.op.eq(command.op),
                    r.a.eq(command.a),
                    r.b.eq(command.b),
                    r.wide.eq(command.x),
                    r.x.eq(Mux(is_rsqrt & command.a.e[0], command.a.m << 1, command.a.m)),
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
            self._integer_states(m, r)
            self._sum_states(m, r, swap, distance)
            self._product_states(m, r, seed, correction)
            with m.State("Round"):
                m.d.sync += [result.m.eq(rounded[0]), result.e.eq(rounded[1])]
                m.next = "Output"
            with m.State("Output"):
                with m.If(self.o.ready):
                    m.next = "Idle"

    def _integer_states(self, m, r):
        """FROM_INT: shift leading zeros out of the integer."""

        def normalise(steps):
            """Shift leading zeros out of ``wide`` by each of ``steps``."""
            value, count = r.wide, Const(0, 1)
            for step in steps:
                clear = Signal(name=f"clear_{step}")
                shifted = Signal(64, name=f"shifted_{step}")
                m.d.comb += [
                    clear.eq(~value[64 - step :].any()),
                    shifted.eq(Mux(clear, value << step, value)),
                ]
                value, count = shifted, count + Mux(clear, step, 0)
            return [r.wide.eq(value), r.e.eq(r.e - count)]

        with m.State("Coarse"):
            m.d.sync += normalise((32, 16, 8))
            m.next = "Fine"
        with m.State("Fine"):
            m.d.sync += normalise((4, 2, 1))
            m.next = "Round"

    def _sum_states(self, m, r, swap, distance):
        """ADD: align the scale with the smaller exponent, and add."""
        shift = Signal(6)
        with m.State("Order"):
            m.d.sync += [
                r.e.eq(Mux(swap, r.b.e, r.a.e)),
                r.x.eq(Mux(swap, r.b.m, r.a.m)),
                r.wide.eq(Mux(swap, r.a.m, r.b.m) << 16),
                # beyond 32 nothing is left; a negative distance belongs to a zero
                shift.eq(Mux(distance[5:].any(), 32, distance[:5])),
            ]
            m.next = "Align"
        with m.State("Align"):
            m.d.sync += r.wide.eq(r.wide[:32] >> shift)
            m.next = "Sum"
        with m.State("Sum"):
            m.d.sync += r.wide.eq(r.wide[:32] + (r.x[:16] << 16))
            m.next = "Round"

    def _product_states(self, m, r, seed, correction):
        """MUL in one product; RECIP and RSQRT in a Newton step."""
        rsqrt = r.op == ScaleOp.RSQRT
        with m.State("Square"):
            m.d.comb += [r.left.eq(seed), r.right.eq(seed)]
            m.next = "Multiply"
        with m.State("Multiply"):
            operand = Mux(r.op == ScaleOp.RECIP, seed, r.b.m)
            m.d.comb += [r.left.eq(r.x), r.right.eq(Mux(rsqrt, r.product[15:32], operand))]
            m.next = "Round"
            with m.If(r.op != ScaleOp.MUL):
                m.next = "Correct"
        with m.State("Correct"):
            m.next = "Newton"
        with m.State("Newton"):
            m.d.comb += [r.left.eq(seed), r.right.eq(correction)]
            m.next = "Round"


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

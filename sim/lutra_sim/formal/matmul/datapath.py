"""Datapaths of the engines against sums of products."""

from collections.abc import Callable, Sequence
from typing import Any

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring

from lutra_golden.matmul.grouped import DigitParams
from lutra_golden.matmul.lut import GROUP as LUT_GROUP
from lutra_golden.matmul.lut import LutParams
from lutra_golden.matmul.table import ENTRIES
from lutra_golden.matmul.table import GROUP as TERNARY_GROUP
from lutra_golden.matmul.ternary import TernaryParams
from lutra_sim.formal.property import Property, past

__all__ = [
    "DatapathEqual",
    "RowEqual",
    "StepEqual",
    "Sum",
    "digit_sum",
    "lut_sum",
    "shifted_sum",
    "ternary_sum",
]

Sum = Callable[[Property, Module, Any, Sequence[Value], Value], Value]
"""``(prop, m, params, activations, fields)``: sum of a row, from the activations of a step and the
bits that the row has in a word."""


def _added(values: Sequence[Value]) -> Value:
    """Sum of ``values``, by neighbours: adders of the datapaths have this order, and a proof with
    another one takes longer."""
    while len(values) > 1:
        pairs = zip(values[0::2], values[1::2], strict=False)
        values = [*(a + b for a, b in pairs), *values[len(values) & ~1 :]]
    return values[0]


def _dot(activations: Sequence[Value], weights: Sequence[Value]) -> Value:
    return _added([a * weight for a, weight in zip(activations, weights, strict=True)])


def digit_sum(
    prop: Property, m: Module, params: DigitParams, activations: Sequence[Value], fields: Value
) -> Value:
    """Activations times digits, which are unsigned numbers."""
    return _dot(activations, _digits(params, fields))


def shifted_sum(
    prop: Property, m: Module, params: DigitParams, activations: Sequence[Value], fields: Value
) -> Value:
    """The same by shift and add, plane by plane, as the golden model computes a product.

    A claim says that this is a multiplication, for each activation by itself: a solver takes hours
    for both in one.
    """
    digits = _digits(params, fields)
    gated = [
        [Mux(digit[bit], a, 0) for a, digit in zip(activations, digits, strict=True)]
        for bit in range(params.w_width)
    ]
    for k, (a, digit) in enumerate(zip(activations, digits, strict=True)):
        product = _weighted([plane[k] for plane in gated])
        prop.claim(m, f"activation {k} is multiplied by shift and add", product == a * digit)
    return _weighted([_added(plane) for plane in gated])


def _digits(params: DigitParams, fields: Value) -> list[Value]:
    return [fields.word_select(k, params.w_width) for k in range(params.step_depth)]


def _weighted(planes: Sequence[Value]) -> Value:
    """Sum of planes, each weighing twice the one before, by neighbours; their number is a power
    of two."""
    weight = 1
    while len(planes) > 1:
        pairs = zip(planes[0::2], planes[1::2], strict=True)
        planes = [low + (high << weight) for low, high in pairs]
        weight *= 2
    return planes[0]


def lut_sum(
    prop: Property, m: Module, params: LutParams, activations: Sequence[Value], fields: Value
) -> Value:
    """Codes of the lut engine: bits that mean -1 and +1, complemented where the last says -1."""
    weights: list[Value] = []
    for table in range(params.n_tables):
        code = fields.word_select(table, LUT_GROUP)
        negate = code[LUT_GROUP - 1]
        bits = [*(code[j] ^ negate for j in range(LUT_GROUP - 1)), ~negate]
        weights += [Mux(bit, Const(1, signed(2)), Const(-1, signed(2))) for bit in bits]
    return _dot(activations, weights)


def ternary_sum(
    prop: Property, m: Module, params: TernaryParams, activations: Sequence[Value], fields: Value
) -> Value:
    """Codes of the ternary engine: an entry's signs, and a sign relative to a table before."""
    weights: list[Value] = []
    negated: list[Value] = []
    for table in range(params.n_tables):
        code = fields.word_select(table, params.code_width)
        index, negate = code[:4], code[4]
        prop.assume(m, index < len(ENTRIES))
        negated.append(negate ^ negated[table & (table - 1)] if table else negate)
        for k in range(TERNARY_GROUP):
            sign = Signal(signed(2), name=f"sign_{table}_{k}")
            with m.Switch(index):
                for entry, signs in enumerate(ENTRIES.tolist()):
                    with m.Case(entry):
                        m.d.comb += sign.eq(signs[k])
            weights.append(Mux(negated[table], -sign, sign)[:2].as_signed())
    return _dot(activations, weights)


class _Datapath(Property):
    """A datapath in use: two sets are prepared, one right after the other as early as may be.

    Words with any digits come as early as each set may be used, and for the older set when the
    newer one is ready. Of an activation ``a_bits`` bits matter, at either end of its range: with 3
    it is any from -4 to 3, or any multiple of 32 from -128 on, and those of the second set have
    these bits inverted. With all bits both sets are any.
    """

    def __init__(self, dut: wiring.Component, a_bits: int) -> None:
        super().__init__(dut)
        self._a_bits = a_bits

    @property
    def depth(self) -> int:
        # two preparations, the words of both sets and their results
        return 2 * self.dut.prepare_cycles + self.dut.latency + 1

    def _use(self, m: Module) -> Signal:
        """Assume the above; returns the activations of ``step``."""
        dut, p = self.dut, self.dut.params
        prepare = dut.prepare_cycles
        now = Signal(range(2 * prepare + 2))
        with m.If(now != 2 * prepare + 1):
            m.d.sync += now.eq(now + 1)
        first_set = self.constant(m, 1, "first_set")
        tiles = self._tiles(m)
        self.assume(
            m,
            dut.start == ((now == 0) | (now == prepare)),
            dut.start_set == (first_set ^ (now == prepare)),
            (now == 0) | (dut.i.as_value() == Mux(now <= prepare, *tiles)),
            ~dut.en | (now == prepare) | (now == 2 * prepare),
            ~dut.en | (dut.set == first_set) | (now == 2 * prepare),
        )
        if p.steps > 1:
            self.assume(m, dut.step < p.steps)
        tile = Signal(p.depth_tile * p.a_width)
        activations = Signal(p.step_depth * p.a_width, name="activations_of_step")
        m.d.comb += tile.eq(Mux(dut.set == first_set, *tiles))
        m.d.comb += activations.eq(tile.word_select(dut.step, len(activations)))
        return activations

    def _tiles(self, m: Module) -> list[Value]:
        """The activations of both sets."""
        p, n_bits = self.dut.params, self._a_bits
        above = p.a_width - n_bits
        if not above:
            return [self.constant(m, p.depth_tile * n_bits, f"tile_{index}") for index in range(2)]
        high = self.constant(m, 1, "high")
        bits = self.constant(m, p.depth_tile * n_bits, "bits")
        tiles = []
        for half in (bits, ~bits):
            values = [half.word_select(k, n_bits) for k in range(p.depth_tile)]
            low = Cat(Cat(value, value[-1].replicate(above)) for value in values)
            tiles.append(Mux(high, Cat(Cat(Const(0, above), value) for value in values), low))
        return tiles


class DatapathEqual(_Datapath):
    """``o`` is the sum of activations times weights, ``latency`` cycles after every ``en``.

    Row ``row`` is compared.
    """

    def __init__(self, dut: wiring.Component, total: Sum, row: int, a_bits: int) -> None:
        super().__init__(dut, a_bits)
        self._total, self._row = total, row

    def rules(self, m: Module) -> None:
        _claim_sum(self, m, self._total, self._row, self._use(m))


class StepEqual(_Datapath):
    """A step of a :class:`DotDatapath` multiplies the activations of its set and step."""

    def rules(self, m: Module) -> None:
        activations = self._use(m)
        selected = self.probe("activations", len(activations))
        self.claim(m, "a step has its activations", ~self.dut.en | (selected == activations))


class RowEqual(Property):
    """``o`` of a :class:`DotDatapath` is the sum of a step's activations times weights.

    What the step selects is cut off and may be anything in every cycle, at either end of the range
    as in :class:`_Datapath`: :class:`StepEqual` says the rest. Row ``row`` is compared.
    """

    def __init__(self, dut: wiring.Component, total: Sum, row: int, a_bits: int) -> None:
        super().__init__(dut)
        self._total, self._row, self._a_bits = total, row, a_bits

    @property
    def depth(self) -> int:
        return self.dut.latency + 2

    def rules(self, m: Module) -> None:
        p = self.dut.params
        activations = self.probe("activations", p.step_depth * p.a_width, cut=True)
        above = p.a_width - self._a_bits
        if above:
            values = [activations.word_select(k, p.a_width) for k in range(p.step_depth)]
            low = [value[-above - 1 :].all() | ~value[-above - 1 :].any() for value in values]
            high = [~value[:above].any() for value in values]
            self.assume(m, Cat(low).all() | Cat(high).all())
        _claim_sum(self, m, self._total, self._row, activations)


def _claim_sum(prop: Property, m: Module, total: Sum, row: int, activations: Value) -> None:
    """Demand the sum of ``activations`` in ``o`` of ``row``, ``latency`` cycles later."""
    dut, p = prop.dut, prop.dut.params
    row_bits = p.digit_bits // p.step_rows
    fields = dut.digits.word_select(row, row_bits)
    values = [activations.word_select(k, p.a_width).as_signed() for k in range(p.step_depth)]
    width = dut.o_width + 1
    expected = Signal(signed(width), name="expected_0")
    m.d.comb += expected.eq(total(prop, m, p, values, fields))
    due: Any = dut.en
    for cycle in range(dut.latency):
        expected = past(m, expected, f"expected_{cycle}")
        due = past(m, due, f"due_{cycle}")

    value, negate = dut.o[row], dut.negate[row]
    plain = Signal(signed(width))
    m.d.comb += plain.eq(Cat(value[:-1], ~value[-1]).as_signed())
    result = Mux(negate, -plain, plain)
    prop.claim(m, "o is the sum of products", ~due | (result == expected))
    former = past(m, Cat(value, negate), "former")
    not_first = past(m, Const(1, 1), "not_first")
    prop.claim(m, "without en nothing moves", due | ~not_first | (Cat(value, negate) == former))

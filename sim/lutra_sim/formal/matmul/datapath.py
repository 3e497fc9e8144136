"""The engines' datapaths against plain multipliers."""

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

__all__ = ["DatapathEqual", "digit_weights", "lut_weights", "ternary_weights"]

_A_BITS = 3

Weights = Callable[[Property, Module, Any, Value], Sequence[Value]]
"""``(prop, m, params, fields)``: what a row multiplies its activations by, from its bits of a
word."""


def digit_weights(prop: Property, m: Module, params: DigitParams, fields: Value) -> list[Value]:
    """Digits of mixpe and mac: unsigned numbers."""
    return [fields.word_select(k, params.w_width) for k in range(params.step_depth)]


def lut_weights(prop: Property, m: Module, params: LutParams, fields: Value) -> list[Value]:
    """Codes of the lut engine: bits that mean -1 and +1, complemented where the last says -1."""
    weights: list[Value] = []
    for table in range(params.n_tables):
        code = fields.word_select(table, LUT_GROUP)
        negate = code[LUT_GROUP - 1]
        bits = [*(code[j] ^ negate for j in range(LUT_GROUP - 1)), ~negate]
        weights += [Mux(bit, Const(1, signed(2)), Const(-1, signed(2))) for bit in bits]
    return weights


def ternary_weights(prop: Property, m: Module, params: TernaryParams, fields: Value) -> list[Value]:
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
    return weights


class DatapathEqual(Property):
    """``o`` is the sum of activations times weights, ``latency`` cycles after every ``en``.

    Two sets are prepared, one right after the other as early as may be. Words with any digits come
    as early as each set may be used, and for the older set when the newer one is ready. Row ``row``
    is compared. Activations have three bits that matter, at either end of their range: any from -4
    to 3, or any multiples of 32 from -128 on; those of the second set have these bits inverted.
    With all bits the proof would take hours.
    """

    def __init__(self, dut: wiring.Component, weights: Weights, row: int) -> None:
        super().__init__(dut)
        self._weights, self._row = weights, row

    def rules(self, m: Module) -> None:
        dut, p = self.dut, self.dut.params
        prepare, depth_tile = dut.prepare_cycles, p.depth_tile
        now = Signal(range(2 * prepare + 2))
        with m.If(now != 2 * prepare + 1):
            m.d.sync += now.eq(now + 1)
        first_set = self.constant(m, 1, "first_set")
        high = self.constant(m, 1, "high")
        short = self.constant(m, depth_tile * _A_BITS, "short")
        above = p.a_width - _A_BITS
        tiles = []
        for bits in (short, ~short):
            values = [bits.word_select(k, _A_BITS) for k in range(depth_tile)]
            low = Cat(Cat(value, value[-1].replicate(above)) for value in values)
            tiles.append(Mux(high, Cat(Cat(Const(0, above), value) for value in values), low))
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

        tile = Signal(depth_tile * p.a_width)
        activations = Signal(p.step_depth * p.a_width)
        m.d.comb += tile.eq(Mux(dut.set == first_set, *tiles))
        m.d.comb += activations.eq(tile.word_select(dut.step, len(activations)))
        row_bits = p.digit_bits // p.step_rows
        fields = dut.digits.word_select(self._row, row_bits)
        products: list[Any] = [
            activations.word_select(k, p.a_width).as_signed() * weight
            for k, weight in enumerate(self._weights(self, m, p, fields))
        ]
        # any order would do; this one, which adders have, is proved in less time
        while len(products) > 1:
            pairs = zip(products[0::2], products[1::2], strict=False)
            products = [a + b for a, b in pairs] + products[len(products) & ~1 :]
        (total,) = products
        width = dut.o_width + 1
        expected = Signal(signed(width), name="expected_0")
        m.d.comb += expected.eq(total)
        due: Any = dut.en
        for cycle in range(dut.latency):
            expected = past(m, expected, f"expected_{cycle}")
            due = past(m, due, f"due_{cycle}")

        value, negate = dut.o[self._row], dut.negate[self._row]
        plain = Signal(signed(width))
        m.d.comb += plain.eq(Cat(value[:-1], ~value[-1]).as_signed())
        result = Mux(negate, -plain, plain)
        self.claim(m, "o is the sum of products", ~due | (result == expected))
        former = past(m, Cat(value, negate), "former")
        not_first = past(m, Const(1, 1), "not_first")
        self.claim(m, "without en nothing moves", due | ~not_first | (Cat(value, negate) == former))

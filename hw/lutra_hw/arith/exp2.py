"""``2**-d`` by a table of 32 segments."""

from typing import Any

from amaranth import Module, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra_golden.arith.exp2 import EXP2, Exp2Params, exp2_table
from lutra_golden.timing.arith import EXP2_LATENCY

__all__ = ["Exp2Neg"]


class Exp2Neg(wiring.Component):
    """``y = 2**-d``, piecewise linear in 32 segments, rounded once.

    Latency is :attr:`latency` cycles: table, multiply and subtract, shift, round. Throughput is one
    argument per cycle; there is no backpressure; the user carries its own valid bits.

    Model: :func:`lutra_golden.arith.exp2.exp2_neg`.

    Parameters
    ----------
    params : :class:`Exp2Params`

    Members
    -------
    d : ``In(unsigned(d_width))``  ``d_frac`` fraction bits.
    y : ``Out(unsigned(y_width))``  ``y_frac`` fraction bits, ``latency`` cycles later.
    """

    latency = EXP2_LATENCY

    def __init__(self, params: Exp2Params = EXP2):
        if not isinstance(params, Exp2Params):
            raise TypeError(f"params must be Exp2Params, not {params!r}")
        self.params = params
        super().__init__({"d": In(unsigned(params.d_width)), "y": Out(unsigned(params.y_width))})

    def elaborate(self, platform):
        m = Module()
        params, rest_bits = self.params, self.params.rest_bits
        base, drop = (values.tolist() for values in exp2_table(params))
        entry = data.StructLayout(
            {
                "base": unsigned(max(base).bit_length()),
                "drop": unsigned(max(drop).bit_length()),
            }
        )
        rows: list[Any] = [{"base": b, "drop": d} for b, d in zip(base, drop, strict=True)]
        m.submodules.table = table = Memory(shape=entry, depth=len(base), init=rows)
        segment = table.read_port()

        # cycle 1: the segment; a whole part of 31 or more leaves nothing of y
        rest_1, whole_1, whole_2 = Signal(rest_bits), Signal(5), Signal(5)
        m.d.comb += segment.addr.eq(self.d[rest_bits : params.d_frac])
        whole = self.d[params.d_frac :]
        m.d.sync += [
            rest_1.eq(self.d[:rest_bits]),
            whole_1.eq(whole[:5] | whole[5:].any().replicate(5)),
            whole_2.eq(whole_1),
        ]

        # cycle 2: base - floor(drop * rest / 2**rest_bits), as one multiply and subtract
        y_2 = Signal(entry["base"].width + rest_bits)
        ones = (1 << rest_bits) - 1
        m.d.sync += y_2.eq(((segment.data.base << rest_bits) | ones) - segment.data.drop * rest_1)

        # cycle 3: one bit more than the result, for cycle 4 to round half up
        guard = params.table_frac - params.y_frac
        shifted_3 = Signal(params.y_width + 1)
        m.d.sync += [
            shifted_3.eq((y_2 >> (rest_bits + guard - 1)) >> whole_2),
            self.y.eq((shifted_3 + 1) >> 1),
        ]
        return m

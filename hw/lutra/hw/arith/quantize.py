"""Symmetric quantisation of a vector to int8."""

from amaranth import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra.hw.arith.fixed import round_half, shift_guarded
from lutra.hw.ports import SCALE_LAYOUT
from lutra.sim.golden.arith.quantize import Q_MAX
from lutra.sim.golden.arith.scale import SCALE

__all__ = ["Quantizer"]

Q_WIDTH = Q_MAX.bit_length() + 1


class Quantizer(wiring.Component):
    """``q = clamp(round(y * factor), -127, 127)`` of every lane.

    Latency is :attr:`latency` cycles: multiply, shift, round and clamp. Throughput is one vector
    per cycle, each with its own factor; there is no backpressure, whoever uses it carries its own
    valid bits.

    ``factor`` must be the one ``quantize_factor`` gives for a maximum that no ``|y|`` exceeds, or
    zero: then a product is less than 128 and the clamp guards the last place only.

    Model: :func:`lutra.sim.golden.arith.quantize.quantize_int8`.

    Parameters
    ----------
    lanes : int
    y_width : int
        Width of one signed element.

    Members
    -------
    y : ``In(ArrayLayout(signed(y_width), lanes))``
    factor : ``In(SCALE_LAYOUT)``
    q : ``Out(ArrayLayout(signed(8), lanes))``  ``latency`` cycles later.
    """

    latency = 3

    def __init__(self, lanes: int, y_width: int):
        for name, value in (("lanes", lanes), ("y_width", y_width)):
            if not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, not {value!r}")
        if lanes < 1:
            raise ValueError(f"lanes must be positive, not {lanes}")
        if not 1 <= y_width <= 47:
            raise ValueError(f"y_width must be in 1..47, not {y_width}")
        self.lanes = lanes
        self.y_width = y_width
        super().__init__(
            {
                "y": In(data.ArrayLayout(signed(y_width), lanes)),
                "factor": In(SCALE_LAYOUT),
                "q": Out(data.ArrayLayout(signed(Q_WIDTH), lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # the factor's exponent is in -63..0
        shift = Signal(unsigned(6))
        m.d.sync += shift.eq(-self.factor.e)

        for lane in range(self.lanes):
            product = Signal(signed(self.y_width + SCALE.m_width), name=f"product_{lane}")
            # a product below 128, its sign and the guard bit
            shifted = Signal(signed(Q_WIDTH + 1), name=f"shifted_{lane}")
            rounded = Signal(signed(Q_WIDTH + 1), name=f"rounded_{lane}")
            m.d.sync += [
                product.eq(self.y[lane] * self.factor.m),
                shifted.eq(shift_guarded(product, shift)),
            ]

            m.d.comb += rounded.eq(round_half(shifted))
            low, sign = rounded[: Q_WIDTH - 1], rounded[-1]
            # 128 becomes 127; -128, which is all zeros under the sign, becomes -127
            above = ~sign & rounded[Q_WIDTH - 1]
            below = sign & ~low.any()
            m.d.sync += self.q[lane].eq(Mux(above, Q_MAX, Cat(low | below, sign).as_signed()))
        return m

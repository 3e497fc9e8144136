"""Symmetric quantisation of a vector to int8 or int16."""

from amaranth import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.arith.quantize import q_max_of
from lutra_golden.arith.scale import SCALE
from lutra_golden.timing.arith import QUANTIZER_LATENCY
from lutra_hw.arith.fixed import round_half, shift_guarded
from lutra_hw.ports import SCALE_LAYOUT

__all__ = ["Quantizer"]


class Quantizer(wiring.Component):
    """``q = clamp(round(y * factor), -q_max, q_max)`` of every lane, where ``q_max`` is 127 or,
    for 16 bits, 32767.

    Latency is :attr:`latency` cycles: multiply, shift, round and clamp. Throughput is one vector
    per cycle, each with its own factor; there is no backpressure; the user carries
    its own valid bits.

    ``factor`` must be the one ``quantize_factor`` gives for a maximum that no ``|y|`` exceeds, or
    zero: then a product is less than 128, or 32768.1, and the clamp guards the last place only.

    Model: :func:`lutra_golden.arith.quantize.quantize`.

    Parameters
    ----------
    lanes : int
    y_width : int
        Width of one signed element.
    q_width : int
        Width of a result: 8 or 16.

    Members
    -------
    y : ``In(ArrayLayout(signed(y_width), lanes))``
    factor : ``In(SCALE_LAYOUT)``
    q : ``Out(ArrayLayout(signed(q_width), lanes))``  ``latency`` cycles later.
    """

    latency = QUANTIZER_LATENCY

    def __init__(self, lanes: int, y_width: int, q_width: int = 8):
        for name, value in (("lanes", lanes), ("y_width", y_width), ("q_width", q_width)):
            if not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, not {value!r}")
        if lanes < 1:
            raise ValueError(f"lanes must be positive, not {lanes}")
        if not 1 <= y_width <= 48:
            raise ValueError(f"y_width must be in 1..48, not {y_width}")
        self.lanes = lanes
        if q_width not in (8, 16):
            raise ValueError(f"q_width must be 8 or 16, not {q_width}")
        self.y_width = y_width
        self.q_width = q_width
        super().__init__(
            {
                "y": In(data.ArrayLayout(signed(y_width), lanes)),
                "factor": In(SCALE_LAYOUT),
                "q": Out(data.ArrayLayout(signed(q_width), lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        q_width, q_max = self.q_width, q_max_of(self.q_width)
        # a product, its sign and the guard bit; one of 16 bits may pass 2**15
        width = q_width + 1 + (q_width > 8)
        # the factor's exponent is in -63..0
        shift = Signal(unsigned(6))
        m.d.sync += shift.eq(-self.factor.e)

        for lane in range(self.lanes):
            product = Signal(signed(self.y_width + SCALE.m_width), name=f"product_{lane}")
            shifted = Signal(signed(width), name=f"shifted_{lane}")
            rounded = Signal(signed(width), name=f"rounded_{lane}")
            m.d.sync += [
                product.eq(self.y[lane] * self.factor.m),
                shifted.eq(shift_guarded(product, shift)),
            ]

            m.d.comb += rounded.eq(round_half(shifted))
            low, top, sign = rounded[: q_width - 1], rounded[q_width - 1], rounded[-1]
            # 2**(q_width - 1) and its negative, which is all zeros under the sign
            above, below = ~sign & top, sign & ~low.any()
            m.d.sync += self.q[lane].eq(Mux(above, q_max, Mux(below, -q_max, rounded)))
        return m

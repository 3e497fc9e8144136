"""SiLU of a vector by tables of its distance to ReLU."""

from typing import Any

from amaranth import Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra_golden.arith.silu import SILU, SiluParams, silu_table
from lutra_golden.timing.arith import SILU_LATENCY
from lutra_hw.arith.fixed import magnitude, round_half
from lutra_hw.pipeline import delay

__all__ = ["Silu"]


class Silu(wiring.Component):
    """``o = i / (1 + exp(-i))`` of every lane, piecewise linear, rounded once.

    Latency is :attr:`latency` cycles: magnitude, table, multiply and add, round. Throughput is one
    vector per cycle; there is no backpressure; the user carries its own valid bits.

    Two lanes share a table, which has a read port for each: 512 words of base and rise, a block
    RAM. The one multiplier of a lane interpolates.

    Model: :func:`lutra_golden.arith.silu.silu`.

    Parameters
    ----------
    lanes : int
    params : :class:`SiluParams`

    Members
    -------
    i : ``In(ArrayLayout(signed(x_width), lanes))``  ``x_frac`` fraction bits.
    o : ``Out(ArrayLayout(signed(x_width), lanes))``  likewise, ``latency`` cycles later.
    """

    latency = SILU_LATENCY

    def __init__(self, lanes: int, params: SiluParams = SILU):
        if isinstance(lanes, bool) or not isinstance(lanes, int):
            raise TypeError(f"lanes must be an integer, not {lanes!r}")
        if lanes < 1:
            raise ValueError(f"lanes must be positive, not {lanes}")
        if not isinstance(params, SiluParams):
            raise TypeError(f"params must be SiluParams, not {params!r}")
        self.lanes = lanes
        self.params = params
        vector = data.ArrayLayout(signed(params.x_width), lanes)
        super().__init__({"i": In(vector), "o": Out(vector)})

    def elaborate(self, platform):
        m = Module()
        base, rise = (values.tolist() for values in silu_table(self.params))
        entry = data.StructLayout(
            {
                "base": unsigned(max(base).bit_length()),
                "rise": signed(max(max(rise).bit_length(), (-min(rise)).bit_length()) + 1),
            }
        )
        rows: list[Any] = [{"base": b, "rise": r} for b, r in zip(base, rise, strict=True)]
        for first in range(0, self.lanes, 2):
            table = Memory(shape=entry, depth=len(rows), init=rows)
            m.submodules[f"table_{first // 2}"] = table
            for lane in range(first, min(first + 2, self.lanes)):
                self._lane(m, lane, table.read_port())
        return m

    def _lane(self, m, lane, segment):
        """The stages of one lane, with its read port of a table."""
        params, rest_bits = self.params, self.params.rest_bits
        x, half_bits = self.i[lane], params.half_bits

        # cycle 1: magnitude, and what ReLU makes of the argument
        u = Signal(params.x_width, name=f"u_{lane}")
        relu = Signal(params.x_width - 1, name=f"relu_{lane}")
        m.d.sync += [u.eq(magnitude(x)), relu.eq(Mux(x[-1], 0, x[:-1]))]
        relu_3 = delay(m, relu, self.latency - 2)[-1]

        # cycle 2: the segment, a fine one below the split
        coarse_start = params.x_frac - params.coarse_bits
        fine_start = params.x_frac - params.fine_bits
        split, limit = params.x_frac + params.split_bits, params.x_frac + params.limit_bits
        coarse, inside = Signal(name=f"coarse_{lane}"), Signal(name=f"inside_{lane}")
        rest = Signal(rest_bits, name=f"rest_{lane}")
        m.d.comb += [
            coarse.eq(u[split:limit].any()),
            segment.addr.eq(
                Mux(
                    coarse,
                    u[coarse_start:limit] | (1 << half_bits),
                    u[fine_start:split],
                )
            ),
        ]
        m.d.sync += [
            inside.eq(~u[limit:].any()),
            rest.eq(Mux(coarse, u[:coarse_start], u[:fine_start] << (coarse_start - fine_start))),
        ]

        # cycle 3: with one guard bit, for cycle 4 to round half up
        cut = params.table_frac + rest_bits - params.x_frac - 1
        gap = Signal(len(segment.data.base) + rest_bits, name=f"gap_{lane}")
        inside_3 = Signal(name=f"inside_{lane}_3")
        m.d.sync += [
            gap.eq((segment.data.base << rest_bits) + segment.data.rise * rest),
            inside_3.eq(inside),
        ]
        lost = Signal(len(gap) - cut, name=f"lost_{lane}")
        m.d.comb += lost.eq(Mux(inside_3, round_half(gap[cut:]), Const(0)))
        m.d.sync += self.o[lane].eq(relu_3 - lost)

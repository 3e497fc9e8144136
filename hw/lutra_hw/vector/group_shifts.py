"""Shifts of groups of activations, from the largest magnitude of each."""

from functools import reduce

from amaranth import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra_golden.matmul.engine import LANES, EngineParams
from lutra_hw.matmul.contract import group_shift

__all__ = ["GroupShifts"]


def _maximum(a, b):
    return Mux(a > b, a, b)


class GroupShifts(wiring.Component):
    """What each group of a token's activations is shifted left by.

    A first pass over the token's words keeps the largest product of each group; a second one, when
    the token's largest is known, compares them. A group is ``n_words`` words, or ``n_words_short``
    if ``short``; the last one of a token may have less.

    A word's ``quantize`` may come 2 cycles after the ``measure`` of its group's last word, and
    ``shift`` follows it by ``latency`` cycles; a word per cycle, no backpressure. After a reset
    nothing is under way.

    Model: :func:`lutra_golden.arith.quantize.group_exponents`.

    Parameters
    ----------
    params : :class:`EngineParams`  with groups of activations.
    n_words_short : words of a group if ``short``.
    n_peaks : magnitudes that come together.
    width : bits of a magnitude.

    Members
    -------
    short : ``In(1)``
    measure, first, last : ``In(1)``; ``peaks`` are of a word of the first pass, the token's first,
        its last.
    peaks : ``In(n_peaks * unsigned(width))``
    y_max : ``In(unsigned(width))``  the token's largest, from the second pass's begin to its end.
    quantize, quantize_first, quantize_last : ``In(1)``; a word of the second pass.
    shift : ``Out``; of the word that ``quantize`` came with 3 cycles before.
    """

    latency = 3

    def __init__(self, params: EngineParams, n_words_short: int, n_peaks: int, width: int) -> None:
        assert params.a_groups is not None
        self.params, self.n_words_short, self.n_peaks = params, n_words_short, n_peaks
        self.n_words = params.a_groups.size // LANES
        self.n_groups = -(-params.act_tiles * params.depth_tile // LANES // n_words_short)
        super().__init__(
            {
                "short": In(1),
                "measure": In(1),
                "first": In(1),
                "last": In(1),
                "peaks": In(data.ArrayLayout(unsigned(width), n_peaks)),
                "y_max": In(unsigned(width)),
                "quantize": In(1),
                "quantize_first": In(1),
                "quantize_last": In(1),
                "shift": Out(group_shift(params)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shift_max = self.params.a_shift_max
        width = len(self.y_max)

        m.submodules.memory = memory = Memory(shape=unsigned(width), depth=self.n_groups, init=[])
        w_port, r_port = memory.write_port(), memory.read_port()

        # the first pass: a group's largest, and whether it is complete
        begins, ends, index = self._walk(m, self.measure, self.first, self.last, "measured")
        peak = Signal(width, reset_less=True)
        with m.If(self.measure):
            largest = reduce(_maximum, [self.peaks[k] for k in range(self.n_peaks)])
            m.d.sync += peak.eq(Mux(begins | (largest > peak), largest, peak))
        complete, written = Signal(), Signal.like(index, name="written")
        m.d.sync += [complete.eq(ends), written.eq(index)]
        m.d.comb += [
            w_port.en.eq(complete),
            w_port.addr.eq(written),
            w_port.data.eq(peak),
        ]

        # the second pass: how often a group's largest can be doubled
        *_, index = self._walk(
            m, self.quantize, self.quantize_first, self.quantize_last, "quantized"
        )
        m.d.comb += r_port.addr.eq(index)
        fits = Signal(shift_max)
        m.d.sync += [
            fits.eq(Cat(r_port.data <= self.y_max[e:] for e in range(1, shift_max + 1))),
            # one of 2**n - 1 that are set from the first on
            self.shift.eq(shift_max - sum(fits)),
        ]
        return m

    def _walk(self, m, valid, first, last, name):
        """Place of a word in the groups: ``(begins, ends, index)`` of its group."""
        within = Signal(range(self.n_words), name=f"{name}_word")
        index = Signal(range(self.n_groups), name=f"{name}_group")
        count, ends, place = (
            Signal.like(within, name=f"{name}_count"),
            Signal(name=f"{name}_ends"),
            Signal.like(index, name=f"{name}_index"),
        )
        whole = Mux(self.short, self.n_words_short - 1, self.n_words - 1)
        m.d.comb += [
            count.eq(Mux(first, 0, within)),
            place.eq(Mux(first, 0, index)),
            ends.eq(valid & ((count == whole) | last)),
        ]
        with m.If(valid):
            m.d.sync += [within.eq(Mux(ends, 0, count + 1)), index.eq(place + ends)]
        return count == 0, ends, place

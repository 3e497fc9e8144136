"""Activations of a tile of tokens: their buffer, and their sums over a depth tile."""

from amaranth import Cat, Module, Mux, Shape, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.matmul.engine import LANES, EngineParams
from lutra_hw.matmul.contract import act_write_port, depth_tile_layout, group_shift

__all__ = [
    "ActivationBuffer",
    "ActivationSums",
    "activations_layout",
    "shifts_layout",
    "sums_layout",
]


def activations_layout(params: EngineParams) -> data.ArrayLayout:
    """A depth tile of ``step_tokens`` tokens; the activation of the lowest depth in the LSBs."""
    return data.ArrayLayout(depth_tile_layout(params), params.step_tokens)


def shifts_layout(params: EngineParams) -> data.ArrayLayout:
    """What the depth tile of each of ``step_tokens`` tokens is shifted left by; with groups of
    activations only."""
    return data.ArrayLayout(group_shift(params), params.step_tokens)


def _plain_sum(params: EngineParams) -> Shape:
    largest = params.depth_tile << (params.a_width - 1)
    return signed((largest - 1).bit_length() + 1)


def sums_layout(params: EngineParams) -> data.ArrayLayout:
    """A sum of ``depth_tile`` activations for each of ``step_tokens`` tokens, which engines with
    offsets have shifted as the group is."""
    width = _plain_sum(params).width + (params.a_shift_max if params.offset_width else 0)
    return data.ArrayLayout(signed(width), params.step_tokens)


def _reciprocal(divisor: int, limit: int) -> tuple[int, int]:
    """Return ``(factor, shift)`` with ``n * factor >> shift == n // divisor`` for n < ``limit``."""
    for shift in range(2 * limit.bit_length() + 1):
        factor = -(-(1 << shift) // divisor)
        if all(n * factor >> shift == n // divisor for n in range(limit)):
            return factor, shift
    raise AssertionError("a shift of twice the width is enough for every divisor")


class ActivationBuffer(wiring.Component):
    """Activations of a tile: written eight at a time, read by depth tiles of ``step_tokens``
    tokens.

    A write is in memory two cycles after ``w.en``. ``o`` follows ``fetch`` by one cycle and then
    holds until the next fetch. Token t is in bank ``t % step_tokens``, at group ``t //
    step_tokens``. With groups of activations the shift of a depth tile lies beside its first word.

    Parameters
    ----------
    params : :class:`EngineParams`

    Members
    -------
    w : ``In(act_write_port(params))``
    fetch : ``In(1)``
    group, tile : ``In``; which activations to fetch.
    o : ``Out(activations_layout(params))``
    shift : ``Out(shifts_layout(params))``  likewise; with groups of activations.
    """

    def __init__(self, params: EngineParams) -> None:
        if params.depth_tile % LANES:
            raise ValueError(
                f"depth_tile must be a multiple of {LANES} (activations of a word), not "
                f"{params.depth_tile}"
            )
        self.params = params
        members = {
            "w": In(act_write_port(params)),
            "fetch": In(1),
            "group": In(range(params.pass_tokens // params.step_tokens)),
            "tile": In(range(params.act_tiles)),
            "o": Out(activations_layout(params)),
        }
        if params.a_groups is not None:
            members["shift"] = Out(shifts_layout(params))
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        p = self.params

        n_words = p.depth_tile // LANES
        factor, shift = _reciprocal(n_words, p.act_tiles * n_words)
        shape = unsigned(self.w.data.shape().size)
        n_bits = LANES * p.a_width
        tile = Signal(range(p.act_tiles))
        word = Signal(range(n_words))
        write, w_word = Signal(), Signal.like(word)
        w_tile, w_token, w_data = Signal.like(tile), Signal(range(p.pass_tokens)), Signal(shape)

        # the word's number in its tile is the remainder of a division by a constant
        product = sum(self.w.addr.word << bit for bit in range(shift + 1) if factor >> bit & 1)
        m.d.comb += tile.eq(product >> shift)
        m.d.comb += word.eq(self.w.addr.word - tile * n_words)
        m.d.sync += [
            write.eq(self.w.en),
            w_word.eq(word),
            w_tile.eq(tile),
            w_token.eq(self.w.addr.token),
            w_data.eq(self.w.data),
        ]
        log2_step_tokens = exact_log2(p.step_tokens)
        for token in range(p.step_tokens):
            outputs = []
            for index in range(n_words):
                depth = (p.pass_tokens // p.step_tokens) << len(tile)
                width = n_bits if index else shape.width
                m.submodules[f"bank_{token}_{index}"] = bank = Memory(
                    shape=unsigned(width), depth=depth, init=[]
                )
                w_port, r_port = bank.write_port(), bank.read_port()
                m.d.comb += [
                    w_port.en.eq(write & (w_word == index) & (w_token[:log2_step_tokens] == token)),
                    w_port.addr.eq(Cat(w_tile, w_token[log2_step_tokens:])),
                    w_port.data.eq(w_data),
                    r_port.en.eq(self.fetch),
                    r_port.addr.eq(Cat(self.tile, self.group)),
                ]
                outputs.append(r_port.data[:n_bits])
                if width > n_bits:
                    m.d.comb += self.shift[token].eq(r_port.data[n_bits:])
            m.d.comb += self.o[token].eq(Cat(outputs))
        return m


class ActivationSums(wiring.Component):
    """Sums of a depth tile's activations, in order of their starts; shared by all rows.

    With groups of activations the shift of the depth tile stays beside its sum.

    ``start`` in cycle t begins a sum over ``i``, valid from the next cycle until the next start;
    eight activations a cycle are added for each token, so that the next start comes at cycle
    ``t + depth_tile / 8`` or later, and the sum may be the one that ``o`` shows from cycle
    ``t + depth_tile / 8 + 2`` on. ``o`` is the oldest sum, until ``take`` drops it; at most
    ``depth`` sums wait.

    Parameters
    ----------
    params : :class:`EngineParams`
    depth : a power of two from 2 on.

    Members
    -------
    start : ``In(1)``
    i : ``In(activations_layout(params))``
    take : ``In(1)``
    o : ``Out(sums_layout(params))``
    i_shift, o_shift : ``In(shifts_layout(params))``, ``Out``; as ``i`` and ``o``, with groups of
        activations.
    """

    def __init__(self, params: EngineParams, depth: int) -> None:
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two from 2 on, not {depth}")
        self.params, self.depth = params, depth
        members = {
            "start": In(1),
            "i": In(activations_layout(params)),
            "take": In(1),
            "o": Out(sums_layout(params)),
        }
        if params.a_groups is not None:
            layout = shifts_layout(params)
            members |= {"i_shift": In(layout), "o_shift": Out(layout)}
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        p = self.params

        n_words = p.depth_tile // LANES
        layout = data.ArrayLayout(_plain_sum(p), p.step_tokens)
        index, read, add = Signal(range(n_words)), Signal(), Signal()
        first, last = Signal(reset_less=True), Signal(reset_less=True)
        part_width = p.a_width + exact_log2(LANES)
        parts = Signal(data.ArrayLayout(signed(part_width), p.step_tokens), reset_less=True)
        totals, results = Signal(layout, reset_less=True), Signal(layout)
        stored = self._stored(m, results, read)
        m.submodules.queue = queue = Memory(shape=unsigned(len(stored)), depth=self.depth, init=[])
        w_port, r_port = queue.write_port(), queue.read_port(domain="comb")
        written, taken = Signal(range(self.depth)), Signal(range(self.depth))
        for token in range(p.step_tokens):
            words = [
                Cat(self.i[token][LANES * word + lane] for lane in range(LANES))
                for word in range(n_words)
            ]
            chosen = Signal(data.ArrayLayout(signed(p.a_width), LANES), name=f"chosen_{token}")
            with m.Switch(index):
                for word, value in enumerate(words):
                    with m.Case(word):
                        m.d.comb += chosen.eq(value)
            m.d.comb += results[token].eq(parts[token] + Mux(first, 0, totals[token]))
            with m.If(read):
                m.d.sync += parts[token].eq(_tree([chosen[lane] for lane in range(LANES)]))
            with m.If(add):
                m.d.sync += totals[token].eq(results[token])
        m.d.comb += [
            w_port.en.eq(add & last),
            w_port.addr.eq(written),
            w_port.data.eq(stored),
            r_port.addr.eq(taken),
        ]
        size = self.o.shape().size
        m.d.comb += self.o.eq(r_port.data[:size])
        if p.a_groups is not None:
            m.d.comb += self.o_shift.eq(r_port.data[size:])

        m.d.sync += [add.eq(read), first.eq(index == 0), last.eq(index == n_words - 1)]
        with m.If(self.start):
            m.d.sync += [index.eq(0), read.eq(1)]
        with m.Elif(index == n_words - 1):
            m.d.sync += read.eq(0)
        with m.Elif(read):
            m.d.sync += index.eq(index + 1)
        with m.If(w_port.en):
            m.d.sync += written.eq(written + 1)
        with m.If(self.take):
            m.d.sync += taken.eq(taken + 1)
        return m

    def _stored(self, m, results, read):
        """What is kept of the sums: with groups of activations shifted, if offsets multiply them,
        and the shifts."""
        p = self.params
        if p.a_groups is None:
            return results.as_value()
        shifts = Signal(shifts_layout(p), reset_less=True)
        with m.If(read):
            m.d.sync += shifts.eq(self.i_shift)
        if not p.offset_width:
            return Cat(results, shifts)
        shifted = Signal(sums_layout(p))
        for token in range(p.step_tokens):
            m.d.comb += shifted[token].eq(results[token] << shifts[token])
        return Cat(shifted, shifts)


def _tree(values):
    """Sum of signed values, added in pairs."""
    while len(values) > 1:
        values = [a + b for a, b in zip(values[0::2], values[1::2], strict=True)]
    return values[0]

"""Lookup tables of signed sums: their generation, and the lookups of a weight word's codes."""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lutra.hw.matmul.contract import TILE_COMMAND
from lutra.sim.golden.matmul.table import ENTRIES, GROUP
from lutra.sim.golden.matmul.ternary import TernaryParams

__all__ = ["Lookup", "SignedSum", "TableGenerator", "signed_term", "table_write_port"]


def table_write_port(params: TernaryParams) -> data.StructLayout:
    """One entry of every table in a cycle; ``select`` says which of the two sets of tables.

    Values are in offset binary: ``value + 2 ** (entry_width - 1)``.
    """
    return data.StructLayout(
        {
            "en": 1,
            "select": 1,
            "entry": 4,
            "values": data.ArrayLayout(unsigned(params.entry_width), params.n_tables),
        }
    )


class TableGenerator(wiring.Component):
    """Walks the depth tiles and tokens of a command and writes their tables, two sets in turn.

    The tables of a pass (one depth tile of one token) take ``n_entries`` cycles: one to fetch
    the activations, one for each entry but entry 0, which is zero and never written. They begin as
    soon as a set is free. ``available`` rises a cycle before the last entry is written, two
    cycles before a lookup that is issued in the cycle of the rise.

    Parameters
    ----------
    params : :class:`TernaryParams`

    Members
    -------
    load : ``In(1)``  take ``cmd``; only while ``idle``.
    cmd : ``In(TILE_COMMAND)``
    idle : ``Out(1)``  every table of the command is written or under way.
    available : ``Out(1)``  the tables of set ``select`` may be used.
    select : ``Out(1)``
    free : ``In(1)``  the last lookup in set ``select`` has been issued.
    fetch, token, tile : ``Out``; to the activation buffer.
    i : ``In(k_tile * signed(a_width))``  from it.
    w : ``Out(table_write_port(params))``
    """

    def __init__(self, params: TernaryParams) -> None:
        self.params = params
        super().__init__(
            {
                "load": In(1),
                "cmd": In(TILE_COMMAND),
                "idle": Out(1),
                "available": Out(1),
                "select": Out(1),
                "free": In(1),
                "fetch": Out(1),
                "token": Out(range(params.m_tile)),
                "tile": Out(range(params.act_tiles)),
                "i": In(data.ArrayLayout(signed(params.a_width), params.k_tile)),
                "w": Out(table_write_port(params)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        p = self.params

        # signs of the entry in the first stage (activations 0 and 1), then of activation 2
        step, entry = Signal(range(p.n_entries)), Signal(range(p.n_entries))
        coefficient = [Signal(signed(2), name=f"coefficient_{i}") for i in range(GROUP)]
        with m.Switch(step):
            for index, signs in enumerate(ENTRIES):
                with m.Case(index):
                    m.d.comb += [c.eq(int(s)) for c, s in zip(coefficient, signs, strict=True)]
        c_last = Signal(signed(2))
        m.d.sync += [c_last.eq(coefficient[2]), entry.eq(step)]
        for t in range(p.n_tables):
            a = [self.i[GROUP * t + i] for i in range(GROUP)]
            pair = Signal(p.a_width + 1, name=f"pair_{t}")
            with m.If(step != 0):
                first = Mux(coefficient[0][0], a[0].as_unsigned(), 0)
                m.d.sync += pair.eq(_add_times(first, coefficient[1], a[1]))
            total = _add_times(pair, c_last, a[2])
            m.d.comb += self.w.values[t].eq(Cat(total[: p.a_width + 1], ~total[p.a_width + 1]))

        last_entry = p.n_entries - 1
        full, target = Signal(2), Signal()
        n_tokens, n_tiles = Signal(8), Signal(16)
        token_first = Signal(range(p.m_tile))
        tokens_left, tiles_left, run = Signal(8), Signal(16), Signal()
        start = Signal()
        m.d.comb += [
            start.eq(run & (step == 0) & ~full.bit_select(target, 1)),
            self.fetch.eq(start),
            self.idle.eq(~run),
            self.available.eq(full.bit_select(self.select, 1)),
            self.w.en.eq(entry != 0),
            self.w.entry.eq(entry),
        ]
        with m.If(start):
            m.d.sync += step.eq(1)
            with m.If(tokens_left != 0):
                m.d.sync += [tokens_left.eq(tokens_left - 1), self.token.eq(self.token + 1)]
            with m.Else():
                m.d.sync += [tokens_left.eq(n_tokens), self.token.eq(token_first)]
                m.d.sync += [tiles_left.eq(tiles_left - 1), self.tile.eq(self.tile + 1)]
                with m.If(tiles_left == 0):
                    m.d.sync += run.eq(0)
        with m.Elif(step == last_entry):
            m.d.sync += [step.eq(0), target.eq(~target)]
        with m.Elif(step != 0):
            m.d.sync += step.eq(step + 1)
        # writes trail the step by one cycle
        m.d.sync += self.w.select.eq(target)

        with m.If(step == last_entry - 1):
            m.d.sync += full.bit_select(target, 1).eq(1)
        with m.If(self.free):
            m.d.sync += [full.bit_select(self.select, 1).eq(0), self.select.eq(~self.select)]
        with m.If(self.load):
            m.d.sync += [
                run.eq(1),
                token_first.eq(self.cmd.token_first),
                n_tokens.eq(self.cmd.token_count - 1),
                n_tiles.eq(self.cmd.k_tiles - 1),
                tokens_left.eq(self.cmd.token_count - 1),
                tiles_left.eq(self.cmd.k_tiles - 1),
                self.token.eq(self.cmd.token_first),
                self.tile.eq(0),
            ]
        return m


def _add_times(value, sign, addend):
    """Sum of ``value`` and ``addend`` times a sign of -1, 0, 1, one bit wider than ``value``."""
    width = len(value) + 1
    term = Mux(sign[0], _invert_if(sign[1], _sign_extend(addend, width)), 0)
    return _add(_sign_extend(value, width), term, sign[1])


def _add(a, b, carry):
    """Sum of two words and a bit, as one carry chain: synthesis may make two of three operands."""
    return (Cat(Const(1, 1), a) + Cat(carry, b))[1:]


def _sign_extend(value, width):
    return Cat(value, value[-1].replicate(width - len(value)))


class SignedSum(wiring.Component):
    """Sum of ``n`` values, each negated where its bit of ``negate`` is set.

    Every adder adds or subtracts and hands the sign of its first operand on, so that one operand
    of the carry chain is as it comes and a bit of an adder is one LUT; the last sign is left to
    whoever takes the sum. Values are in offset binary: in it a negation inverts, as in two's
    complement, and nothing needs a sign extension. Registers follow every second level of the
    tree and the last: ``latency`` stages, each with its enable; one sum per cycle.

    Parameters
    ----------
    n, width : number of values and their width.

    Members
    -------
    en : ``In(latency)``  bit k enables the registers of stage k.
    i : ``In(n * unsigned(width))``  ``value + 2 ** (width - 1)``.
    negate : ``In(n)``
    o : ``Out(unsigned(o_width))``  in offset binary.
    o_negate : ``Out(1)``  the sum is ``-o``; see :func:`signed_term`.
    """

    def __init__(self, n: int, width: int) -> None:
        if n < 1:
            raise ValueError(f"n must be positive, not {n}")
        self.n, self.width = n, width
        self.n_levels = ceil_log2(n)
        self.o_width = width + self.n_levels
        self.latency = max(1, -(-self.n_levels // 2))
        super().__init__(
            {
                "en": In(self.latency),
                "i": In(data.ArrayLayout(unsigned(width), n)),
                "negate": In(n),
                "o": Out(self.o_width),
                "o_negate": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        values = [(self.i[index], self.negate[index]) for index in range(self.n)]
        for level in range(self.n_levels):
            width = self.width + level
            sums = values[len(values) & ~1 :]
            for index, ((a, a_negate), (b, b_negate)) in enumerate(
                zip(values[0::2], values[1::2], strict=False)
            ):
                differ = Signal(name=f"differ_{level}_{index}")
                total = Signal(width + 1, name=f"sum_{level}_{index}")
                m.d.comb += differ.eq(a_negate ^ b_negate)
                b = _invert_if(differ, _extend(b, width))
                m.d.comb += total.eq(_add(_extend(a, width), b, differ))
                sums.insert(index, (total, a_negate))
            values = sums
            if level % 2 == 1 and level + 1 < self.n_levels:
                with m.If(self.en[level // 2]):
                    values = [self._register(m, level, i, v) for i, v in enumerate(values)]
        ((value, negate),) = values
        with m.If(self.en[-1]):
            m.d.sync += [self.o.eq(value), self.o_negate.eq(negate)]
        return m

    @staticmethod
    def _register(m, level, index, value_and_negate):
        value, negate = value_and_negate
        delayed = Signal.like(value, name=f"stage_{level}_{index}")
        negate_delayed = Signal(name=f"stage_negate_{level}_{index}")
        m.d.sync += [delayed.eq(value), negate_delayed.eq(negate)]
        return delayed, negate_delayed


def _extend(value, width):
    """``value`` in offset binary of more bits."""
    if len(value) == width:
        return value
    return Cat(value[:-1], (~value[-1]).replicate(width - len(value)), value[-1])


def _invert_if(condition, value):
    # an exclusive or with a replicated bit would be as small, but slow to simulate
    return value ^ Mux(condition, (1 << len(value)) - 1, 0)


def signed_term(value, negate):
    """Return ``(term, carry)`` whose sum is ``value``, in offset binary, negated or not."""
    term = _invert_if(negate, value) - (1 << (len(value) - 1))
    return term[: len(value)].as_signed(), negate


class Lookup(wiring.Component):
    """Table memories, one reader per table and lane, and the lanes' sums.

    Latency is ``latency`` cycles from ``word`` to ``o``, throughput one word per cycle. Without
    ``en`` a word goes nowhere and ``o`` stays.

    Parameters
    ----------
    params : :class:`TernaryParams`

    Members
    -------
    w : ``In(table_write_port(params))``
    en : ``In(1)``
    word : ``In(word_bits)``
    select : ``In(1)``  the set of tables that ``word`` looks in.
    o, negate : ``Out``; the lanes' sums, as :class:`SignedSum` gives them.
    """

    def __init__(self, params: TernaryParams) -> None:
        self.params = params
        self._sums = [SignedSum(params.n_tables, params.entry_width) for _ in range(params.lanes)]
        self.latency = self._sums[0].latency
        self.o_width = self._sums[0].o_width
        super().__init__(
            {
                "w": In(table_write_port(params)),
                "en": In(1),
                "word": In(params.word_bits),
                "select": In(1),
                "o": Out(data.ArrayLayout(unsigned(self.o_width), params.lanes)),
                "negate": Out(params.lanes),
            }
        )

    def elaborate(self, platform):
        m = Module()
        p = self.params

        enables = Signal(self.latency)
        m.d.comb += enables[0].eq(self.en)
        m.d.sync += enables[1:].eq(enables)
        for lane, lane_sum in enumerate(self._sums):
            m.submodules[f"sum_{lane}"] = lane_sum
            m.d.comb += lane_sum.en.eq(enables)
            m.d.comb += [self.o[lane].eq(lane_sum.o), self.negate[lane].eq(lane_sum.o_negate)]
        zeros = [1 << (p.entry_width - 1)] * 32  # entry 0 is never written
        for t in range(p.n_tables):
            m.submodules[f"table_{t}"] = table = Memory(
                shape=unsigned(p.entry_width), depth=32, init=zeros
            )
            w_port = table.write_port()
            m.d.comb += [
                w_port.en.eq(self.w.en),
                w_port.addr.eq(Cat(self.w.entry, self.w.select)),
                w_port.data.eq(self.w.values[t]),
            ]
            for lane, lane_sum in enumerate(self._sums):
                code = self.word.word_select(lane * p.n_tables + t, p.code_width)
                r_port = table.read_port(domain="comb")
                m.d.comb += [
                    r_port.addr.eq(Cat(code[:4], self.select)),
                    lane_sum.i[t].eq(r_port.data),
                    lane_sum.negate[t].eq(code[4]),
                ]
        return m

"""A lane of the lookup engine: one token's activations, tables, sums and accumulators."""

from amaranth import Cat, Const, Module, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In
from amaranth.utils import exact_log2

from lutra_golden.matmul.engine import LANES
from lutra_golden.matmul.lookup import BIT_GROUP, CODE_WIDTH, LookupParams
from lutra_hw.arith.fixed import sign_extend
from lutra_hw.fabric.accumulate import Accumulate
from lutra_hw.fabric.sums import PackedSum
from lutra_hw.fabric.tables import LookupTables
from lutra_hw.matmul.contract import acc_read_port, act_write_port
from lutra_hw.pipeline import delay

__all__ = ["LookupLane", "load_layout", "row_layout", "step_layout"]


def load_layout(params: LookupParams) -> data.StructLayout:
    """A word of activations on its way to the tables' generators: word ``index`` of its tile."""
    words = params.act_tiles * params.depth_tile // LANES
    return data.StructLayout(
        {
            "en": 1,
            "set": 1,
            "index": range(params.n_tables * BIT_GROUP // LANES),
            "word": range(words),
            "group": range(params.pass_tokens // params.step_tokens),
        }
    )


def step_layout(params: LookupParams) -> data.StructLayout:
    """A step of writing tables: ``entry`` is the one before it and an activation, or less it."""
    return data.StructLayout(
        {
            "valid": 1,
            "set": 1,
            "first": 1,  # no activation: the bias alone
            "negate": 1,  # tables of the negated activations
            "subtract": 1,
            "activation": range(BIT_GROUP),
            "entry": CODE_WIDTH,
        }
    )


def row_layout(params: LookupParams) -> data.StructLayout:
    """Control bits that travel with a weight word to the accumulators."""
    return data.StructLayout(
        {
            "valid": 1,
            "finish": 1,  # last of its command; without ``valid`` the command was empty
            "first": 1,  # of all depth tiles and planes: nothing was there before
            "double": 1,  # a plane begins
            "mask": params.step_tokens,  # tokens of the group that are the command's
            "block": range(params.acc_blocks // params.block_rows),  # of ``step_rows`` rows
            "group": range(params.pass_tokens // params.step_tokens),
        }
    )


class LookupLane(wiring.Component):
    """Tables of one token, ``n_tables`` of them, which ``step_rows`` rows look up in each cycle.

    Table t of a depth tile takes activations ``j * n_tables + t``. An entry is written two cycles
    after its ``step`` left the control; ``index`` of tables ``2 k`` and ``2 k + 1`` comes k cycles
    after that of the first two, and the sum is added to the accumulators in the cycle after the one
    in which ``row`` shows its block.

    Parameters
    ----------
    params : :class:`LookupParams`

    Members
    -------
    w : ``In(act_write_port(params))``  activations of this lane's tokens.
    load : ``In(load_layout(params))``
    step : ``In(step_layout(params))``
    index : ``In``; codes, ``[n_tables][step_rows]``. While entries are written the rows that are 7
        modulo 8 show the entry.
    row : ``In(row_layout(params))``
    en : ``In(1)``  the sum is added, a cycle after its ``row``.
    acc : ``In(acc_read_port(params))``  latency 1, at any time.
    """

    def __init__(self, params: LookupParams) -> None:
        self.params = params
        codes = data.ArrayLayout(data.ArrayLayout(CODE_WIDTH, params.step_rows), params.n_tables)
        super().__init__(
            {
                "w": In(act_write_port(params)),
                "load": In(load_layout(params)),
                "step": In(step_layout(params)),
                "index": In(codes),
                "row": In(row_layout(params)),
                "en": In(1),
                "acc": In(acc_read_port(params)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        p = self.params

        words = self._activations(m)
        m.submodules.tables = tables = LookupTables(
            p.n_tables, p.step_rows, p.entry_width, p.fabric
        )
        self._entries(m, words, tables)
        m.submodules.sums = sums = PackedSum(p.step_rows, p.n_tables, p.entry_width, p.fabric)
        m.d.comb += [tables.index.eq(self.index), sums.i.eq(tables.o)]
        self._accumulate(m, sums)
        return m

    def _activations(self, m):
        """The buffer of activations, and words of a tile beside each other for the generators."""
        p = self.params
        depth = (p.pass_tokens // p.step_tokens) << len(self.load.word)
        m.submodules.buffer = buffer = Memory(
            shape=unsigned(LANES * p.a_width), depth=depth, init=[]
        )
        w_port, r_port = buffer.write_port(), buffer.read_port()
        group = self.w.addr.token[exact_log2(p.step_tokens) :]
        m.d.comb += [
            w_port.en.eq(self.w.en),
            w_port.addr.eq(Cat(self.w.addr.word, group)),
            w_port.data.eq(self.w.data),
            r_port.en.eq(self.load.en),
            r_port.addr.eq(Cat(self.load.word, self.load.group)),
        ]
        loaded = delay(m, self.load, 1, name="loaded", flags=("en",))[-1]
        parts = exact_log2(p.n_tables // LANES)
        m.submodules.words = words = Memory(
            shape=unsigned(p.n_tables * p.a_width), depth=16, init=[]
        )
        words_port = words.write_port(granularity=LANES * p.a_width)
        part = loaded.index[:parts] if parts else Const(0, 1)
        m.d.comb += [
            words_port.en.eq(loaded.en << part),
            words_port.addr.eq(Cat((loaded.index >> parts)[:3], loaded.set)),
            words_port.data.eq(r_port.data.replicate(p.n_tables // LANES)),
        ]
        return words

    def _entries(self, m, words, tables):
        """Every entry is the one before it and one activation, added or subtracted."""
        p = self.params
        chosen, adding, writing = delay(m, self.step, 3, name="step", flags=("valid",))[1:]
        r_port = words.read_port(domain="comb")
        m.d.comb += [
            r_port.addr.eq(Cat(chosen.activation, chosen.set)),
            tables.en.eq(writing.valid),
            tables.entry.eq(writing.entry),
        ]
        minus = Signal()
        m.d.comb += minus.eq(adding.subtract ^ adding.negate)
        for t in range(p.n_tables):
            a = Signal(p.a_width, name=f"a_{t}", reset_less=True)
            m.d.sync += a.eq(r_port.data.word_select(t, p.a_width))
            total = Signal(p.entry_width, name=f"total_{t}", reset_less=True)
            term = (a ^ minus.replicate(p.a_width)).as_signed()
            # one carry chain
            wide = sign_extend(term, p.entry_width)[: p.entry_width]
            following = (Cat(Const(1, 1), total) + Cat(minus, wide))[1 : p.entry_width + 1]
            with m.If(adding.valid):
                m.d.sync += total.eq(following)
                with m.If(adding.first):
                    m.d.sync += total.eq(p.entry_bias)
            m.d.comb += tables.values[t].eq(total)

    def _accumulate(self, m, sums):
        """Add the rows of a word to what their block holds."""
        p = self.params
        n_pairs = p.block_rows // 2
        log2_pairs = exact_log2(n_pairs)
        control = delay(m, self.row, 1, name="row", reset_less=True)[-1]
        pair = Signal(max(1, log2_pairs))
        m.d.sync += pair.eq(self.acc.addr.pair[:log2_pairs] if log2_pairs else 0)
        depth = (p.pass_tokens // p.step_tokens) << len(self.row.block)
        width = 2 * LANES * p.acc_width
        group = self.acc.addr.token[exact_log2(p.step_tokens) :]
        shown = []
        for number in range(n_pairs):
            m.submodules[f"bank_{number}"] = bank = Memory(
                shape=unsigned(width), depth=depth, init=[]
            )
            w_port, r_port, acc_port = bank.write_port(), bank.read_port(), bank.read_port()
            values = []
            for row in range(2 * LANES):
                name = f"add_{number}_{row}"
                m.submodules[name] = add = Accumulate(p.acc_width, sums.o_width, p.fabric)
                # the bias of all tables is the top bit
                value = sums.o[2 * LANES * number + row]
                m.d.comb += [
                    add.acc.eq(r_port.data.word_select(row, p.acc_width)),
                    add.i.eq(Cat(value[:-1], ~value[-1])),
                    add.first.eq(control.first),
                    add.double.eq(control.double),
                ]
                values.append(add.o)
            m.d.comb += [
                r_port.en.eq(self.row.valid),
                r_port.addr.eq(Cat(self.row.block, self.row.group)),
                w_port.en.eq(self.en),
                w_port.addr.eq(Cat(control.block, control.group)),
                w_port.data.eq(Cat(values)),
                acc_port.addr.eq(Cat(self.acc.addr.pair[log2_pairs:], group)),
            ]
            shown.append(acc_port.data)
        with m.Switch(pair):
            for number, word in enumerate(shown):
                with m.Case(number):
                    m.d.comb += self.acc.data.eq(word)

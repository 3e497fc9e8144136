"""Lookup tables of signed sums: their generation, and the lookups of a weight word's codes."""

from itertools import product

import numpy as np
from amaranth import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lutra_golden.matmul.engine import adder_tree_latency
from lutra_golden.matmul.table import ENTRIES, GROUP
from lutra_golden.matmul.ternary import TernaryParams
from lutra_hw.matmul.contract import DatapathSignature, TableWriterSignature

__all__ = ["SignedSum", "TableGenerator", "TernaryDatapath", "signed_term", "table_write_port"]

_SHARED_PORTS = 7
"""Rows that read one table memory: an UltraScale RAM32M16 has seven read ports of two bits."""


def table_write_port(params: TernaryParams) -> data.StructLayout:
    """One entry of every table in a cycle; ``set`` says of which of the two sets.

    Values are in offset binary: ``value + 2 ** (entry_width - 1)``.
    """
    return data.StructLayout(
        {
            "en": 1,
            "set": 1,
            "entry": 4,
            "values": data.ArrayLayout(unsigned(params.entry_width), params.n_tables),
        }
    )


def _walk() -> list[tuple[int, int, int]]:
    """Every entry but entry 0 in an order in which each is its forerunner, at first entry 0, plus
    a sign times one activation: ``(entry, activation, sign)``."""
    entries = [tuple(signs) for signs in ENTRIES.tolist()]

    def extend(path: list[int]) -> list[int] | None:
        if len(path) == len(entries):
            return path
        for index, signs in enumerate(entries):
            change = np.abs(np.subtract(signs, entries[path[-1]])).sum()
            if index not in path and change == 1:
                found = extend([*path, index])
                if found:
                    return found
        return None

    path = extend([0])
    assert path is not None
    changes = np.diff(ENTRIES[path], axis=0)
    activations = np.abs(changes).argmax(axis=1)
    return [
        (entry, int(activation), int(change[activation]))
        for entry, activation, change in zip(path[1:], activations, changes, strict=True)
    ]


_WALK = _walk()


class TableGenerator(wiring.Component):
    """Writes the tables of a depth tile, entry by entry.

    ``start`` in cycle t begins them, of activations that ``i`` holds from the next cycle until the
    next start; they are written when cycle ``t + prepare_cycles`` begins, and the next start comes
    then or later. Entry 0 is zero and never written.

    Parameters
    ----------
    params : :class:`TernaryParams`

    Members
    -------
    See :class:`lutra_hw.matmul.contract.TableWriterSignature`; ``w`` is :func:`table_write_port`.
    """

    def __init__(self, params: TernaryParams) -> None:
        self.params = params
        super().__init__(TableWriterSignature(params, table_write_port(params)))

    def elaborate(self, platform):
        m = Module()
        p = self.params

        # every entry is its forerunner and one activation, added or subtracted
        step, run = Signal(range(len(_WALK))), Signal()
        select, subtract, entry = Signal(range(GROUP)), Signal(), Signal.like(self.w.entry)
        fetch, carry, first = Signal(), Signal(), Signal()
        m.d.comb += run.eq(self.start | (step != 0))
        with m.If(run):
            m.d.sync += step.eq(Mux(step == len(_WALK) - 1, 0, step + 1))
        with m.Switch(step):
            for index, (target, activation, sign) in enumerate(_WALK):
                with m.Case(index):
                    m.d.sync += [
                        entry.eq(target),
                        select.eq(activation),
                        subtract.eq(sign < 0),
                    ]
        m.d.sync += [
            fetch.eq(run),
            first.eq(fetch & ~self.w.en),
            carry.eq(subtract),
            self.w.en.eq(fetch),
            self.w.entry.eq(entry),
        ]
        with m.If(self.start):
            m.d.sync += self.w.set.eq(self.start_set)
        for t in range(p.n_tables):
            former = Signal(p.entry_width, name=f"former_{t}")
            a, term = Signal(p.a_width, name=f"a_{t}"), Signal(p.a_width, name=f"term_{t}")
            with m.Switch(select):
                for index in range(GROUP):
                    with m.Case(index):
                        m.d.comb += a.eq(self.i[GROUP * t + index])
            m.d.sync += term.eq(_invert_if(subtract, a))
            # with the first term the top bit turns: from zero to offset binary
            extended = Cat(term, term[-1], term[-1] ^ first)
            value = _add(former, extended, carry)[: p.entry_width]
            m.d.comb += self.w.values[t].eq(value)
            with m.If(self.start):
                m.d.sync += former.eq(0)
            with m.Elif(self.w.en):
                m.d.sync += former.eq(value)
        return m


def _add(a, b, carry):
    """Sum of two words of equal width and a bit, one bit wider, as one carry chain.

    A difference, since synthesis keeps its first operand where a LUT of the chain wants it as it
    comes, and since it does not make two adders of one with three operands. In the bit below the
    words ``carry`` meets itself, and carries without a LUT.
    """
    zero = Const(0, 1)
    return (Cat(carry, a, zero) - ~Cat(carry, b, zero))[1 : len(a) + 2]


class SignedSum(wiring.Component):
    """Sum of ``n`` values, each negated where its bit of ``negate`` is set.

    Every adder adds or subtracts and hands the sign of its first operand on, so that one operand
    of the carry chain is as it comes and a bit of an adder is one LUT; the user of the
    sum applies the last sign. If ``relative``, the bit of value k > 0 says whether its sign differs
    from that of value ``k & (k - 1)``, the first operand where value k enters as the second: what
    the adder needs to know, without a LUT. Values are in offset binary: in it a negation inverts,
    as in two's complement, and nothing needs a sign extension. Registers follow every second level
    of the tree and the last: ``latency`` stages, each with its enable; one sum per cycle.

    Parameters
    ----------
    n, width : number of values and their width.
    relative : meaning of ``negate``.

    Members
    -------
    en : ``In(latency)``  bit k enables the registers of stage k.
    i : ``In(n * unsigned(width))``  ``value + 2 ** (width - 1)``.
    negate : ``In(n)``
    o : ``Out(unsigned(o_width))``  in offset binary.
    o_negate : ``Out(1)``  the sum is ``-o``; see :func:`signed_term`.
    """

    def __init__(self, n: int, width: int, *, relative: bool = False) -> None:
        if n < 1:
            raise ValueError(f"n must be positive, not {n}")
        self.n, self.width, self.relative = n, width, relative
        self.n_levels = ceil_log2(n)
        self.o_width = width + self.n_levels
        self.latency = adder_tree_latency(n)
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
                m.d.comb += differ.eq(b_negate if self.relative else a_negate ^ b_negate)
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


class TernaryDatapath(wiring.Component):
    """Tables of signed sums in distributed memory, and the sums of their entries for each row.

    Two sets of tables: one is written while the other is looked up. A set begun by ``start`` in
    cycle t may be looked up from cycle ``t + prepare_cycles`` on, and the next start comes then or
    later. Latency is ``latency`` cycles from ``en`` to ``o``, throughput one step per cycle;
    without ``en`` nothing moves and ``o`` stays. After a reset all tables are of zeros.

    Bit order of ``digits``: see the model.
    Model: :func:`lutra_golden.matmul.ternary.lookup_matmul`. Source: TeLLMe, arXiv 2510.15926,
    section on table-lookup matmul; the mirrored tables are ours.

    Parameters
    ----------
    params : :class:`TernaryParams`

    Members
    -------
    See :class:`lutra_hw.matmul.contract.DatapathSignature`.
    """

    def __init__(self, params: TernaryParams) -> None:
        if not isinstance(params, TernaryParams):
            raise TypeError(f"params must be TernaryParams, not {params!r}")
        self.params = params
        self._sums = [
            SignedSum(params.n_tables, params.entry_width, relative=True)
            for _ in range(params.step_rows)
        ]
        self.latency, self.prepare_cycles = params.datapath_latency, params.prepare_cycles
        self.o_width = self._sums[0].o_width
        super().__init__(DatapathSignature(params, self.o_width))

    def elaborate(self, platform):
        m = Module()
        p = self.params

        m.submodules.generator = generator = TableGenerator(p)
        m.d.comb += [
            generator.start.eq(self.start),
            generator.start_set.eq(self.start_set),
            generator.i.eq(self.i),
        ]
        enables = Signal(self.latency)
        m.d.comb += enables[0].eq(self.en)
        m.d.sync += enables[1:].eq(enables)
        for row, row_sum in enumerate(self._sums):
            m.submodules[f"sum_{row}"] = row_sum
            m.d.comb += row_sum.en.eq(enables)
            m.d.comb += [self.o[row].eq(row_sum.o), self.negate[row].eq(row_sum.o_negate)]
        zeros = [1 << (p.entry_width - 1)] * 32  # entry 0 is never written
        # rows that are left over have a memory each, which is no more than a RAM32M16
        n_shared = p.step_rows // _SHARED_PORTS * _SHARED_PORTS
        readers = [range(row, row + _SHARED_PORTS) for row in range(0, n_shared, _SHARED_PORTS)]
        readers += [range(row, row + 1) for row in range(n_shared, p.step_rows)]
        for t, rows in product(range(p.n_tables), readers):
            m.submodules[f"table_{t}_{rows[0]}"] = table = Memory(
                shape=unsigned(p.entry_width), depth=32, init=zeros
            )
            w_port = table.write_port()
            m.d.comb += [
                w_port.en.eq(generator.w.en),
                w_port.addr.eq(Cat(generator.w.entry, generator.w.set)),
                w_port.data.eq(generator.w.values[t]),
            ]
            for row in rows:
                code = self.digits.word_select(row * p.n_tables + t, p.code_width)
                r_port = table.read_port(domain="comb")
                m.d.comb += [
                    r_port.addr.eq(Cat(code[:4], self.set)),
                    self._sums[row].i[t].eq(r_port.data),
                    self._sums[row].negate[t].eq(code[4]),
                ]
        return m

"""Tables of four activations, and the rows' sums of their entries: the lut engine's datapath."""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lutra_golden.matmul.lut import ENTRIES, GROUP, LutParams, Tables
from lutra_hw.matmul.contract import DatapathSignature, TableWriterSignature
from lutra_hw.matmul.table import SignedSum

__all__ = ["LutDatapath", "TablePrecompute", "TableWriter", "entry_write_port"]

N_ENTRIES = len(ENTRIES)


class TablePrecompute(wiring.Component):
    """The eight entries of the table of four activations.

    Combinational: it fits behind whatever computes the activations. Twelve adders: the sums and
    differences of two pairs, and their sums and differences. Bit 0 of all entries is the same
    wire: the signs do not change whether a sum is odd.

    Model: :func:`lutra_golden.matmul.lut.lut_table`. Source: LUT Tensor Core, ISCA'25, section
    3.1 (precompute as an operator of its own, symmetric tables); the shared bit is ours.

    Parameters
    ----------
    a_width : bits of an activation.

    Members
    -------
    i : ``In(4 * signed(a_width))``
    o : ``Out(8 * unsigned(a_width + 2))``  in offset binary: ``value + 2 ** (a_width + 1)``.
    """

    def __init__(self, a_width: int) -> None:
        if a_width < 1:
            raise ValueError(f"a_width must be positive, not {a_width}")
        self.a_width = a_width
        super().__init__(
            {
                "i": In(data.ArrayLayout(signed(a_width), GROUP)),
                "o": Out(data.ArrayLayout(unsigned(a_width + 2), N_ENTRIES)),
            }
        )

    def elaborate(self, platform):
        m = Module()

        a = self.i
        odd = Signal()
        m.d.comb += odd.eq(a[0][0] ^ a[1][0] ^ a[2][0] ^ a[3][0])
        pairs = {}
        for name, value in (
            ("first_sum", a[0] + a[1]),
            ("first_difference", a[0] - a[1]),
            ("last_sum", a[3] + a[2]),
            ("last_difference", a[3] - a[2]),
        ):
            pairs[name] = Signal(signed(self.a_width + 1), name=name)
            m.d.comb += pairs[name].eq(value)
        for index, (s0, s1, s2, _) in enumerate(ENTRIES.tolist()):
            first = pairs["first_sum" if s0 == s1 else "first_difference"]
            last = pairs["last_sum" if s2 > 0 else "last_difference"]
            entry = Signal(signed(self.a_width + 2), name=f"entry_{index}")
            m.d.comb += entry.eq(last + first if s0 > 0 else last - first)
            m.d.comb += self.o[index].eq(Cat(odd, entry[1:-1], ~entry[-1]))
        return m


def entry_write_port(params: LutParams) -> data.StructLayout:
    """One entry of every table of a step; ``odd`` is bit 0 of all entries of a table, ``values``
    are the others, in offset binary."""
    return data.StructLayout(
        {
            "en": 1,
            "entry": range(N_ENTRIES),
            "step": range(params.steps),
            "set": 1,
            "odd": params.n_tables,
            "values": data.ArrayLayout(unsigned(params.entry_width - 1), params.n_tables),
        }
    )


class TableWriter(wiring.Component):
    """Writes the tables of a depth tile to memories: one entry of each table of a step per cycle.

    ``start`` in cycle t begins them, of activations that ``i`` holds from the next cycle until the
    next start; they are written when cycle ``t + prepare_cycles`` begins, and the next start comes
    then or later. Three adders a table.

    Model: :func:`lutra_golden.matmul.lut.lut_table`.

    Parameters
    ----------
    params : :class:`LutParams`

    Members
    -------
    See :class:`lutra_hw.matmul.contract.TableWriterSignature`; ``w`` is :func:`entry_write_port`.
    """

    def __init__(self, params: LutParams) -> None:
        self.params = params
        super().__init__(TableWriterSignature(params, entry_write_port(params)))

    def elaborate(self, platform):
        m = Module()
        p = self.params

        run, entry, step, target = (
            Signal(),
            Signal(range(N_ENTRIES)),
            Signal(range(p.steps)),
            Signal(),
        )
        m.d.sync += [
            self.w.en.eq(run),
            self.w.entry.eq(entry),
            self.w.step.eq(step),
            self.w.set.eq(target),
        ]
        # signs of activations 0, 1 and 2: a clear bit subtracts
        minus = [~entry[0], ~entry[1], ~entry[2]]
        group_width = p.a_width * GROUP
        for t in range(p.n_tables):
            groups = [
                self.i.as_value().word_select(s * p.n_tables + t, group_width)
                for s in range(p.steps)
            ]
            chosen = Signal(data.ArrayLayout(signed(p.a_width), GROUP), name=f"activations_{t}")
            with m.Switch(step):
                for s, group in enumerate(groups):
                    with m.Case(s):
                        m.d.comb += chosen.eq(group)
            first, last = (
                Signal(signed(p.a_width + 1), name=f"{n}_{t}") for n in ("first", "last")
            )
            with m.If(run):
                m.d.sync += [
                    first.eq(_add(chosen[0], chosen[1], minus[0] ^ minus[1])),
                    last.eq(_add(chosen[3], chosen[2], minus[2])),
                ]
            total = _add(last, first, ~self.w.entry[0])
            m.d.comb += self.w.odd[t].eq(total[0])
            m.d.comb += self.w.values[t].eq(Cat(total[1:-1], ~total[-1]))

        with m.If(run):
            m.d.sync += entry.eq(entry + 1)
            with m.If(entry == N_ENTRIES - 1):
                m.d.sync += [step.eq(step + 1), run.eq(step != p.steps - 1)]
        with m.If(self.start):
            m.d.sync += [run.eq(1), entry.eq(0), step.eq(0), target.eq(self.start_set)]
        return m


def _add(a, b, subtract):
    """``a + b`` or ``a - b``, one bit wider, as one carry chain."""
    width = len(a) + 1
    a, b = (Cat(value, value[-1]) for value in (a, b))
    b = b ^ Mux(subtract, (1 << width) - 1, 0)
    return (Cat(Const(1, 1), a) + Cat(subtract, b))[1 : width + 1]


class LutDatapath(wiring.Component):
    """Looked-up sums of ``step_depth`` activations for one bit of the weights of ``step_rows``
    rows.

    Each row selects one of eight entries of each table by three bits; the fourth, the sign, goes
    along to the adders. Latency is ``latency`` cycles from ``en`` to ``o``, throughput one step
    per cycle; without ``en`` nothing moves and ``o`` stays. Two sets of tables: one is prepared
    while the other is looked up.

    With :attr:`Tables.MEMORY` a table is a distributed memory with a reader for each row, written
    entry by entry: what suits an FPGA. With :attr:`Tables.LOGIC` the entries are wires, computed
    in every step from the step's activations, and their selection is logic: in standard cells,
    where a flip-flop is as large as an adder's bit, eight stored entries of four activations, twice
    and for every step, cost more than computing them where ``step_rows`` rows share them.

    Bit order of ``digits``: see the model.
    Model: :meth:`lutra_golden.matmul.lut.LutParams.matmul`. Source: LUT Tensor Core, ISCA'25,
    section 3.2; the deferred signs, the shared bit 0 and the recomputed tables are ours.

    Parameters
    ----------
    params : :class:`LutParams`

    Members
    -------
    See :class:`lutra_hw.matmul.contract.DatapathSignature`.
    """

    def __init__(self, params: LutParams) -> None:
        if not isinstance(params, LutParams):
            raise TypeError(f"params must be LutParams, not {params!r}")
        self.params = params
        self._sums = [
            SignedSum(params.n_tables, params.entry_width) for _ in range(params.step_rows)
        ]
        self.latency, self.prepare_cycles = params.datapath_latency, params.prepare_cycles
        self.o_width = self._sums[0].o_width
        super().__init__(DatapathSignature(params, self.o_width))

    def elaborate(self, platform):
        m = Module()
        p = self.params

        enables = Signal(self.latency)
        m.d.comb += enables[0].eq(self.en)
        m.d.sync += enables[1:].eq(enables)
        codes = []
        for row, row_sum in enumerate(self._sums):
            m.submodules[f"sum_{row}"] = row_sum
            fields = [
                self.digits.word_select(row * p.n_tables + t, GROUP) for t in range(p.n_tables)
            ]
            codes.append([field[: GROUP - 1] for field in fields])
            m.d.comb += [
                row_sum.en.eq(enables),
                row_sum.negate.eq(Cat(field[GROUP - 1] for field in fields)),
                self.o[row].eq(row_sum.o),
                self.negate[row].eq(row_sum.o_negate),
            ]

        lookups = self._memories(m) if p.tables == Tables.MEMORY else self._logic(m)
        for t, lookup in enumerate(lookups):
            for row, row_sum in enumerate(self._sums):
                m.d.comb += row_sum.i[t].eq(lookup(row, codes[row][t]))
        return m

    def _memories(self, m):
        """For each table, the entry of a row's code: a reader of the table's memory."""
        p = self.params
        m.submodules.writer = writer = TableWriter(p)
        m.d.comb += [
            writer.start.eq(self.start),
            writer.start_set.eq(self.start_set),
            writer.i.eq(self.i),
        ]
        w = writer.w
        # bit 0 of the entries is the same for all rows
        n_places = 2 << ceil_log2(p.steps)
        m.submodules.odd = odd = Memory(shape=unsigned(p.n_tables), depth=n_places, init=[])
        odd_write, odd_read = odd.write_port(), odd.read_port(domain="comb")
        m.d.comb += [
            odd_write.en.eq(w.en),
            odd_write.addr.eq(Cat(w.step, w.set)),
            odd_write.data.eq(w.odd),
            odd_read.addr.eq(Cat(self.step, self.set)),
        ]

        def lookup(table, bit_0, code):
            r_port = table.read_port(domain="comb")
            m.d.comb += r_port.addr.eq(Cat(code, self.step, self.set))
            return Cat(bit_0, r_port.data)

        for t in range(p.n_tables):
            m.submodules[f"table_{t}"] = table = Memory(
                shape=unsigned(p.entry_width - 1), depth=N_ENTRIES * n_places, init=[]
            )
            w_port = table.write_port()
            m.d.comb += [
                w_port.en.eq(w.en),
                w_port.addr.eq(Cat(w.entry, w.step, w.set)),
                w_port.data.eq(w.values[t]),
            ]
            yield lambda row, code, table=table, t=t: lookup(table, odd_read.data[t], code)

    def _logic(self, m):
        """For each table, the entry of a row's code: one of the eight sums at hand."""
        p = self.params
        width = p.step_depth * p.a_width
        newer, older = self.i.as_value(), Signal(p.depth_tile * p.a_width)
        newer_set, activations = Signal(), Signal(width)
        with m.If(self.start):
            m.d.sync += [older.eq(newer), newer_set.eq(self.start_set)]
        with m.Switch(Cat(self.step, self.set ^ newer_set)):
            for old, tile in enumerate((newer, older)):
                for step in range(p.steps):
                    with m.Case(old << len(self.step) | step):
                        m.d.comb += activations.eq(tile.word_select(step, width))

        def lookup(name, entries, code):
            entry = Signal(p.entry_width, name=name)
            with m.Switch(code):
                for index in range(N_ENTRIES):
                    with m.Case(index):
                        m.d.comb += entry.eq(entries[index])
            return Cat(entries[0][0], entry[1:])

        for t in range(p.n_tables):
            m.submodules[f"table_{t}"] = table = TablePrecompute(p.a_width)
            m.d.comb += table.i.eq(activations.word_select(t, GROUP * p.a_width))
            yield lambda row, code, t=t, o=table.o: lookup(f"entry_{t}_{row}", o, code)

"""Lookup tables with many readers, packed into the memories of LUTs."""

from itertools import product

from amaranth import Cat, ClockSignal, Const, Instance, Module, Signal, Value, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra_golden.core.fabric import Fabric

__all__ = ["ENTRY_WIDTH", "LookupTables"]

ENTRY_WIDTH = 5
"""Bits of the number of an entry: a table has 32."""
_PORTS = "ABCDEFGH"
"""Ports of a RAM32M16, of two bits each; all are written at the address of port H."""
_PORT_WIDTH = 2


class LookupTables(wiring.Component):
    """Tables of 32 entries, each with many readers.

    Reads are combinational. A write of one entry of every table is seen from the next cycle on,
    one write per cycle; no entry is reset, and before its first write it is zero.

    While ``en`` is high the caller holds ``index[t][n]`` at ``entry`` for every t and n, and ``o``
    is not defined: the port through which a RAM is written is one that reads at other times, and
    nothing selects its address. Of a multiple of eight readers those suffice that are 7 modulo 8.
    In :attr:`Fabric.XCUP` eight reads of two bits share a RAM32M16, of whatever tables and readers:
    a lookup takes ``ceil(width / 2)`` LUTs.

    Source: Xilinx UG574, chapter on distributed RAM, for the ports of a RAM32M16; the pool of
    reads is ours.

    Parameters
    ----------
    n_tables, n_readers : number of tables, and of readers of each.
    width : bits of an entry.
    fabric : :class:`Fabric`

    Members
    -------
    en : ``In(1)``  write ``values``.
    entry : ``In(5)``  number of the entry that is written.
    values : ``In(n_tables * unsigned(width))``
    index : ``In(n_tables * n_readers * 5)``  entry that a reader reads.
    o : ``Out(n_tables * n_readers * unsigned(width))``
    """

    def __init__(self, n_tables: int, n_readers: int, width: int, fabric: Fabric) -> None:
        sizes = {"n_tables": n_tables, "n_readers": n_readers, "width": width}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        self.n_tables, self.n_readers, self.width = n_tables, n_readers, width
        self.fabric = Fabric(fabric)
        super().__init__(
            {
                "en": In(1),
                "entry": In(ENTRY_WIDTH),
                "values": In(data.ArrayLayout(unsigned(width), n_tables)),
                "index": In(data.ArrayLayout(data.ArrayLayout(ENTRY_WIDTH, n_readers), n_tables)),
                "o": Out(data.ArrayLayout(data.ArrayLayout(unsigned(width), n_readers), n_tables)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        if self.fabric == Fabric.XCUP:
            self._pack(m)
        else:
            self._store(m)
        return m

    def _store(self, m):
        """Memories as tools know them."""
        for t in range(self.n_tables):
            m.submodules[f"table_{t}"] = table = Memory(
                shape=unsigned(self.width), depth=1 << ENTRY_WIDTH, init=[]
            )
            w_port = table.write_port()
            m.d.comb += [
                w_port.en.eq(self.en),
                w_port.addr.eq(self.entry),
                w_port.data.eq(self.values[t]),
            ]
            for n in range(self.n_readers):
                r_port = table.read_port(domain="comb")
                m.d.comb += [r_port.addr.eq(self.index[t][n]), self.o[t][n].eq(r_port.data)]

    def _pack(self, m):
        """Reads of two bits, eight to a RAM.

        Readers of the same bits are neighbours, so that few RAMs are written with each bit.
        """
        first_bits = range(0, self.width, _PORT_WIDTH)
        reads = list(product(range(self.n_tables), first_bits, range(self.n_readers)))
        words = {key: [] for key in product(range(self.n_tables), range(self.n_readers))}
        for number, first in enumerate(range(0, len(reads), len(_PORTS))):
            # a port that reads nothing is written all the same
            connections = {f"i_ADDR{port}": self.entry for port in _PORTS}
            connections |= {f"i_DI{port}": Const(0, _PORT_WIDTH) for port in _PORTS}
            for port, (t, bit, n) in zip(_PORTS, reads[first:], strict=False):
                read = Signal(_PORT_WIDTH, name=f"read_{t}_{bit}_{n}")
                value = Value.cast(self.values[t])[bit : bit + _PORT_WIDTH]
                connections[f"i_ADDR{port}"] = self.index[t][n]
                connections[f"i_DI{port}"] = Cat(value, Const(0, _PORT_WIDTH))[:_PORT_WIDTH]
                connections[f"o_DO{port}"] = read
                words[t, n].append(read)
            m.submodules[f"ram_{number}"] = Instance(
                "RAM32M16", i_WCLK=ClockSignal(), i_WE=self.en, **connections
            )
        for (t, n), parts in words.items():
            m.d.comb += self.o[t][n].eq(Cat(parts))

"""Chunks of a tile, as its table has them, one after another."""

from amaranth import C, Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.control.chunks import POSITION_WIDTH, TOKENS_WIDTH
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.buffers import ChunkReadPort

__all__ = ["CHUNK_LAYOUT", "ChunkWalker"]

CHUNK_LAYOUT = data.StructLayout(
    {
        "first": unsigned(TOKENS_WIDTH),  # token of the tile
        "count": unsigned(TOKENS_WIDTH),
        "position": unsigned(POSITION_WIDTH),  # of the first token in its sequence
        "kv_base": unsigned(ADDRESS_WIDTH),  # byte address of the sequence's keys and values
        "last": unsigned(1),  # of the tile
    }
)
"""A chunk: tokens ``first`` to ``first + count - 1`` of a tile."""


class ChunkWalker(wiring.Component):
    """Chunks of a tile of ``n_tokens`` tokens, one after another, and then from the first again.

    The first one is there 2 cycles after the table or ``n_tokens`` has changed, the next one 2
    cycles after ``step``; ``valid`` is low in between. After reset the first one is due.

    Model: :func:`lutra_golden.control.chunks.chunks`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    table : ``Out(ChunkReadPort(config))``
    n_tokens : ``In(8)``
    step : ``In(1)``  the chunk was used; only while ``valid``.
    valid : ``Out(1)``
    chunk : ``Out(CHUNK_LAYOUT)``
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "table": Out(ChunkReadPort(config)),
                "n_tokens": In(TOKENS_WIDTH),
                "step": In(1),
                "valid": Out(1),
                "chunk": Out(CHUNK_LAYOUT),
            }
        )

    def elaborate(self, platform):
        m = Module()
        entry, first = self.table.data, Signal(TOKENS_WIDTH)
        number = Signal(range(self.config.pass_tokens))
        left = Signal(TOKENS_WIDTH)
        chunk = self.chunk
        m.d.comb += [
            self.table.addr.entry.eq(number),
            left.eq(self.n_tokens - first),
            chunk.last.eq((entry.n_tokens == 0) | (entry.n_tokens >= left)),
            chunk.first.eq(first),
            chunk.count.eq(Mux(chunk.last, left, entry.n_tokens)),
            chunk.position.eq(entry.position),
            chunk.kv_base.eq(Cat(C(0, ADDRESS_WIDTH - len(entry.page)), entry.page)),
        ]
        m.d.sync += self.valid.eq(~self.step)
        with m.If(self.step):
            m.d.sync += [
                number.eq(Mux(chunk.last, 0, number + 1)),
                first.eq(Mux(chunk.last, 0, first + entry.n_tokens)),
            ]
        return m

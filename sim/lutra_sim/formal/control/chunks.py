"""A ChunkWalker over any table."""

from amaranth import Module, Mux, Signal

from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.control.chunks import ChunkWalker
from lutra_sim.formal.property import Property

__all__ = ["ChunkRules"]


class ChunkRules(Property):
    """Chunks follow each other and cover the tile, whatever the table holds.

    The tile is not empty and stays the same; its user steps only from a chunk that is there.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(ChunkWalker(config))

    def rules(self, m: Module) -> None:
        dut, chunk = self.dut, self.dut.chunk
        pass_tokens = dut.config.pass_tokens
        n_tokens = self.constant(m, range(pass_tokens + 1), "n_tokens")
        self.assume(m, dut.n_tokens == n_tokens, n_tokens != 0, n_tokens <= pass_tokens)
        self.assume(m, ~dut.step | dut.valid)

        # tokens and chunks before this one
        done, number = Signal(range(pass_tokens)), Signal(range(pass_tokens))
        end = chunk.first + chunk.count
        with m.If(dut.step):
            m.d.sync += [done.eq(Mux(chunk.last, 0, end)), number.eq(number + 1)]
            with m.If(chunk.last):
                m.d.sync += number.eq(0)
        self.claim(m, "a chunk begins where the one before ended", chunk.first == done)
        self.claim(m, "a chunk has a token", chunk.count != 0)
        self.claim(m, "no chunk leaves the tile", end <= n_tokens)
        self.claim(m, "the last one ends it", chunk.last == (end == n_tokens))
        self.claim(m, "chunk i is entry i", dut.table.addr.entry == number)
        # for the induction: chunks have a token each
        self.claim(m, "there are entries enough", number <= done)
        self.claim(m, "the tile has a token left", done < n_tokens)

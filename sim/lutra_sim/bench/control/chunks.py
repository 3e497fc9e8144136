"""Tables of chunks for benches: random ones, and the port that units read them by."""

from collections.abc import Sequence
from random import Random
from typing import Any

from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import BOUNDARY_BYTES
from lutra_hw.buffers import ChunkReadPort
from lutra_sim.bench.ports import PortMemory
from lutra_sim.bench.stream import pack

__all__ = ["ChunkTable", "entry_fields", "random_chunks"]


def entry_fields(entry: ChunkEntry) -> dict[str, int]:
    """An entry as units read it."""
    page = entry.kv_base // BOUNDARY_BYTES
    return {"position": entry.position, "n_tokens": entry.n_tokens, "page": page}


def random_chunks(
    rng: Random, config: AcceleratorConfig, n_tokens: int, kv_bases: Sequence[int]
) -> list[ChunkEntry]:
    """Chunks of ``n_tokens`` at any positions, of different sequences.

    As many as there is room for, one, or any number; the last one says its tokens, or too many, or
    nothing.
    """
    bases = rng.sample(kv_bases, len(kv_bases))
    longest = rng.choice([1, n_tokens, n_tokens])
    entries, left = list[ChunkEntry](), n_tokens
    while left:
        count = left if len(bases) == 1 else rng.randint(1, min(left, longest))
        left -= count
        stated = count if left else rng.choice([0, count, 255])
        position = rng.randrange(config.max_context - count + 1)
        entries.append(ChunkEntry(position, stated, bases.pop()))
    return entries


class ChunkTable:
    """The table behind a unit's port ``name``."""

    def __init__(self, dut: Any, config: AcceleratorConfig, name: str = "chunks") -> None:
        self._memory = PortMemory(ChunkReadPort(config))
        # a table of one entry has no address
        self._data = None if config.pass_tokens > 1 else getattr(dut, f"{name}__data")
        self._layout = ChunkReadPort(config).payload_layout
        if self._data is None:
            self._memory.serve(dut, name)

    def load(self, entries: Sequence[ChunkEntry]) -> None:
        """Replace the table; what ``entries`` leave out reads as noise."""
        fields = [entry_fields(entry) for entry in entries]
        if self._data is None:
            self._memory.load(fields)
        else:
            self._data.value = pack(self._layout, fields[0])

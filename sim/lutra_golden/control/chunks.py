"""Chunks of a tile: successive tokens of one sequence, with a position and a cache of their own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lutra_golden.core.ports import ADDRESS_WIDTH, BOUNDARY_BYTES

__all__ = ["PAGE_WIDTH", "POSITION_WIDTH", "TOKENS_WIDTH", "Chunk", "ChunkEntry", "chunks"]

POSITION_WIDTH, TOKENS_WIDTH = 16, 8
PAGE_WIDTH = ADDRESS_WIDTH - (BOUNDARY_BYTES - 1).bit_length()
"""Bits of a position, of a number of tokens, and of a page: a multiple of 4 KB in memory."""


@dataclass(frozen=True)
class ChunkEntry:
    """An element of the registers CHUNK and CHUNK_KV.

    ``n_tokens`` 0 means all tokens that are left; ``kv_base`` is the byte address of the sequence's
    keys and values, at the beginning of a page.
    """

    position: int = 0
    n_tokens: int = 0
    kv_base: int = 0

    def __post_init__(self) -> None:
        page, rest = divmod(self.kv_base, BOUNDARY_BYTES)
        for name, value, width in (
            ("position", self.position, POSITION_WIDTH),
            ("n_tokens", self.n_tokens, TOKENS_WIDTH),
            ("page", page, PAGE_WIDTH),
        ):
            if not 0 <= value < 1 << width:
                raise ValueError(f"{name} must be in 0..{(1 << width) - 1}, not {value}")
        if rest:
            raise ValueError(
                f"kv_base must be a multiple of {BOUNDARY_BYTES}, not {self.kv_base:#x}"
            )

    @property
    def words(self) -> tuple[int, int]:
        """The entry as CHUNK and CHUNK_KV hold it."""
        return self.position | self.n_tokens << POSITION_WIDTH, self.kv_base // BOUNDARY_BYTES

    @classmethod
    def from_words(cls, chunk: int, page: int) -> "ChunkEntry":
        """Entry of what CHUNK and CHUNK_KV keep of two written words."""
        return cls(
            chunk & (1 << POSITION_WIDTH) - 1,
            chunk >> POSITION_WIDTH & (1 << TOKENS_WIDTH) - 1,
            (page & (1 << PAGE_WIDTH) - 1) * BOUNDARY_BYTES,
        )


@dataclass(frozen=True)
class Chunk:
    """Tokens ``tokens`` of a tile, from ``position`` of the sequence at ``kv_base`` on."""

    tokens: slice
    position: int
    kv_base: int

    @property
    def n_tokens(self) -> int:
        """Tokens of the chunk."""
        return self.tokens.stop - self.tokens.start


def chunks(table: Sequence[ChunkEntry], n_tokens: int) -> Iterator[Chunk]:
    """Chunks of a tile of ``n_tokens``, of one sequence each, one behind the other.

    An entry takes at least one token and at most those that are left: a table as long as the tile
    covers it, whatever is in it.
    """
    first = 0
    for entry in table:
        if first == n_tokens:
            return
        left = n_tokens - first
        count = min(entry.n_tokens or left, left)
        yield Chunk(slice(first, first + count), entry.position, entry.kv_base)
        first += count

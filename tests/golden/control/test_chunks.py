"""Chunks of a tile."""

from random import Random

import pytest

from lutra_golden.control.chunks import Chunk, ChunkEntry, chunks


def test_a_chunk_of_zero_tokens_takes_all_that_are_left() -> None:
    table = [ChunkEntry(3, 2, 4096), ChunkEntry(7, 0, 8192), ChunkEntry(9, 1)]
    found = [Chunk(slice(0, 2), 3, 4096), Chunk(slice(2, 5), 7, 8192)]
    assert list(chunks(table, 5)) == found


def test_a_chunk_has_no_more_tokens_than_are_left() -> None:
    assert list(chunks([ChunkEntry(1, 200)], 3)) == [Chunk(slice(0, 3), 1, 0)]


def test_chunks_follow_each_other_whatever_the_table_holds() -> None:
    rng = Random(1)
    for _ in range(200):
        n = rng.randint(1, 8)
        table = [ChunkEntry(rng.randrange(9), rng.randrange(5), 4096 * i) for i in range(n)]
        found = list(chunks(table, n))
        assert [t for c in found for t in range(c.tokens.start, c.tokens.stop)] == list(range(n))
        assert all(c.n_tokens >= 1 for c in found)


@pytest.mark.parametrize(
    "entry", [ChunkEntry(), ChunkEntry(65535, 255, (1 << 40) - 4096), ChunkEntry(0x1234, 5, 0x7000)]
)
def test_an_entry_is_two_registers(entry: ChunkEntry) -> None:
    chunk, page = entry.words
    assert chunk == entry.position + (entry.n_tokens << 16)
    assert page == entry.kv_base >> 12
    assert ChunkEntry.from_words(chunk, page) == entry
    # bits that the registers do not have
    assert ChunkEntry.from_words(chunk | 0xFF << 24, page | 0xF << 28) == entry


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": 1 << 16}, "position must be in 0..65535, not 65536"),
        ({"n_tokens": -1}, "n_tokens must be in 0..255, not -1"),
        ({"kv_base": 1 << 40}, "page must be in 0..268435455, not 268435456"),
        ({"kv_base": 4097}, "kv_base must be a multiple of 4096, not 0x1001"),
    ],
)
def test_an_entry_fits_its_registers(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        ChunkEntry(**changes)
    assert str(error.value) == message

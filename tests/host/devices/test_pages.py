"""Pages of keys and values: who holds them, copies before writes, and what is given back."""

import gc
from collections.abc import Sequence

import pytest

from lutra.devices.pages import NoRoom, PageCopy, PagePool, PageTable


class Pool(PagePool):
    """Three bytes a position, four positions a page; notes what is free again."""

    def __init__(self, n_pages: int) -> None:
        super().__init__("test", 4, 12, n_pages)
        self.freed: list[int] = []
        self.grown: list[int] = []

    def _grow(self, n_used: int) -> None:
        self.grown.append(n_used)

    def _freed(self, pages: Sequence[int]) -> None:
        self.freed += pages


class Table(PageTable):
    """Notes copies and places."""

    def __init__(self, pool: PagePool) -> None:
        super().__init__(pool)
        self.copies: list[PageCopy] = []
        self.places: dict[int, int] = {}

    def _copy_pages(self, copies: Sequence[PageCopy]) -> None:
        self.copies += copies

    def _place(self, index: int, page: int) -> None:
        super()._place(index, page)
        self.places[index] = page

    def check(self) -> None:
        assert self.pages == [self.places[i] for i in range(len(self.pages))]


def test_pages_come_with_positions() -> None:
    pool = Pool(5)
    table = Table(pool)
    for length, n_pages in ((1, 1), (4, 1), (5, 2), (12, 3)):
        table.reserve(0, length, 0)
        assert len(table.pages) == n_pages
    assert (pool.n_held, pool.n_free, table.copies) == (3, 2, [])
    table.reserve(11, 13, 11)
    assert len(set(table.pages)) == 4
    table.check()
    assert pool.grown == [1, 2, 3, 4]


def test_a_common_beginning_is_held_once() -> None:
    pool = Pool(6)
    first, second = Table(pool), Table(pool)
    first.reserve(0, 11, 0)
    second.share(first, 6)
    assert second.pages == first.pages[:2] and pool.n_held == 3
    second.check()
    # the last page has two positions of the second's: they go with it
    second.reserve(6, 9, 6)
    [copy] = second.copies
    assert copy == (first.pages[1], second.pages[1], 2)
    assert second.pages[0] == first.pages[0] and not set(second.pages[1:]) & set(first.pages)
    assert pool.n_held == 5
    second.check()
    # who is alone writes where it is
    first.reserve(5, 12, 5)
    assert not first.copies
    # what is written anew from the beginning is not copied
    first.reserve(0, 4, 0)
    assert not first.copies and first.pages[0] != second.pages[0]
    first.close()
    assert sorted(second.pages) == sorted(pool._holders)  # pyright: ignore[reportPrivateUsage]


def test_of_three_holders_the_last_one_writes_in_place() -> None:
    pool = Pool(3)
    tables = [Table(pool) for _ in range(3)]
    tables[0].reserve(0, 3, 0)
    page = tables[0].pages[0]
    for other in tables[1:]:
        other.share(tables[0], 3)
    for table in tables:
        table.reserve(3, 4, 3)
    assert [len(table.copies) for table in tables] == [1, 1, 0]
    assert tables[2].pages == [page] and pool.n_free == 0


def test_what_does_not_fit_changes_nothing() -> None:
    pool = Pool(3)
    table, other = Table(pool), Table(pool)
    table.reserve(0, 8, 0)
    other.share(table, 8)
    message = (
        "^no memory for 8 more positions on device test: 24 bytes needed, 12 free: close a "
        "session, or load the model with a smaller context$"
    )
    with pytest.raises(NoRoom, match=message):
        other.reserve(7, 12, 7)
    assert other.pages == table.pages and pool.n_free == 1 and not other.copies
    with pytest.raises(NoRoom):
        other.reserve(8, 12, 8, spare=1)
    other.reserve(8, 12, 8)
    with pytest.raises(NoRoom):
        table.reserve(8, 9, 8)
    # what it has needs nothing, whatever is to be left
    other.reserve(8, 12, 8, spare=5)


def test_what_is_closed_or_dropped_is_given_back() -> None:
    pool = Pool(4)
    table, other = Table(pool), Table(pool)
    table.reserve(0, 12, 0)
    other.share(table, 8)
    pages = list(table.pages)
    table.close()
    table.close()
    assert pool.freed == pages[2:] and pool.n_free == 2
    del table, other
    gc.collect()
    assert pool.n_free == 4 and sorted(pool.freed) == sorted(pages)
    again = Table(pool)
    again.reserve(0, 16, 0)
    assert sorted(again.pages) == [0, 1, 2, 3] and pool.grown == [3, 4]


def test_a_limit_below_what_is_held_leaves_nothing_free() -> None:
    pool = Pool(4)
    table = Table(pool)
    table.reserve(0, 12, 0)
    pool.n_pages = 2
    assert pool.n_free == 0

"""Pages of keys and values: who holds them, and which of them may be written.

Memory for keys and values is one pool of pages of equally many positions, of all layers. A session
has a table of pages, which it takes as its positions come. Sessions with a common beginning hold
the same pages; who writes into a page that others hold, too, gets a copy first (PagedAttention,
Kwon et al. 2023, sections 4.2 to 4.4).
"""

import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from lutra_golden.errors import LutraError

__all__ = ["NoRoom", "PageCopy", "PagePool", "PageTable"]


class NoRoom(LutraError):
    """There is no memory for more keys and values, as long as no session gives some back."""


class PageCopy(NamedTuple):
    """The first ``n`` positions of page ``source`` are to be put into page ``target``."""

    source: int
    target: int
    n: int


class PagePool:
    """Up to ``n_pages`` pages of ``page`` positions, each of ``page_bytes`` bytes, of device
    ``name``.

    Not for two threads at once, but for :meth:`give_back`.
    """

    def __init__(self, name: str, page: int, page_bytes: int, n_pages: int = 0) -> None:
        self.name, self.page, self.page_bytes, self.n_pages = name, page, page_bytes, n_pages
        self.n_shared = 0
        """Times that pages were given another holder."""
        self._holders: dict[int, int] = {}
        self._spare: list[int] = []  # pages that were held before
        self._n_used = 0  # pages that were ever held
        self._returned: deque[int] = deque()

    # -- of a device

    def _grow(self, n_used: int) -> None:
        """Have memory for the first ``n_used`` pages; NoRoom if there is none."""

    def _freed(self, pages: Sequence[int]) -> None:
        """Nobody holds these pages any more."""

    # -- pages

    @property
    def n_held(self) -> int:
        """Pages that somebody holds."""
        self.settle()
        return len(self._holders)

    @property
    def n_free(self) -> int:
        """Pages that nobody holds."""
        return max(self.n_pages - self.n_held, 0)

    def take(self, n: int, spare: int = 0) -> list[int]:
        """Pages for one holder; NoRoom, and nothing has changed, unless there are ``n`` of them and
        ``spare`` are left."""
        free = self.n_free
        if n + spare > free:
            raise NoRoom(
                f"no memory for {n * self.page} more positions on device {self.name}: "
                f"{n * self.page_bytes:,} bytes needed, {free * self.page_bytes:,} free: close a "
                "session, or load the model with a smaller context"
            )
        more = max(n - len(self._spare), 0)
        if more:
            self._grow(self._n_used + more)
        found = [self._spare.pop() for _ in range(n - more)]
        found += range(self._n_used, self._n_used + more)
        self._n_used += more
        self._holders.update(dict.fromkeys(found, 1))
        return found

    def hold(self, pages: Sequence[int]) -> None:
        """Count one more holder of each of these, which somebody holds."""
        self.settle()
        self.n_shared += 1
        for page in pages:
            self._holders[page] += 1

    def is_shared(self, page: int) -> bool:
        """True if a page has several holders."""
        return self._holders[page] > 1

    def give_back(self, pages: Sequence[int]) -> None:
        """Count one holder less of each of these; from any thread, and by a garbage collection in
        the middle of any other call."""
        self._returned.extend(pages)

    def settle(self) -> None:
        """Take in what was given back."""
        freed = list[int]()
        while self._returned:
            page = self._returned.popleft()
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                freed.append(page)
        if freed:
            self._spare += freed
            self._freed(freed)


class _Own(NamedTuple):
    """Positions whose pages a table has for itself, unless pages were shared since."""

    first: int
    stop: int
    n_shared: int


class PageTable(ABC):
    """The pages of one sequence, in the order of its positions.

    They are given back when the table is closed or dropped.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.pages: list[int] = []
        self._own = _Own(0, 0, 0)
        # not of a method, which would keep the table
        self._give_back = weakref.finalize(self, pool.give_back, self.pages)
        # a daemon thread may still be in a pass when the process ends
        self._give_back.atexit = False

    # -- of a device

    @abstractmethod
    def _copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Copy positions of pages."""

    def _place(self, index: int, page: int) -> None:
        """Let ``page`` be number ``index`` of the sequence's."""
        self.pages[index : index + 1] = [page]

    # -- pages

    def reserve(self, first: int, stop: int, length: int, spare: int = 0) -> None:
        """Have pages of its own for positions ``first`` to ``stop``, of which those before
        ``length`` are kept; NoRoom, and nothing has changed, unless ``spare`` pages are left."""
        pool, size, own = self.pool, self.pool.page, self._own
        if own.first <= first and stop <= own.stop and own.n_shared == pool.n_shared:
            return  # as most steps find it
        pool.settle()
        n_pages = -(-stop // size)
        held = range(first // size, min(n_pages, len(self.pages)))
        shared = [i for i in held if pool.is_shared(self.pages[i])]
        n_more = max(n_pages - len(self.pages), 0)
        if shared or n_more:
            self._replace(shared, pool.take(len(shared) + n_more, spare), length)
        self._own = _Own(first, n_pages * size, pool.n_shared)

    def _replace(self, shared: Sequence[int], pages: Sequence[int], length: int) -> None:
        """Put ``pages`` in the place of the ``shared`` ones, with what is kept of them, and behind
        all."""
        pool, size = self.pool, self.pool.page
        more = pages[len(shared) :]
        try:
            copies = [
                PageCopy(self.pages[i], page, min(length - i * size, size))
                for i, page in zip(shared, pages, strict=False)
            ]
            self._copy_pages([each for each in copies if each.n > 0])
            for i, page in zip(shared, pages, strict=False):
                before = self.pages[i]
                self._place(i, page)
                pool.give_back([before])
            for page in more:
                self._place(len(self.pages), page)
        except BaseException:
            pool.give_back([page for page in pages if page not in self.pages])
            raise

    def share(self, other: "PageTable", n: int) -> None:
        """Hold the pages of the first ``n`` positions of another one; this one has none yet."""
        assert not self.pages, "it is a new one"
        pages = other.pages[: -(-n // self.pool.page)]
        self.pool.hold(pages)
        for index, page in enumerate(pages):
            self._place(index, page)

    def close(self) -> None:
        """Give the pages back."""
        self._give_back()
        self.pool.settle()

"""Sequences that stay on the device after their generation, for prompts with the same beginning.

They are kept in the order of their last use, within a bound on memory; of several that begin alike
throughout only the longest.
"""

import threading
from collections import deque
from collections.abc import Sequence

import numpy as np

from lutra.serving.sequence import TokenSequence

__all__ = ["LEAST_PREFIX", "KnownPrefixes", "common_prefix"]

LEAST_PREFIX = 8
"""Tokens that two prompts must share before one continues from the other."""


class KnownPrefixes:
    """Sequences of which the latest used are kept, at most ``max_bytes`` in all.

    ``token_bytes`` are the keys and values of one token; those of ``page`` tokens at a time take
    memory. A generation may end anywhere, within a
    garbage collection too; :meth:`put` therefore never waits for another call that is on its way,
    and sequences, which wait for their device, are closed outside of the lock.
    """

    def __init__(self, max_bytes: int, token_bytes: int, page: int = 1) -> None:
        self.max_bytes, self._token_bytes, self._page = max_bytes, token_bytes, page
        self._lock = threading.Lock()
        self._kept: list[TokenSequence] = []  # the latest used last
        self._arrived: deque[TokenSequence] = deque()
        self._closed = False

    @property
    def n_bytes(self) -> int:
        """Bytes of keys and values that are kept, as if none were shared."""
        pages = sum(-(-len(each.tokens) // self._page) for each in list(self._kept))
        return self._token_bytes * self._page * pages

    def __len__(self) -> int:
        return len(self._kept)

    def pop(self, tokens: Sequence[int]) -> tuple[TokenSequence, int] | None:
        """Remove and return the sequence with the longest common prefix, and the prefix length.

        The last of ``tokens`` never counts, because its logits have to be computed. None if fewer
        than :data:`LEAST_PREFIX` tokens are shared.
        """
        with self._lock:
            dropped = self._settle()
            found = self._best(tokens)
        _close(dropped)
        return found

    def longest(self, tokens: Sequence[int]) -> int:
        """Tokens that :meth:`pop` would find, 0 if it would find nothing."""
        with self._lock:
            dropped = self._settle()
            most = max((common_prefix(each.tokens, tokens[:-1]) for each in self._kept), default=0)
        _close(dropped)
        return most if most >= LEAST_PREFIX else 0

    def put(self, sequence: TokenSequence) -> None:
        """Keep a sequence, and close the oldest ones beyond the memory bound."""
        self._arrived.append(sequence)
        if self._lock.locked():
            return  # maybe by this very thread
        with self._lock:
            dropped = self._settle()
        _close(dropped)

    def drop_oldest(self) -> bool:
        """Close the sequence that was not used for longest; False if there is none."""
        with self._lock:
            dropped = self._settle()
            oldest = self._kept[:1]
            del self._kept[:1]
        _close(dropped + oldest)
        return bool(oldest)

    def close(self) -> None:
        """Close all, and whatever comes later."""
        with self._lock:
            self._closed = True
            dropped = self._settle()
        _close(dropped)

    def _settle(self) -> list[TokenSequence]:
        """Take in what arrived; returns what is too much."""
        dropped: list[TokenSequence] = []
        while self._arrived:
            dropped += self._keep(self._arrived.popleft())
        while self._kept and (self._closed or self.n_bytes > self.max_bytes):
            dropped.append(self._kept.pop(0))
        return dropped

    def _keep(self, new: TokenSequence) -> list[TokenSequence]:
        """Keep one as the latest used; returns those that say nothing beyond another one."""
        for i, each in enumerate(self._kept):
            if _begins(each.tokens, new.tokens):
                self._kept.append(self._kept.pop(i))
                return [new]
        less, more = list[TokenSequence](), list[TokenSequence]()
        for each in self._kept:
            (less if _begins(new.tokens, each.tokens) else more).append(each)
        self._kept = [*more, new]
        return less

    def _best(self, tokens: Sequence[int]) -> tuple[TokenSequence, int] | None:
        shared = [common_prefix(each.tokens, tokens[:-1]) for each in self._kept]
        if not shared or max(shared) < LEAST_PREFIX:
            return None
        n = max(shared)
        # of equals the one that loses least, and then the latest used
        best = min(
            (i for i, each in enumerate(shared) if each == n),
            key=lambda i: (len(self._kept[i].tokens), -i),
        )
        return self._kept.pop(best), n


def _close(sequences: Sequence[TokenSequence]) -> None:
    for each in sequences:
        each.close()


def _begins(tokens: Sequence[int], with_: Sequence[int]) -> bool:
    """True if ``tokens`` begin with all of others."""
    n = len(with_)
    # of texts that differ the ends do mostly, too
    return n <= len(tokens) and (not n or tokens[n - 1] == with_[-1]) and tokens[:n] == with_


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(np.array(a[:n]) != np.array(b[:n]))
    return int(different[0]) if len(different) else n

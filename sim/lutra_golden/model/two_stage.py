"""The best tokens of a head in two stages: upper bits of every row, then all bits of a few rows.

Exact: tokens and logits are those of the whole head, whatever its weights and activations are.
The proof and what it saves stand in ``docs/numerics.md``, "Head in two stages".
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int, exact_matmul, round_shift
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.packed import PackedModel
from lutra_golden.vector.residual import logits

__all__ = ["MOST_BEST", "Best", "KnownWeights", "TwoStageHead", "likeliest", "lower_bits"]

MOST_BEST = 64
"""Best tokens that devices look for; whoever wants more takes all logits."""
_UPPER_BITS = 4  # of a code, which the first stage reads
_TRITS = 9  # what the third of five trits counts; the first stage reads the upper three
_MORE = 8  # rows, besides twice the wanted ones, whose logits say what the best ones reach
_SHARE = 4  # the part of all rows up to which rows are read one by one
_KEPT = 1 << 22  # weights of a head whose first stage stays in memory
_ROWS = 2048  # of a matrix, made floating point at a time


@dataclass(frozen=True)
class KnownWeights:
    """Upper bits of weights: twice a weight is ``middle``, give or take ``reach``.

    ``middle`` is ``[N, K]``; ``reach``, ``[N, G]``, is common to the successive weights of a group.
    """

    middle: Int
    reach: Int

    @classmethod
    def of_codes(cls, weights: GroupedWeights, low: int) -> "KnownWeights":
        """Of codes without their ``low`` lower bits."""
        unknown = (1 << low) - 1
        reach = unknown * weights.scale
        least = replace(weights, codes=weights.codes & ~np.uint8(unknown)).doubled()
        return cls(least + reach.repeat(weights.group, axis=1), reach)

    @classmethod
    def of_trits(cls, weights: NDArray[np.int8]) -> "KnownWeights":
        """Of integers of five balanced trits, without the lower two."""
        furthest = _TRITS // 2
        upper = (weights.astype(np.int64) + furthest) // _TRITS
        return cls(2 * _TRITS * upper, np.full((len(weights), 1), 2 * furthest))

    def sums(self, a: Int) -> tuple[Int, Int]:
        """Sums ``[M, N]`` of activations ``[M, K]`` times the middles, and the most that sums of
        the weights themselves can be above or below them."""
        groups = np.abs(a).reshape(len(a), self.reach.shape[1], -1).sum(axis=2)
        return _product(a, self.middle), _product(groups, self.reach)


@dataclass(frozen=True)
class Best:
    """The ``tokens`` ``[n]`` of the largest ``logits``, from the largest on, the first token first
    of equals. ``rescored`` rows were read whole; ``fallback`` if that were all rows, because too
    many could still win."""

    tokens: Int
    logits: Int
    rescored: int
    fallback: bool


class TwoStageHead:
    """The head of ``model`` in two stages; up to ``most`` rows are read one by one, a quarter of
    them if left out. ValueError if its weights have too few bits for two stages."""

    def __init__(self, model: PackedModel, most: int | None = None) -> None:
        if not self.divides(model):
            raise ValueError("a head whose weights have fewer than four bits has no two stages")
        self._model, self._n_rows = model, model.vocab_size
        self._most = self._n_rows // _SHARE if most is None else most
        self._kept: list[KnownWeights] | None = None

    @staticmethod
    def divides(model: PackedModel) -> bool:
        """True if the weights of the model's head have bits enough for two stages."""
        coded = model.vocabulary
        return coded is None or lower_bits(coded.head.stored.bits) > 0

    def best(self, a: Int, n: int) -> list[Best]:
        """The ``n`` best tokens, or all if there are fewer, for each row of activations
        ``[M, K]``."""
        n = min(n, self._n_rows)
        parts = [known.sums(a) for known in self._every]
        middle, reach = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
        every = np.arange(self._n_rows, dtype=np.int64)
        likely, bound = self._scaled(middle, every), self._scaled(middle + reach, every)
        return [self._best(a[i : i + 1], likely[i], bound[i], n) for i in range(len(a))]

    def _best(self, a: Int, likely: Int, bound: Int, n: int) -> Best:
        """Best tokens of activations ``[1, K]``, whose logits are about ``likely`` and at most
        ``bound``."""
        first = self._logits(a, likeliest(likely, 2 * n + _MORE))
        # n tokens have at least this logit, so those whose bound is below it are not among the best
        least = np.sort(first)[-n]
        rows = np.flatnonzero(bound >= least)
        fallback = len(rows) > self._most
        if fallback:
            rows = np.arange(self._n_rows)
        exact = self._logits(a, rows)
        order = likeliest(exact, n)
        return Best(rows[order], exact[order], len(rows), fallback)

    @property
    def _every(self) -> Iterable[KnownWeights]:
        """Rows for the first stage, block after block; of small heads it stays in memory."""
        if self._kept is not None:
            return self._kept
        every = (self._known(rows) for rows in _blocks(self._n_rows))
        if self._n_rows * self._model.hidden_size > _KEPT:
            return every
        self._kept = list(every)
        return self._kept

    def _known(self, rows: slice) -> KnownWeights:
        """The part of rows that the first stage reads."""
        model = self._model
        if model.vocabulary is None:
            return KnownWeights.of_trits(model.head[rows])
        stored = model.vocabulary.head.stored
        return KnownWeights.of_codes(stored.rows(rows).unpack(), lower_bits(stored.bits))

    def _logits(self, a: Int, rows: NDArray[np.int64]) -> Int:
        """Logits ``[n]`` of some rows, from all their bits."""
        model, found = self._model, list[Int]()
        for part in _blocks(len(rows)):
            some = rows[part]
            if model.vocabulary is None:
                doubled = 2 * model.head[some].astype(np.int64)
            else:
                doubled = model.vocabulary.head.stored.rows(some).unpack().doubled()
            found.append(self._scaled(_product(a, doubled), some)[0])
        return np.concatenate(found)

    def _scaled(self, sums: Int, rows: NDArray[np.int64]) -> Int:
        """Logits ``[M, n]`` of the sums of rows; of a row they never fall where its sums grow."""
        model = self._model
        if model.vocabulary is not None:
            return round_shift(sums, model.vocabulary.head.shift)
        weights = model.head_rows[rows].astype(np.int64)
        return logits(round_shift(sums, model.head_shift), weights)


def lower_bits(bits: int) -> int:
    """Bits of a code that the second stage adds; 0 where two stages would save nothing."""
    if bits < _UPPER_BITS:
        return 0
    return max(bits - _UPPER_BITS, 1)


def likeliest(logits: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The ``n`` tokens of the largest ``logits`` ``[V]``, or all, from the largest on; the first
    token first of equals."""
    if n == 0:
        return np.zeros(0, np.int64)
    # a stable order makes ties, and so the draw, the same everywhere
    kept = np.arange(len(logits))
    if n < len(logits):
        # only candidates, since sorting a whole vocabulary is slow
        kept = np.flatnonzero(logits >= np.partition(logits, -n)[-n])
    return kept[np.argsort(-logits[kept], kind="stable")][:n]


def _product(a: Int, w: Int) -> Int:
    """Sums ``[M, N]`` of ``[M, K]`` and ``[N, K]``."""
    return exact_matmul(a, w.T.astype(np.float64))


def _blocks(n: int) -> Iterator[slice]:
    return (slice(i, min(i + _ROWS, n)) for i in range(0, n, _ROWS))

"""Divergence of next-token distributions from those of a reference, over the tokens of a text."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Divergence", "DivergenceSum"]

_Float = NDArray[np.float64]
_EXP_MAX = 709  # beyond it a float64 overflows


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Means over ``tokens`` predictions, and their standard errors.

    ``kl`` is the Kullback-Leibler divergence from the reference in nats. ``change`` is the
    perplexity ``ppl`` over that of the reference, less one; its error is that of the differences
    token by token, far smaller than that of a perplexity. ``top1`` is the share of tokens whose
    likeliest successor is the same.
    """

    tokens: int
    kl: float
    kl_stderr: float
    ppl: float
    change: float
    change_stderr: float
    top1: float


class DivergenceSum:
    """Collects tokens for a :class:`Divergence`."""

    def __init__(self) -> None:
        self._kl: list[_Float] = []
        self._nll: list[_Float] = []
        self._more: list[_Float] = []
        self._same: list[NDArray[np.bool_]] = []

    def add(
        self,
        expected: NDArray[np.floating],
        actual: NDArray[np.floating],
        targets: NDArray[np.int64],
    ) -> None:
        """Add tokens: logarithms of probabilities ``[T, V]`` of the reference and of the model,
        and the tokens ``[T]`` that follow."""
        rows = np.arange(len(targets))
        apart = expected - actual
        # below zero by rounding alone
        kl = np.maximum((np.exp(expected) * apart).sum(axis=1, dtype=np.float64), 0)
        self._kl.append(kl)
        self._nll.append(-actual[rows, targets].astype(np.float64))
        self._more.append(apart[rows, targets].astype(np.float64))
        self._same.append(actual.argmax(axis=1) == expected.argmax(axis=1))

    def result(self) -> Divergence:
        """The means of what was added, at least one token."""
        kl, nll, more = (np.concatenate(each) for each in (self._kl, self._nll, self._more))
        ratio = _exp(float(more.mean()))
        return Divergence(
            tokens=len(kl),
            kl=float(kl.mean()),
            kl_stderr=_stderr(kl),
            ppl=_exp(float(nll.mean())),
            change=ratio - 1,
            change_stderr=ratio * _stderr(more),
            top1=float(np.concatenate(self._same).mean()),
        )


def _exp(x: float) -> float:
    return math.exp(x) if x < _EXP_MAX else math.inf


def _stderr(values: _Float) -> float:
    """Standard error of the mean."""
    return math.sqrt(float(values.var()) / max(len(values) - 1, 1))

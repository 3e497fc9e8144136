"""Choosing a token from logits: greedy, temperature, top-k, top-p, from a seed."""

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.arguments import check_number, check_whole
from lutra_golden.errors import LutraError

__all__ = ["Sampler", "SamplingParams"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of sampling: one token is drawn from each row of logits.

    ``temperature`` divides the logits, in nats, before the softmax (default 0.7); 0 is greedy.
    ``top_k`` is the number of likeliest tokens that are kept (default 40); 0 keeps all.
    ``top_p`` is the probability that the likeliest tokens which are kept add up to, of those that
    ``top_k`` left (default 0.95); 1 keeps all. ``seed`` is a whole number from 0 on (default 0):
    equal seeds and logits give equal tokens.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            check_number(name, getattr(self, name))
        for name in ("top_k", "seed"):
            check_whole(name, getattr(self, name))
        if not 0 <= self.temperature <= sys.float_info.max:
            raise LutraError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise LutraError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise LutraError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.seed < 0:
            raise LutraError(f"seed must be 0 or more, not {self.seed}")


class Sampler:
    """Draws tokens; equal parameters and logits give equal tokens on every device."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._rng = np.random.default_rng(params.seed)

    @property
    def greedy(self) -> bool:
        """True if the likeliest token is always drawn, the first of equals."""
        return self._params.temperature == 0

    def __call__(self, logits: NDArray[np.int64], scale: float) -> int:
        """Return a token of integer ``logits`` ``[V]``, of which one is worth ``scale``."""
        params = self._params
        if self.greedy:
            return int(logits.argmax())
        # a stable order makes ties, and so the draw, the same everywhere
        kept = np.arange(len(logits))
        if 0 < params.top_k < len(logits):
            # only candidates for the top k, since sorting a whole vocabulary is slow
            kept = np.flatnonzero(logits >= np.partition(logits, -params.top_k)[-params.top_k])
        order = kept[np.argsort(-logits[kept], kind="stable")]
        if params.top_k:
            order = order[: params.top_k]
        below = (logits[order] - logits[order[0]]).astype(np.float64) * scale
        with np.errstate(over="ignore"):  # a tiny temperature: infinitely less likely
            p = np.exp(below / params.temperature)
        p /= p.sum()
        if params.top_p < 1:
            keep = int(np.searchsorted(np.cumsum(p), params.top_p)) + 1
            order, p = order[:keep], p[:keep]
            p /= p.sum()
        index = int(np.searchsorted(np.cumsum(p), self._rng.random(), side="right"))
        return int(order[min(index, len(order) - 1)])

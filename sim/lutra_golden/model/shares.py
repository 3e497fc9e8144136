"""Shares of every layer: rows of its matrices, and heads of its attention.

Rows of a matrix do not depend on each other, nor do heads. So several devices may have some of
each, if all of them have what comes out before the next step: norms, rotation, gates and sums of
the residual stream are computed by every one of them, and so are the keys and values. What they
exchange, four times a layer, is in integers, so that the shares of a layer are together the layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from lutra_golden.arith.fixed import Int
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.padding import built_head_dim

__all__ = ["EXCHANGES", "Exchange", "LayerShare", "Party", "divide", "exchange_widths"]

EXCHANGES = ("heads", "attention", "hidden", "inner")
"""What is exchanged in a layer: accumulators of q, k and v, one after another; what attention
gives; accumulators of a matrix whose results go into the residual stream; those of gate and up."""

_UNIT, _SMALL_UNIT = 64, 32  # rows that kernels take together; of matrices with few rows


@dataclass(frozen=True, kw_only=True)
class LayerShare:
    """Rows of the matrices of every layer and of the head, and heads of attention.

    ``queries`` are rows of ``q_proj``, ``keys`` of ``k_proj`` and ``v_proj``, ``hidden`` of
    ``o_proj`` and ``down_proj``, ``inner`` of ``gate_proj`` and ``up_proj``, ``vocabulary`` of the
    head; ``heads`` are those of queries.
    """

    queries: range
    keys: range
    heads: range
    hidden: range
    inner: range
    vocabulary: range

    def rows(self, name: str) -> range:
        """Rows of a matrix of a layer, by its name in checkpoints."""
        of = {"q_proj": self.queries, "k_proj": self.keys, "v_proj": self.keys,
              "gate_proj": self.inner, "up_proj": self.inner}  # fmt: skip
        return of.get(name, self.hidden)


class Exchange(Protocol):
    """Brings the shares of a step together."""

    def whole(self, what: str, part: Int, columns: Sequence[range]) -> Int:
        """All columns ``[M, N]`` of one of :data:`EXCHANGES`, of which ``part`` has ``columns``."""
        ...


@dataclass(frozen=True)
class Party:
    """One of those that compute layers together: its ``share`` of them, and the ``exchange``."""

    share: LayerShare
    exchange: Exchange


def exchange_widths(model: PackedModel) -> dict[str, int]:
    """Columns of what is exchanged."""
    q, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    return {
        "heads": q + 2 * kv,
        "attention": q,
        "hidden": model.hidden_size,
        "inner": 2 * model.intermediate_size,
    }


def divide(
    model: PackedModel, rows: Sequence[float], heads: Sequence[float] | None = None
) -> list[LayerShare]:
    """Shares of each layer in proportion to ``rows``, and heads to ``heads`` (to ``rows``, too, if
    left out), none negative; in whole units of rows, so that small matrices may be one's alone.

    LutraError for a model whose heads are padded.
    """
    if built_head_dim(model.head_dim) != model.head_dim:
        raise LutraError(
            f"rows of a model whose heads have {model.head_dim} elements cannot be divided, as not "
            "all devices have heads of that size: divide its layers"
        )
    of_heads = _cut(model.n_heads, rows if heads is None else heads, 1)
    sizes = (
        model.n_heads * model.head_dim,
        model.n_kv_heads * model.head_dim,
        model.hidden_size,
        model.intermediate_size,
        model.vocab_size,
    )
    every = [_cut(n, rows, _UNIT if n >= 8 * _UNIT else _SMALL_UNIT) for n in sizes]
    return [
        LayerShare(queries=q, keys=k, heads=h, hidden=d, inner=f, vocabulary=v)
        for q, k, d, f, v, h in zip(*every, of_heads, strict=True)
    ]


def _cut(n: int, weights: Sequence[float], unit: int) -> list[range]:
    """``n`` rows cut in proportion to ``weights``, at multiples of ``unit``."""
    if not len(weights) or min(weights) < 0 or not sum(weights) > 0:
        raise LutraError(f"shares must be 0 or more, and not all 0, not {list(weights)}")
    ends = np.cumsum(weights) / sum(weights) * n
    cuts = [0, *(min(round(end / unit) * unit, n) for end in ends[:-1].tolist()), n]
    return [range(a, b) for a, b in pairwise(cuts)]

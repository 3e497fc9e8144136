"""The KV cache in pages, and queries with what attention makes of them."""

from dataclasses import dataclass, replace

import numpy as np
import triton.language as tl

from lutra_golden.arith.scale import SCALE
from lutra_kernels.arrays import Array, empty, rows_of, zeros

__all__ = ["EXPONENT_LEAST", "SCORE_LEAST", "KvCache", "Queries"]

SCORE_LEAST = tl.constexpr(-(1 << 31))
"""Below every score: where a split attention's maxima begin."""
EXPONENT_LEAST = tl.constexpr(SCALE.e_min)
"""The exponent where no value counts."""


@dataclass(frozen=True)
class KvCache:
    """Keys and values of one layer, in pages of ``page`` tokens that any sequence may use.

    ``k`` and ``v`` are int8 ``[n_pages, n_kv_heads, page, head_dim]``; with 4 ``bits`` a byte holds
    dimension ``d`` below and ``d + head_dim / 2`` above. Scales are packed words, int32
    ``[n_pages, n_kv_heads, page]``, apart from what they scale, so that rows stay aligned.
    """

    k: Array
    v: Array
    k_scale: Array
    v_scale: Array
    n_kv_heads: int
    head_dim: int
    page: int
    bits: int

    @classmethod
    def new(
        cls,
        n_pages: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        page: int = 128,
        bits: int = 8,
    ) -> "KvCache":
        """A cache with anything in it."""
        if bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8, not {bits}")
        for name, value in (("head_dim", head_dim), ("page", page)):
            if value < 32 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two of at least 32, not {value}")
        row = head_dim * bits // 8
        shape = n_pages, n_kv_heads, page, row
        return cls(
            k=empty(shape, np.int8),
            v=empty(shape, np.int8),
            k_scale=empty(shape[:3], np.int32),
            v_scale=empty(shape[:3], np.int32),
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            page=page,
            bits=bits,
        )

    @property
    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Keys, values and their scales."""
        return self.k, self.v, self.k_scale, self.v_scale

    @property
    def n_pages(self) -> int:
        """Pages that there are."""
        return self.k.shape[0]

    @property
    def page_bytes(self) -> int:
        """Memory of a page: rows of keys and values, and a word for each."""
        return 2 * self.n_kv_heads * self.page * (self.head_dim * self.bits // 8 + 4)


@dataclass(frozen=True)
class Queries:
    """Queries of up to ``m`` tokens, and what attention computes of them.

    ``q`` int8 ``[m, n_heads, head_dim]`` with packed scales ``[m, n_heads]``; ``out`` int32 like
    ``q``. What the parts of a split attention have in common: ``score`` int32
    ``[m, n_heads, context]``, ``score_max`` and ``exponent`` int32, ``den`` int64 ``[m, n_heads]``,
    ``sums`` int64 like ``q``. ``flag`` int32 ``[1]`` becomes 1 if any value leaves its range.
    """

    q: Array
    scale: Array
    out: Array
    score: Array
    score_max: Array
    exponent: Array
    den: Array
    sums: Array
    flag: Array
    n_heads: int
    context: int

    @classmethod
    def new(cls, m: int, n_heads: int, head_dim: int, *, m_split: int, context: int) -> "Queries":
        """Memory for ``m`` tokens, of which the attention of ``m_split`` can be split."""
        heads = m_split, n_heads
        return cls(
            q=empty((m, n_heads, head_dim), np.int8),
            scale=empty((m, n_heads), np.int32),
            out=empty((m, n_heads, head_dim), np.int32),
            score=empty((*heads, context), np.int32),
            score_max=empty(heads, np.int32),
            exponent=empty(heads, np.int32),
            den=empty(heads, np.int64),
            sums=empty((*heads, head_dim), np.int64),
            flag=zeros([1], np.int32),
            n_heads=n_heads,
            context=context,
        )

    def rows(self, first: int, last: int) -> "Queries":
        """Tokens ``first`` to ``last``, whose attention is not split."""
        q, scale, out = (rows_of(array, first, last) for array in (self.q, self.scale, self.out))
        return replace(self, q=q, scale=scale, out=out)

"""Random queries and paged caches on the device, and golden's attention of them."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Saturation
from lutra_golden.arith.scale import Scale, pack_scale
from lutra_golden.attention.attention import AttentionParams, attend
from lutra_kernels.arith.tables import tables
from lutra_kernels.arrays import Array, upload
from lutra_kernels.cache import KvCache, Queries

__all__ = ["FRAC", "AttentionCase", "int32", "words"]

FRAC = 12
Int = NDArray[np.int64]


def words(scale: Scale) -> NDArray[np.int32]:
    """Packed scales."""
    return pack_scale(scale).astype(np.uint32).view(np.int32)


def int32(values: NDArray[np.integer]) -> Array:
    """Uploaded int32."""
    return upload(values.astype(np.int32))


def _scales(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int) -> Scale:
    zero = rng.random(shape) < 0.05
    m, e = rng.integers(1 << 15, 1 << 16, shape), rng.integers(low, high, shape)
    return Scale(np.where(zero, 0, m), np.where(zero, 0, e))


class AttentionCase:
    """Sequences of ``context`` positions, whose first ``prefix`` are those of all of them.

    ``spread`` is how far scales lie apart: with 2 the weights of a query are alike, with 40 values
    vanish.
    """

    def __init__(
        self,
        n_sequences: int,
        h: int,
        h_kv: int,
        d: int,
        *,
        context: int,
        page: int = 32,
        bits: int = 8,
        prefix: int = 0,
        spread: int = 4,
        seed: int = 0,
    ) -> None:
        rng = self.rng = np.random.default_rng(seed)
        self.h, self.h_kv, self.d, self.context = h, h_kv, d, context
        n_pages, n_shared = -(-context // page), prefix // page
        assert prefix % page == 0
        total = n_shared + n_sequences * (n_pages - n_shared)
        order = rng.permutation(total)
        own = order[n_shared:].reshape(n_sequences, -1)
        shared = np.broadcast_to(order[:n_shared], (n_sequences, n_shared))
        self.pages = np.concatenate([shared, own], axis=1)
        q_max, shape = (127 if bits == 8 else 7), (total, h_kv, page)
        self.k = rng.integers(-q_max, q_max + 1, (*shape, d))
        self.v = rng.integers(-q_max, q_max + 1, (*shape, d))
        self.v[::3] = np.abs(self.v[::3])
        self.k_scale = _scales(rng, shape, -19 - spread, -18)
        self.v_scale = _scales(rng, shape, -20 - spread, -19)
        fresh = KvCache.new(total, h_kv, d, page=page, bits=bits)
        self.cache = self.upload_cache(fresh)
        self.tables = upload(tables())

    def upload_cache(self, like: KvCache) -> KvCache:
        """Keys and values as they are now, on the device."""
        return replace(
            like,
            k=self._packed(self.k, like.bits),
            v=self._packed(self.v, like.bits),
            k_scale=upload(words(self.k_scale)),
            v_scale=upload(words(self.v_scale)),
        )

    def _packed(self, x: Int, bits: int) -> Array:
        if bits == 4:
            low, high = np.split(x, 2, axis=-1)
            x = low & 15 | high << 4
        return upload(x.astype(np.int8))

    def queries(self, sequences: NDArray[np.integer], positions: NDArray[np.integer]) -> Queries:
        """Random queries of tokens at ``positions`` of ``sequences``."""
        m = len(sequences)
        self.sequences, self.positions = sequences, positions
        self.q = self.rng.integers(-127, 128, (m, self.h, self.d))
        self.q_scale = _scales(self.rng, (m, self.h), -17, -14)
        found = Queries.new(m, self.h, self.d, m_split=m, context=self.context)
        # as the launch before leaves them
        return Queries(
            q=upload(self.q.astype(np.int8)),
            scale=upload(words(self.q_scale)),
            out=found.out,
            score=found.score,
            score_max=int32(np.full((m, self.h), -(1 << 31))),
            exponent=int32(np.full((m, self.h), -512)),
            den=upload(np.zeros((m, self.h), np.int64)),
            sums=upload(np.zeros((m, self.h, self.d), np.int64)),
            flag=found.flag,
            n_heads=self.h,
            context=self.context,
        )

    def device_pages(self) -> Array:
        """The pages of every query's sequence."""
        return int32(self.pages[self.sequences])

    def golden(self, window: int = 0) -> Int:
        """Attention of every query; ``saturated`` says whether a value of any left its range."""
        saturation = Saturation()
        params = AttentionParams(head_dim=self.d, n_heads=self.h, n_kv_heads=self.h_kv)
        rows: list[Int] = []
        for m, (sequence, position) in enumerate(zip(self.sequences, self.positions, strict=True)):
            pages = self.pages[sequence]

            def joined(x: Int, pages: Int = pages) -> Int:
                return np.concatenate(list(x[pages]), axis=1)

            def scales(s: Scale, pages: Int = pages) -> Scale:
                return Scale(*(np.concatenate(list(x[pages]), axis=1).T for x in s))

            out = attend(
                params, self.q[m : m + 1], Scale(*(x[m : m + 1] for x in self.q_scale)),
                joined(self.k), scales(self.k_scale), joined(self.v), scales(self.v_scale),
                int(position), FRAC, window, saturation,
            )  # fmt: skip
            rows.append(out[0])
        self.saturated = saturation.seen
        return np.stack(rows)

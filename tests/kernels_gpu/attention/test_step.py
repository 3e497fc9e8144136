"""One launch gives what two do: the heads and the attention of tokens of several sequences."""

import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.attention_case import int32

from lutra_golden.arith.scale import Scale, pack_scale
from lutra_golden.vector.rope import rope_table
from lutra_kernels.arith.tables import tables
from lutra_kernels.arrays import Array, download, upload
from lutra_kernels.attention.prefill import attention
from lutra_kernels.attention.step import attention_step
from lutra_kernels.cache import KvCache, Queries
from lutra_kernels.vector.rope import RopeStep, rope_kv

pytestmark = pytest.mark.interpreted

CONTEXT, PAGE, FRAC = 64, 32, 12


def words(scale: Scale) -> Array:
    return upload(pack_scale(scale).astype(np.uint32).view(np.int32))


@pytest.mark.parametrize(
    ("h", "h_kv", "d", "bits", "bias", "norm", "window"),
    [(3, 1, 32, 8, False, False, 0), (4, 2, 64, 4, True, False, 9), (2, 2, 32, 8, True, True, 0)],
)
def test_like_two_launches(
    h: int, h_kv: int, d: int, bits: int, bias: bool, norm: bool, window: int
) -> None:
    rng = np.random.default_rng(h)
    n, m = h + 2 * h_kv, 2
    step = RopeStep(
        scale_q=Scale(np.asarray(50000), np.asarray(-24)),
        scale_k=Scale(np.asarray(40000), np.asarray(-20)),
        scale_v=Scale(np.asarray(60000), np.asarray(-21)),
        rope=upload(rope_table(CONTEXT, d, 10000.0).astype(np.int16)),
        bias=upload(rng.integers(-(1 << 15), 1 << 15, (n + h_kv) * d).astype(np.int16))
        if bias
        else None,
        bias_frac=13,
        gamma=upload(rng.integers(0, 1 << 12, (2, d)).astype(np.int16)) if norm else None,
        gamma_frac=11,
        eps=4295,
    )
    # what came before: tokens of both sequences, all heads at once; the first one begins a page
    lengths = PAGE, 17
    before = np.concatenate([np.arange(n) for n in lengths])
    sequences = np.repeat([0, 1], lengths)
    table = np.array([[2, 0], [1, 3]])

    def inputs(count: int) -> tuple[Array, Array]:
        exponents = rng.integers(-25, -22, count)
        s = words(Scale(rng.integers(1 << 15, 1 << 16, count), exponents))
        return int32(rng.integers(-(1 << 20), 1 << 20, (count, n, d))), s

    earlier, now = inputs(len(before)), inputs(m)
    found: list[tuple[np.ndarray, ...]] = []
    for fused in (False, True):
        cache = KvCache.new(4, h_kv, d, page=PAGE, bits=bits)
        many = Queries.new(len(before), h, d, m_split=1, context=CONTEXT)
        shared = upload(tables())
        rope_kv(
            step, len(before), *earlier, int32(before), int32(table[sequences]), many, cache,
            shared, split=False,
        )  # fmt: skip
        queries = Queries.new(m, h, d, m_split=1, context=CONTEXT)
        positions, pages = int32(np.array(lengths)), int32(table)
        arguments = (step, m, *now, positions, pages, queries, cache, shared)
        if fused:
            attention_step(*arguments, frac=FRAC, window=window)
        else:
            rope_kv(*arguments, split=False)
            attention(
                m, queries, cache, positions, pages, shared, frac=FRAC, window=window,
                together=False,
            )  # fmt: skip
        outputs = (queries.out, queries.q, queries.scale, queries.flag)
        state = (cache.k, cache.v, cache.k_scale, cache.v_scale)
        found.append(tuple(download(array) for array in (*outputs, *state)))
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)
    assert found[0][0].any()

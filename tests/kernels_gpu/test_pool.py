"""Keys and values of many sequences: pages, and the canonical form."""

import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.models import small_model

from lutra_golden.arith.scale import Scale
from lutra_golden.model.cache import LayerKv
from lutra_kernels.arrays import download
from lutra_kernels.cache import KvCache
from lutra_kernels.errors import GpuUnavailable
from lutra_kernels.model import upload_model
from lutra_kernels.pool import KvPool

pytestmark = pytest.mark.interpreted


MANY = 100


def pool_of(kv: int, head_dim: int = 16, layers: int = 1) -> KvPool:
    """A pool of two key and value heads and 64 positions."""
    model = small_model("qwen3", "W4A8", kv, layers=layers, head_dim=head_dim)
    return KvPool(upload_model(model), page=32)


def random_kv(pool: KvPool, bits: int, head_dim: int, n: int, seed: int = 0) -> LayerKv:
    rng, maximum = np.random.default_rng(seed), (1 << (bits - 1)) - 1

    def scale() -> Scale:
        return Scale(rng.integers(1 << 15, 1 << 16, (n, 2)), rng.integers(-40, 9, (n, 2)))

    keys, values = (
        rng.integers(-maximum, maximum + 1, (2, n, head_dim)).astype(np.int8) for _ in range(2)
    )
    return LayerKv(keys, scale(), values, scale())


def assert_same(a: LayerKv, b: LayerKv) -> None:
    for x, y in (
        (a.keys, b.keys),
        (a.values, b.values),
        *zip((*a.key_scale, *a.value_scale), (*b.key_scale, *b.value_scale), strict=True),
    ):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 64])
@pytest.mark.parametrize(("kv", "head_dim"), [(8, 16), (4, 16), (4, 32), (8, 64)])
def test_what_is_written_can_be_read(kv: int, head_dim: int, n: int) -> None:
    pool = pool_of(kv, head_dim)
    pool.grow(6, MANY)
    sequences = [0, 1], [5, 2], [3, 4]
    written = [random_kv(pool, kv, head_dim, n, seed) for seed in range(3)]
    for pages, each in zip(sequences, written, strict=True):
        pool.write(0, pages, each)
    for pages, each in zip(sequences, written, strict=True):
        assert_same(pool.read(0, pages, n), each)
        assert_same(pool.read(0, pages, n // 2), each.first(n // 2))
    for source, target in zip(sequences[1], sequences[2], strict=True):
        pool.copy_page(source, target)
    assert_same(pool.read(0, sequences[2], n), written[1])
    assert_same(pool.read(0, sequences[0], n), written[0])


def test_four_bits_lie_in_halves_and_padding_is_zero() -> None:
    pool = pool_of(4)
    pool.grow(1, MANY)
    kv = random_kv(pool, 4, 16, 5)
    pool.write(0, [0], kv)
    k, v = (download(array)[0].view(np.uint8) for array in pool.caches[0].arrays[:2])
    # heads of 16 in heads of 32: keys' halves begin at 0 and 16, values are in front
    keys, values = (x.view(np.uint8) & 15 for x in (kv.keys, kv.values))
    np.testing.assert_array_equal(k[:, :5, :8], keys[:, :, :8] | keys[:, :, 8:] << 4)
    np.testing.assert_array_equal(v[:, :5], values)
    assert not k[:, :5, 8:].any()


def test_caches_grow_and_keep_what_they_hold() -> None:
    pool = pool_of(8)
    kept: dict[int, LayerKv] = {}
    for first in range(0, 12, 2):
        pool.grow(first + 2, 12)
        kept[first] = random_kv(pool, 8, 16, 40, first)
        pool.write(0, [first, first + 1], kept[first])
    assert 1 < pool.generation < 6  # by more than is asked for in the end
    assert pool.caches[0].n_pages == 12  # and no more than there may be
    assert pool.page_bytes == 2 * 32 * 2 * (32 + 4)
    for first, kv in kept.items():
        assert_same(pool.read(0, [first, first + 1], 40), kv)
    grown = pool.generation
    pool.grow(12, 12)
    assert pool.generation == grown


def test_a_first_page_brings_memory_for_a_context() -> None:
    pool = pool_of(8)
    pool.grow(1, MANY)
    assert (pool.generation, pool.caches[0].n_pages) == (1, pool.n_pages) == (1, 2)
    small = pool_of(8)
    small.grow(1, 1)
    assert small.caches[0].n_pages == 1


def test_growth_that_ends_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for more pages of the first layer, and none for those of the second."""
    pool, whole = pool_of(8, layers=2), KvPool._grown
    pool.grow(2, 2)
    kept = [random_kv(pool, 8, 16, 40, layer) for layer in range(2)]
    for layer, kv in enumerate(kept):
        pool.write(layer, [0, 1], kv)

    def failing(self: KvPool, cache: KvCache, n_pages: int) -> KvCache:
        if cache is pool.caches[1]:
            raise MemoryError
        return whole(self, cache, n_pages)

    monkeypatch.setattr(KvPool, "_grown", failing)
    message = "^the GPU has too little memory for more keys and values: close a session$"
    with pytest.raises(GpuUnavailable, match=message):
        pool.grow(3, 4)
    assert pool.generation == 2  # what has moved has other addresses
    monkeypatch.setattr(KvPool, "_grown", whole)
    pool.grow(3, 4)
    assert pool.generation == 3 and all(cache.n_pages >= 3 for cache in pool.caches)
    for layer, kv in enumerate(kept):
        assert_same(pool.read(layer, [0, 1], 40), kv)

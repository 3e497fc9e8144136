import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.attention_case import FRAC, AttentionCase, int32, words

from lutra_kernels.arrays import assign, download
from lutra_kernels.attention.prefill import attention
from lutra_kernels.cache import KvCache, Queries

pytestmark = pytest.mark.interpreted


def run(case: AttentionCase, queries: Queries, **options: int) -> np.ndarray:
    attention(
        len(case.positions), queries, case.cache, int32(case.positions), case.device_pages(),
        case.tables, frac=FRAC, **options,
    )  # fmt: skip
    return download(queries.out)


@pytest.mark.parametrize("window", [0, 1, 20])
@pytest.mark.parametrize(
    ("h", "h_kv", "d", "bits", "spread"),
    [(3, 1, 32, 8, 4), (4, 2, 64, 4, 20), (2, 2, 32, 8, 40)],
)
def test_tile_of_a_sequence(h: int, h_kv: int, d: int, bits: int, spread: int, window: int) -> None:
    case = AttentionCase(1, h, h_kv, d, context=96, bits=bits, spread=spread, seed=window)
    positions = np.arange(29, 29 + 41)
    queries = case.queries(np.zeros(41, np.int64), positions)
    expected = case.golden(window)
    assert np.array_equal(run(case, queries, window=window, max_pairs=63), expected)
    assert expected.any()
    assert download(queries.flag)[0] == case.saturated


@pytest.mark.parametrize("place", ["none", "hidden", "later", "scores", "left", "out"])
def test_the_flag_of_saturation(place: str) -> None:
    """Set by scores and outputs that a query sees, not by those that it does not."""
    case = AttentionCase(1, 2, 1, 32, context=64, spread=4, seed=7)
    page, slot = case.pages[0, 1], 8  # position 40
    case.k_scale.m[...], case.k_scale.e[...] = 1 << 15, -60
    case.k[page, 0, slot] = 0
    case.k[page, 0, slot, 0] = 127
    if place in ("scores", "hidden", "later"):
        case.k_scale.m[page, 0, slot], case.k_scale.e[page, 0, slot] = 65535, -12
    if place == "left":
        case.k_scale.e[page, 0, slot], case.k[page, 0, slot, 0] = -11, 1
    if place == "out":
        case.v_scale.m[...], case.v_scale.e[...], case.v[...] = 1 << 15, 6, 127
    case.cache = case.upload_cache(case.cache)
    queries = case.queries(
        np.zeros(2, np.int64), np.array([38, 39]) + {"hidden": 0, "later": 1}.get(place, 2)
    )
    case.q_scale.m[...], case.q_scale.e[...] = 1 << 15, -15
    case.q[:, :, 0] = np.where(place == "left", 1, 127)
    silent = int(place == "later")  # the first query sees less
    case.q_scale.m[silent] = case.q_scale.e[silent] = 0
    assign(queries.q, case.q.astype(np.int8))
    assign(queries.scale, words(case.q_scale))
    assert np.array_equal(run(case, queries), case.golden())
    seen = place in ("scores", "left", "out")
    assert download(queries.flag)[0] == case.saturated == seen


@pytest.mark.parametrize("window", [13, 28, 43])
def test_a_window_that_begins_in_the_middle_of_a_block(window: int) -> None:
    case = AttentionCase(1, 2, 1, 32, context=128, spread=4, seed=window)
    queries = case.queries(np.zeros(128, np.int64), np.arange(128))
    assert np.array_equal(run(case, queries, window=window), case.golden(window))


def test_first_token_and_longest_context() -> None:
    case = AttentionCase(2, 2, 1, 32, context=64, seed=5)
    queries = case.queries(np.array([0, 1]), np.array([0, 63]))
    assert np.array_equal(run(case, queries, together=False), case.golden())


def test_refusals() -> None:
    case = AttentionCase(1, 1, 1, 32, context=32)
    queries = case.queries(np.array([0]), np.array([3]))
    case.pages = np.zeros((1, 5000), np.int64)
    with pytest.raises(ValueError, match=r"^context must be at most 131072, not 160000$"):
        run(case, queries)
    with pytest.raises(ValueError, match=r"^page must be a power of two of at least 32, not 48$"):
        KvCache.new(1, 1, 32, page=48)
    with pytest.raises(ValueError, match=r"^bits must be 4 or 8, not 2$"):
        KvCache.new(1, 1, 32, bits=2)


def test_largest_weights_and_values() -> None:
    case = AttentionCase(1, 2, 1, 32, context=64, seed=6)
    case.v[...] = -127
    case.v[:, :, :, :3] = 127
    case.v_scale.m[...], case.v_scale.e[...] = 65535, -12
    case.cache = case.upload_cache(case.cache)
    queries = case.queries(np.zeros(2, np.int64), np.array([62, 63]))
    case.q_scale.m[...] = case.q_scale.e[...] = 0
    queries.scale.zero_()
    expected = case.golden()
    assert np.array_equal(run(case, queries), expected)
    assert (np.abs(expected) > 0).all()

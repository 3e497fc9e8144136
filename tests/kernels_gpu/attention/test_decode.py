import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.attention_case import FRAC, AttentionCase, int32, words

from lutra_golden.arith.fixed import round_shift, saturate
from lutra_golden.arith.scale import scale_from_int, scale_recip
from lutra_kernels.arrays import assign, download
from lutra_kernels.attention.decode import split_attention
from lutra_kernels.cache import Queries

pytestmark = pytest.mark.interpreted


def run(case: AttentionCase, queries: Queries, **options: int) -> np.ndarray:
    """Split attention, finished as the norm behind it does."""
    split_attention(
        len(case.positions), queries, case.cache, int32(case.positions), case.device_pages(),
        case.tables, **options,
    )  # fmt: skip
    r = scale_recip(scale_from_int(download(queries.den)))
    shift = np.clip(-(r.e + download(queries.exponent) + 15 + FRAC), 0, 63)
    return saturate(round_shift(download(queries.sums) * r.m[..., None], shift[..., None]), 32)


@pytest.mark.parametrize("n_programs", [1, 5, 40])
@pytest.mark.parametrize(
    ("h", "h_kv", "d", "bits", "spread"),
    [(3, 1, 32, 8, 4), (4, 2, 64, 4, 20), (2, 2, 32, 8, 40)],
)
def test_sequences_of_all_lengths(
    h: int, h_kv: int, d: int, bits: int, spread: int, n_programs: int
) -> None:
    case = AttentionCase(4, h, h_kv, d, context=128, bits=bits, spread=spread)
    queries = case.queries(np.array([2, 0, 3, 1, 2]), np.array([0, 127, 31, 32, 70]))
    expected = case.golden()
    assert np.array_equal(run(case, queries, n_programs=n_programs), expected)
    assert expected.any()
    assert download(queries.flag)[0] == case.saturated


@pytest.mark.parametrize("window", [1, 33, 200])
def test_window(window: int) -> None:
    case = AttentionCase(2, 2, 1, 32, context=160, seed=3)
    queries = case.queries(np.array([0, 1]), np.array([150, 20]))
    found = run(case, queries, n_programs=3, window=window)
    assert np.array_equal(found, case.golden(window))


@pytest.mark.parametrize(("position", "e", "seen"), [(40, -12, True), (39, -12, False)])
def test_the_flag_of_saturation(position: int, e: int, seen: bool) -> None:
    """Set by a score of a key that the query sees, not by one behind it."""
    case = AttentionCase(1, 2, 1, 32, context=64, spread=4, seed=7)
    page, slot = case.pages[0, 1], 8  # position 40
    case.k_scale.m[...], case.k_scale.e[...] = 1 << 15, -60
    case.k[page, 0, slot], case.k_scale.e[page, 0, slot] = 127, e
    case.cache = case.upload_cache(case.cache)
    queries = case.queries(np.array([0]), np.array([position]))
    case.q[...], case.q_scale.m[...], case.q_scale.e[...] = 127, 1 << 15, -15
    assign(queries.q, case.q.astype(np.int8))
    assign(queries.scale, words(case.q_scale))
    assert np.array_equal(run(case, queries, n_programs=3), case.golden())
    assert download(queries.flag)[0] == case.saturated == seen


@pytest.mark.parametrize("window", [0, 50])
def test_shared_prefix(window: int) -> None:
    case = AttentionCase(5, 4, 2, 32, context=128, prefix=64, seed=4)
    queries = case.queries(np.arange(5), np.array([64, 127, 70, 90, 113]))
    found = run(case, queries, n_programs=3, prefix=64, window=window)
    assert np.array_equal(found, case.golden(window))


def test_refusals() -> None:
    case = AttentionCase(1, 1, 1, 32, context=32)
    queries = case.queries(np.array([0]), np.array([3]))
    with pytest.raises(ValueError, match=r"^m must be in 1\.\.1, not 2$"):
        split_attention(
            2, queries, case.cache, int32(case.positions), case.device_pages(), case.tables,
            n_programs=1,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"^prefix must be a multiple of page \(32\), not 31$"):
        run(case, queries, n_programs=1, prefix=31)
    long = Queries(**{**queries.__dict__, "context": 1 << 18})
    with pytest.raises(ValueError, match=r"^context must be at most 131072, not 262144$"):
        run(case, long, n_programs=1)

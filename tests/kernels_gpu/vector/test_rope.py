import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.unpack import unpacked_cache

from lutra_golden.arith.fixed import Saturation
from lutra_golden.arith.scale import Scale, pack_scale
from lutra_golden.vector.heads import HeadBias, HeadNorm
from lutra_golden.vector.rope import rope_quantize, rope_quantize_fixed, rope_table
from lutra_kernels.arith.tables import tables
from lutra_kernels.arrays import Array, download, upload
from lutra_kernels.cache import KvCache, Queries
from lutra_kernels.vector.rope import RopeStep, rope_kv

pytestmark = pytest.mark.interpreted

CONTEXT, PAGE = 96, 32


def words(scale: Scale) -> np.ndarray:
    return pack_scale(scale).astype(np.uint32).view(np.int32)


def int32(values: np.ndarray) -> Array:
    return upload(values.astype(np.int32))


class Case:
    """A product of ``m`` tokens of two sequences with biases or norms."""

    def __init__(self, m: int, h: int, h_kv: int, d: int, *, bias: bool, norm: bool) -> None:
        self.rng = rng = np.random.default_rng(d + m)
        self.m, self.h, self.h_kv, self.d = m, h, h_kv, d
        n = h + 2 * h_kv
        self.acc = rng.integers(-(1 << 27), 1 << 27, (m, n, d))
        self.acc >>= rng.integers(0, 27, (m, n, 1))
        self.acc[0, :, :2] = -(1 << 27), (1 << 27) - 1
        self.acc[0, ::3] = 0
        # with fixed point, from where all saturates to where nothing is left
        e = np.linspace(-50, -18, m).astype(np.int64)
        self.s = Scale(rng.integers(1 << 15, 1 << 16, m), e)
        self.w = [Scale(rng.integers(1 << 15, 1 << 16), np.asarray(-18 - i)) for i in range(3)]
        # those of all heads, then the centres of keys
        self.bias = rng.integers(-(1 << 15), 1 << 15, (n + h_kv, d)) if bias else None
        self.gamma = rng.integers(-(1 << 15), 1 << 15, (2, d)) if norm else None
        self.rope = rope_table(CONTEXT, d, 10000.0)
        self.positions = rng.permutation(CONTEXT)[:m]
        # two sequences whose pages are mixed
        self.pages = np.array([[5, 0, 3], [1, 4, 2]])[np.arange(m) % 2]
        self.saturation = Saturation()

    def run(self, cache: KvCache, *, split: bool) -> Queries:
        queries = Queries.new(self.m, self.h, self.d, m_split=self.m, context=CONTEXT)
        step = RopeStep(
            scale_q=self.w[0],
            scale_k=self.w[1],
            scale_v=self.w[2],
            rope=upload(self.rope.astype(np.int16)),
            bias=None if self.bias is None else upload(self.bias.astype(np.int16)),
            bias_frac=13,
            gamma=None if self.gamma is None else upload(self.gamma.astype(np.int16)),
            gamma_frac=11,
            eps=4295,
        )
        rope_kv(
            step, self.m, int32(self.acc), upload(words(self.s)), int32(self.positions),
            int32(self.pages), queries, cache, upload(tables()), split=split,
        )  # fmt: skip
        return queries

    def golden(self, kind: int, q_max: int) -> tuple[np.ndarray, Scale]:
        first, count = ((0, self.h), (self.h, self.h_kv), (self.h + self.h_kv, self.h_kv))[kind]
        x = self.acc[:, first : first + count]
        table = None if kind == 2 else self.rope[self.positions]
        if self.bias is None and self.gamma is None:
            return rope_quantize(x, self.s, self.w[kind], table, q_max)
        bias = norm = None
        if self.bias is not None:
            centre = self.bias[-count:] if kind == 1 else None
            bias = HeadBias(self.bias[first : first + count], 13, centre)
        if self.gamma is not None and kind < 2:
            norm = HeadNorm(self.gamma[kind], 11, 4295)
        return rope_quantize_fixed(
            x, self.s, self.w[kind], table, bias, norm, q_max, self.saturation
        )


@pytest.mark.parametrize(("split", "bits"), [(False, 8), (True, 4)])
@pytest.mark.parametrize(
    ("h", "h_kv", "d", "bias", "norm"),
    [
        (3, 1, 32, False, False),
        (4, 2, 64, True, False),
        (2, 2, 128, False, True),
        (2, 1, 256, True, True),
    ],
)
def test_queries_and_cache(
    h: int, h_kv: int, d: int, bias: bool, norm: bool, split: bool, bits: int
) -> None:
    case = Case(6, h, h_kv, d, bias=bias, norm=norm)
    cache = KvCache.new(6, h_kv, d, page=PAGE, bits=bits)
    for array in cache.arrays:
        array.zero_()
    queries = case.run(cache, split=split)
    q, q_scale = case.golden(0, 127)
    assert np.array_equal(download(queries.q), q)
    assert np.array_equal(download(queries.scale), words(q_scale))
    assert np.abs(q).max() == 127
    k, v, k_scale, v_scale = unpacked_cache(cache)
    written = np.zeros(k.shape[:3], bool)
    for kind, (found, found_scale) in ((1, (k, k_scale)), (2, (v, v_scale))):
        expected, scale = case.golden(kind, 127 if bits == 8 else 7)
        for m in range(case.m):
            page, slot = case.pages[m, case.positions[m] // PAGE], case.positions[m] % PAGE
            written[page, :, slot] = True
            assert np.array_equal(found[page, :, slot], expected[m])
            assert np.array_equal(found_scale[page, :, slot], words(scale)[m])
        assert not found[~written].any() and not found_scale[~written].any()
    assert download(queries.flag)[0] == case.saturation.seen == (bias or norm)
    if split:
        assert (download(queries.score_max) == -(1 << 31)).all()
        assert (download(queries.exponent) == -512).all()
        assert not download(queries.den).any() and not download(queries.sums).any()


def test_heads_that_stay_in_range_set_no_flag() -> None:
    case = Case(2, 2, 1, 32, bias=True, norm=True)
    case.s = Scale(np.full(2, 1 << 15), np.full(2, -60))
    queries = case.run(KvCache.new(6, 1, 32, page=PAGE), split=False)
    case.golden(0, 127)
    assert not download(queries.flag).any() and not case.saturation.seen

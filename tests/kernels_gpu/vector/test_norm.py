from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("triton")

from lutra_golden.arith.fixed import Saturation, round_shift, saturate
from lutra_golden.arith.quantize import ActivationGroups, q_max_of
from lutra_golden.arith.scale import (
    Scale,
    pack_scale,
    scale_from_float,
    scale_from_int,
    scale_recip,
)
from lutra_golden.vector import norm
from lutra_golden.vector.residual import residual_add, residual_sum
from lutra_kernels import layout
from lutra_kernels.activations import Quantized
from lutra_kernels.arith.tables import tables
from lutra_kernels.arrays import Array, download, upload, zeros
from lutra_kernels.vector import norm as device
from lutra_kernels.vector.norm import NormStep, Source, norm_quantize

pytestmark = pytest.mark.interpreted

FRAC = 14
UNIT = Scale(np.asarray(1 << 15), np.asarray(-15 - FRAC))


@dataclass
class Case:
    """A norm of ``m`` tokens of ``n`` elements, and what it takes of the device."""

    rng: np.random.Generator
    m: int
    n: int
    a_bits: int = 8
    group: int = 0
    normalise: bool = True
    groups: ActivationGroups | None = None
    run_length: int = 0

    def __post_init__(self) -> None:
        self.gamma = self.rng.integers(-(1 << 15), 1 << 15, self.n)
        self.gamma[0], self.gamma[-1] = -(1 << 15), (1 << 15) - 1
        self.eps = scale_from_float(1e-5)
        self.inv_n = scale_from_float(1 / self.n)
        self.out = Quantized.new(self.m, self.n, self.a_bits, self.group)

    def run(
        self,
        source: Source,
        *,
        frac: int = FRAC,
        scale_a: Scale = device.ZERO,
        scale_b: Scale = device.ZERO,
        head_dim: int = 1,
        **arrays: Array,
    ) -> None:
        step = NormStep(
            source=source,
            n=self.n,
            gamma=upload(self.gamma.astype(np.int16)),
            gamma_frac=12,
            unit=UNIT,
            frac=frac,
            inv_n=self.inv_n,
            eps=self.eps,
            scale_a=scale_a,
            scale_b=scale_b,
            head_dim=head_dim,
            normalise=self.normalise,
            groups=self.groups,
            run=self.run_length,
        )
        norm_quantize(step, self.out, upload(tables()), **arrays)

    def check(self, v: np.ndarray, unit: Scale) -> None:
        """Check the outputs for ``v``, in units of ``unit``, against golden."""
        scale = Scale(np.broadcast_to(unit.m, self.m), np.broadcast_to(unit.e, self.m))
        q, expected = norm.norm_quantize(
            v, scale, self.gamma, 12, self.inv_n, self.eps,
            normalise=self.normalise, q_max=127 if self.groups else q_max_of(self.a_bits),
            groups=self.groups, run=self.run_length,
        )  # fmt: skip
        assert np.array_equal(download(self.out.a.rows), layout.to_bytes(q, self.a_bits))
        assert np.array_equal(download(self.out.a.sums), layout.group_sums(q, self.group))
        words = pack_scale(expected).astype(np.uint32).view(np.int32)
        assert np.array_equal(download(self.out.scale), words)


def residuals(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Rows of every size, one of zeros and one with both ends."""
    x = rng.integers(-(1 << 31), 1 << 31, (m, n)) >> (np.arange(m) * 7 % 31)[:, None]
    if m > 1:
        x[0] = 0
        x[1, 0], x[1, -1] = -(1 << 31), (1 << 31) - 1
    return x


def words(scale: Scale) -> Array:
    return upload(pack_scale(scale).astype(np.uint32).view(np.int32))


def int32(values: np.ndarray) -> Array:
    return upload(values.astype(np.int32))


def scales(rng: np.random.Generator, m: int, low: int, high: int) -> Scale:
    return Scale(rng.integers(1 << 15, 1 << 16, m), rng.integers(low, high, m))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("n", "a_bits", "group"),
    [(128, 8, 0), (160, 8, 32), (576, 16, 64), (96, 16, 48), (320, 8, 320), (1, 8, 0)],
)
def test_residual_stream(n: int, a_bits: int, group: int, normalise: bool) -> None:
    case = Case(np.random.default_rng(n), 5, n, a_bits, group, normalise)
    x = residuals(case.rng, 5, n)
    case.run(Source.RESIDUAL, x=int32(x))
    case.check(x, UNIT)


@pytest.mark.parametrize(("size", "shift_max"), [(32, 7), (64, 3), (128, 1)])
@pytest.mark.parametrize(
    ("n", "run", "group"), [(128, 128, 0), (160, 160, 32), (96, 32, 48), (256, 64, 64), (1, 1, 0)]
)
def test_groups(
    n: int, run: int, group: int, size: int, shift_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are one run, the last group hanging over, and runs of heads; in parts too."""
    for held in (device.BLOCK_MAX, 128):
        monkeypatch.setattr(device, "BLOCK_MAX", held)
        groups = ActivationGroups(size=size, shift_max=shift_max)
        case = Case(np.random.default_rng(n), 5, n, 16, group, groups=groups, run_length=run)
        x = residuals(case.rng, 5, n) >> case.rng.integers(0, 12, -(-n // 16)).repeat(16)[:n]
        case.run(Source.RESIDUAL, x=int32(x))
        case.check(x, UNIT)


def test_a_group_whose_double_is_the_largest() -> None:
    """It has the exponent 1, as none of its elements passes the row's largest."""
    groups = ActivationGroups(size=32, shift_max=3)
    case = Case(np.random.default_rng(0), 1, 64, 16, groups=groups, run_length=64)
    case.gamma[:] = 1 << 12
    x = np.tile(np.arange(1, 33, dtype=np.int64), 2)[None] << 10
    x[0, :32] *= 2
    case.run(Source.RESIDUAL, x=int32(x))
    case.check(x, UNIT)


def test_groups_have_sixteen_bits() -> None:
    case = Case(np.random.default_rng(0), 1, 32, groups=ActivationGroups(), run_length=32)
    with pytest.raises(ValueError, match=r"^activations in groups have 16 bits, not 8$"):
        case.run(Source.RESIDUAL, x=int32(np.ones((1, 32), np.int64)))


@pytest.mark.parametrize("a_bits", [8, 16])
def test_more_than_a_program_holds(a_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "BLOCK_MAX", 128)
    case = Case(np.random.default_rng(8), 3, 416, a_bits, 32)
    x = residuals(case.rng, 3, 416)
    acc, s, w = product(case.rng, 3, 416)
    device_x = int32(x)
    case.run(
        Source.ADD, scale_a=w, x=device_x, acc=int32(acc), scales=words(s), flag=zeros([1], "int32")
    )
    added = residual_add(x, acc, s, w, FRAC)
    assert np.array_equal(download(device_x), added)
    case.check(added, UNIT)


def test_zeros_without_epsilon() -> None:
    case = Case(np.random.default_rng(9), 2, 32)
    case.eps = device.ZERO
    x = np.zeros((2, 32), np.int64)
    case.run(Source.RESIDUAL, x=int32(x))
    case.check(x, UNIT)


def product(rng: np.random.Generator, m: int, n: int) -> tuple[np.ndarray, Scale, Scale]:
    """A matrix product and the scales of its activations and weights."""
    acc = rng.integers(-(1 << 27), 1 << 27, (m, n))
    s = scales(rng, m, -24, -18)
    return acc, s, Scale(rng.integers(1 << 15, 1 << 16), np.asarray(-26))


@pytest.mark.parametrize(("e", "acc", "seen"), [(1, 1, True), (0, 1, False), (1, 0, False)])
def test_a_product_that_would_be_shifted_to_the_left(e: int, acc: int, seen: bool) -> None:
    case, flag = Case(np.random.default_rng(16), 1, 32), zeros([1], np.int32)
    product, one = np.full((1, 32), acc), Scale(np.asarray(1 << 15), np.asarray(-15))
    s = Scale(np.array([1 << 15]), np.array([e - FRAC]))
    device_x = int32(np.zeros((1, 32), np.int64))
    case.run(Source.ADD, scale_a=one, x=device_x, acc=int32(product), scales=words(s), flag=flag)
    golden = Saturation()
    added = residual_sum(np.zeros((1, 32), np.int64), product, s, one, FRAC, golden)
    assert np.array_equal(download(device_x), added)
    assert download(flag)[0] == golden.seen == seen


@pytest.mark.parametrize(("low", "clamped"), [(-60, False), (-20, True), (0, True)])
def test_added_product(low: int, clamped: bool) -> None:
    case = Case(np.random.default_rng(10), 5, 64, 8, 16)
    x, (acc, s, w) = residuals(case.rng, 5, 64), product(case.rng, 5, 64)
    x[1, :2] = 0, 1
    s = Scale(s.m, s.e * 0 + low)
    if not clamped:
        x >>= 1
    flag, device_x = zeros([1], np.int32), int32(x)
    case.run(Source.ADD, scale_a=w, x=device_x, acc=int32(acc), scales=words(s), flag=flag)
    added = residual_add(x, acc, s, w, FRAC)
    assert np.array_equal(download(device_x), added)
    assert not np.array_equal(added, residual_sum(x, acc, s, w, FRAC)) == clamped
    assert download(flag)[0] == clamped
    case.check(added, UNIT)


def test_embedding() -> None:
    case = Case(np.random.default_rng(11), 4, 96)
    embedding = case.rng.integers(-(1 << 15), 1 << 15, (50, 96))
    tokens = np.array([49, 0, 7, 7])
    x = upload(np.full((4, 96), -1, np.int32))
    case.run(
        Source.EMBED,
        frac=5,
        x=x,
        acc=upload(embedding.astype(np.int16)),
        tokens=int32(tokens),
    )
    assert np.array_equal(download(x), embedding[tokens] << 5)
    case.check(embedding[tokens] << 5, UNIT)


def test_split_attention() -> None:
    m, heads, d = 6, 3, 32
    case = Case(np.random.default_rng(12), m, heads * d, 8, 32)
    den = case.rng.integers(1 << 15, 1 << 40, (m, heads)) >> case.rng.integers(0, 16, (m, heads))
    bits = np.minimum(30 + np.arange(m) * 2, 39)
    sums = case.rng.integers(-(1 << 39), 1 << 39, (m, heads, d)) >> (40 - bits)[:, None, None]
    exponent = case.rng.integers(-30, -10, (m, heads))
    exponent[0], sums[0] = -512, 0
    r = scale_recip(scale_from_int(den))
    shift = np.clip(-(r.e + exponent + 15 + FRAC), 0, 63)
    v = saturate(round_shift(sums * r.m[..., None], shift[..., None]), 32)
    flag = zeros([1], np.int32)
    arrays = {"acc": upload(sums), "den": upload(den), "exponent": int32(exponent), "flag": flag}
    case.run(Source.SUMS, head_dim=d, **arrays)
    case.check(v.reshape(m, -1), UNIT)
    assert download(flag)[0] == 0
    # what leaves 32 bits, and what would have to be shifted to the left
    for e, total in ((0, 1 << 30), (30, 1)):
        flag.zero_()
        sums[...], exponent[...] = total, e
        arrays |= {"acc": upload(sums), "exponent": int32(exponent)}
        case.run(Source.SUMS, head_dim=d, **arrays)
        assert download(flag)[0] == 1


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("n", [48, 256])
def test_squared_relu_gate(n: int, normalise: bool) -> None:
    case = Case(np.random.default_rng(13), 4, n, normalise=normalise)
    acc = case.rng.integers(-(1 << 19), 1 << 19, (4, 2, n))
    acc[2] = -1
    acc[3, 0], acc[3, 1] = (1 << 19) - 1, -(1 << 19)
    s, a, b = scales(case.rng, 4, -30, -10), *(Scale(*pair) for pair in pairs(case.rng))
    case.run(Source.RELU2, scale_a=a, scale_b=b, acc=int32(acc), scales=words(s))
    case.check(norm.relu2_gate(acc[:, 0], acc[:, 1]), norm.gate_scale(s, a, b))


@pytest.mark.parametrize("e", [-60, -32, -24, 0])
def test_silu_gate(e: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "BLOCK_MAX", 128 if e == -32 else 8192)
    case = Case(np.random.default_rng(14), 5, 224, 16, 32, normalise=False)
    acc = case.rng.integers(-(1 << 27), 1 << 27, (5, 2, 224))
    acc[1, :, :2] = [[-(1 << 27), (1 << 27) - 1]] * 2
    s = scales(case.rng, 5, e, e + 6)
    s.m[0] = s.e[0] = 0
    a, b = (Scale(*pair) for pair in pairs(case.rng))
    flag, golden = zeros([1], np.int32), Saturation()
    case.run(Source.SWIGLU, scale_a=a, scale_b=b, acc=int32(acc), scales=words(s), flag=flag)
    case.check(norm.swiglu(acc[:, 0], acc[:, 1], s, a, golden), norm.swiglu_scale(s, b))
    assert download(flag)[0] == golden.seen == (e != -60)


def pairs(rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.integers(1 << 15, 1 << 16, 2), rng.integers(-12, 0, 2)], axis=1)


def test_refuses_another_width() -> None:
    case = Case(np.random.default_rng(15), 1, 32)
    case.n = 64
    with pytest.raises(ValueError, match=r"^out must have 64 elements per token, not 32$"):
        case.run(Source.RESIDUAL, x=int32(np.zeros((1, 64), np.int64)))

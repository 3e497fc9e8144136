"""Single steps of the C library against their golden models, on every target of this machine."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lutra_golden.arith.fixed import round_shift, saturate
from lutra_golden.arith.quantize import Q_MAX, ActivationGroups, q_max_of
from lutra_golden.arith.scale import Scale, scale_from_float
from lutra_golden.attention.attention import AttentionParams
from lutra_golden.attention.attention import attend as golden_attend
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.cache import KV_PAIRS
from lutra_golden.model.limits import least_shift
from lutra_golden.model.packed import PackedLinear
from lutra_golden.model.stored import StoredWeights
from lutra_golden.model.two_levels import SUPER, TwoLevels
from lutra_golden.vector.heads import HeadBias, HeadNorm
from lutra_golden.vector.norm import norm_quantize, relu2_gate, swiglu
from lutra_golden.vector.residual import residual_sum
from lutra_golden.vector.rope import rope_quantize, rope_quantize_fixed, rope_table

if shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)

from lutra.devices.cpu import steps
from lutra.devices.cpu.binding import matrix_of
from lutra.devices.cpu.library import library, strip_rows, target_names, target_number

TARGETS = [name for name, available in target_names().items() if available]
Int = NDArray[np.int64]


@pytest.fixture(scope="module", params=[1, 3])
def pool(request: pytest.FixtureRequest) -> steps.Pool:
    return steps.Pool(request.param)


def linear(weights: GroupedWeights, a_bits: int, least: int = 0) -> PackedLinear:
    """With the shift that the packer would choose, or a larger one."""
    shift = max(least_shift(weights.peak, q_max_of(a_bits), (1 << 27) - 1, 0), least)
    return PackedLinear(weights, scale_from_float(0.01), shift)


def grouped(
    rng: np.random.Generator, n: int, k: int, bits: int, group: int, scale_bits: int = 8
) -> GroupedWeights:
    shape = (n, k // group)
    return GroupedWeights(
        codes=rng.integers(0, 1 << bits, (n, k)).astype(np.uint8),
        scale=rng.integers(0, 1 << scale_bits, shape),
        zero=rng.integers(0, 2 * ((1 << bits) - 1) + 1, shape),
        bits=bits,
        group=group,
    )


def activations(rng: np.random.Generator, m: int, k: int, a_bits: int) -> NDArray[np.int16]:
    q_max = q_max_of(a_bits)
    a = rng.integers(-q_max, q_max + 1, (m, k)).astype(np.int16)
    a[0] = q_max * rng.choice([-1, 1], k)
    return a


def in_groups(rng: np.random.Generator, m: int, k: int, groups: ActivationGroups) -> Int:
    """Activations as integers: the first row is at its ends, and some groups are zeros."""
    n = -(-k // groups.size)
    e = rng.integers(0, groups.shift_max + 1, (m, n))
    q = rng.integers(-Q_MAX, Q_MAX + 1, (m, n, groups.size))
    q *= rng.integers(0, 4, (m, n, 1)) > 0
    e[0], q[0] = groups.shift_max, Q_MAX * rng.choice([-1, 1], q[0].shape)
    return (q << e[..., None]).reshape(m, -1)[:, :k]


def check_groups(
    target: str,
    pool: steps.Pool,
    weights: GroupedWeights,
    a: Int,
    groups: ActivationGroups,
    least: int = 0,
) -> None:
    """A product with activations in groups."""
    shift = max(least_shift(weights.peak, groups.peak, (1 << 27) - 1, 0), least)
    expected = round_shift(a @ weights.doubled().T, shift)
    for strip in sorted({0, strip_rows(target)}):
        packed = PackedLinear(weights, scale_from_float(0.01), shift)
        matrix = steps.Matrix.of(packed, groups, strip)
        actual = steps.matmul(target, pool, matrix, a.astype(np.int16), 8 + groups.shift_max)
        np.testing.assert_array_equal(actual, expected)


def check(target: str, pool: steps.Pool, w: PackedLinear, a: NDArray[np.int16], bits: int) -> None:
    """A product, of rows one by one and in strips where the target has them."""
    expected = round_shift(a.astype(np.int64) @ w.weights.doubled().T, w.shift)
    for strip in sorted({0, strip_rows(target)}):
        actual = steps.matmul(target, pool, steps.Matrix.of(w, strip=strip), a, bits)
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("k", [16, 128, 208, 576, 1280])
def test_ternary(target: str, k: int, pool: steps.Pool) -> None:
    rng = np.random.default_rng(k)
    for n in (1, 3, 17, 65):
        w = linear(GroupedWeights.from_integers(rng.integers(-1, 2, (n, k)).astype(np.int8)), 8, 1)
        for m in (*range(1, 10), 33):
            check(target, pool, w, activations(rng, m, k, 8), 8)
        for m in (1, 2, 7):
            check(target, pool, w, activations(rng, m, k, 16), 16)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [3, 6, 11, 12, 17])
def test_rows_deeper_than_what_a_cache_holds(target: str, m: int, pool: steps.Pool) -> None:
    """Products of a few columns take deep rows in pieces; the last one is half a pair of blocks."""
    k = 4096 + 3 * 128
    rng = np.random.default_rng(m)
    a = activations(rng, m, k, 8)
    integers = rng.integers(-1, 2, (7, k)).astype(np.int8)
    check(target, pool, linear(GroupedWeights.from_integers(integers), 8, 1), a, 8)
    w = rng.integers(-128, 128, (5, k)).astype(np.int8)
    expected = round_shift(2 * (a.astype(np.int64) @ w.astype(np.int64).T), 3)
    actual = steps.matmul(target, pool, steps.Matrix.signed(w, 3), a)
    np.testing.assert_array_equal(actual, expected)
    check(target, pool, linear(grouped(rng, 5, k, 4, 128), 8), a, 8)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
def test_groups(target: str, bits: int, pool: steps.Pool) -> None:
    rng = np.random.default_rng(bits)
    for group, k in ((16, 16), (16, 208), (32, 96), (48, 144), (64, 576), (128, 640), (512, 512)):
        for n, m in ((1, 1), (17, 2), (3, 3), (33, 5), (40, 13)):
            for a_bits in (8, 16):
                w = linear(grouped(rng, n, k, bits, group), a_bits)
                check(target, pool, w, activations(rng, m, k, a_bits), a_bits)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [1, 4, 5, 6, 8])
def test_sums_that_32_bits_do_not_hold(target: str, bits: int, pool: steps.Pool) -> None:
    """Every weight and every activation at one end, for one column, a few and many."""
    rng = np.random.default_rng(bits)
    w = grouped(rng, 40, 640, bits, 64, 16)
    top = (1 << bits) - 1
    w = replace(
        w,
        codes=np.full_like(w.codes, top),
        scale=np.full_like(w.scale, 65535),
        zero=np.zeros_like(w.zero),
    )
    for m in (1, 3, 40):
        for a_bits in (8, 16):
            a = np.full((m, 640), q_max_of(a_bits), np.int16)
            check(target, pool, linear(w, a_bits), a, a_bits)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [1, 4, 5, 6, 8])
def test_a_zero_point_that_all_groups_share(target: str, bits: int, pool: steps.Pool) -> None:
    rng = np.random.default_rng(bits)
    for zero in (0, 1, (1 << bits) - 1, 2 * ((1 << bits) - 1)):
        for group, k in ((16, 208), (32, 256), (48, 144), (128, 640)):
            for n, m in ((17, 2), (33, 5), (40, 13)):
                w = grouped(rng, n, k, bits, group, 16 if group == 32 else 8)
                w = replace(w, zero=np.full_like(w.zero, zero))
                assert matrix_of(linear(w, 8)).zero is None
                check(target, pool, linear(w, 8), activations(rng, m, k, 8), 8)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [1, 4, 5, 6, 8])
def test_two_zero_points_of_a_matrix(target: str, bits: int, pool: steps.Pool) -> None:
    """Marks of groups in every place of a byte, with columns of every kind."""
    rng, groups = np.random.default_rng(bits), ActivationGroups()
    top = 2 * ((1 << bits) - 1)
    for first, second in ((0, top), (top // 2 - 1, top // 2 + 1)):
        for group, k in ((16, 208), (32, 896), (48, 144), (64, 576), (128, 640), (512, 1024)):
            for n, m in ((1, 1), (17, 2), (33, 5), (40, 13)):
                w = grouped(rng, n, k, bits, group, 16 if group == 32 else 8)
                zero = rng.choice([first, second], w.zero.shape)
                zero[0, 0], zero[-1, -1] = second, first
                w = replace(w, zero=zero)
                c = matrix_of(linear(w, 8))
                assert c.zero is None and (c.marks is None) is (n == k // group == 1)
                check(target, pool, linear(w, 8), activations(rng, m, k, 8), 8)
                check_groups(target, pool, w, in_groups(rng, m, k, groups), groups)


def few_bits(
    rng: np.random.Generator, n: int, k: int, bits: int, group: int, scale_bits: int
) -> GroupedWeights:
    """Binary weights, ternary ones, or two bits about another zero point, in groups."""
    w = grouped(rng, n, k, bits, group, scale_bits)
    if bits == 1:
        return replace(w, zero=np.ones_like(w.zero))
    kind = int(rng.integers(0, 3))
    codes = np.minimum(w.codes, 2) if kind == 0 else w.codes
    return replace(w, codes=codes, zero=np.full_like(w.zero, (2, 3, 0)[kind]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("bits", "group"), [(b, g) for b in (1, 2) for g in (32, 64, 128, 256)])
def test_one_and_two_bits_in_groups(target: str, bits: int, group: int, pool: steps.Pool) -> None:
    """Whole and half pairs of blocks, eight groups and fewer, columns beside each other."""
    rng = np.random.default_rng(bits * group)
    for groups in (1, 2, 3, 5, 8, 9, 16, 19):
        for n, m in ((1, 1), (17, 2), (3, 3), (5, 4), (33, 5), (2, 9), (40, 16)):
            w = few_bits(rng, n, groups * group, bits, group, 16 if n > 20 else 8)
            assert matrix_of(linear(w, 8)).zero is None
            for a_bits in (8, 16):
                check(
                    target,
                    pool,
                    linear(w, a_bits),
                    activations(rng, m, w.codes.shape[1], a_bits),
                    a_bits,
                )
            for size, shift_max in ((32, 7), (64, 3), (128, 1)):
                activation_groups = ActivationGroups(size=size, shift_max=shift_max)
                a = in_groups(rng, m, w.codes.shape[1], activation_groups)
                check_groups(target, pool, w, a, activation_groups)


@pytest.mark.parametrize("target", TARGETS)
def test_one_and_two_bits_at_the_ends(target: str, pool: steps.Pool) -> None:
    """All codes, activations and exponents at one end, as sums of 16 bits do not hold."""
    groups = ActivationGroups()
    for bits, code, zero in ((1, 1, 1), (1, 0, 1), (2, 2, 2), (2, 0, 2), (2, 3, 0), (2, 0, 6)):
        for k, group in ((128, 32), (640, 64), (2048, 128), (4096, 256)):
            w = GroupedWeights(
                codes=np.full((3, k), code, np.uint8),
                scale=np.full((3, k // group), 65535),
                zero=np.full((3, k // group), zero),
                bits=bits,
                group=group,
            )
            for m, sign in ((1, 1), (2, -1), (9, 1)):
                check_groups(target, pool, w, np.full((m, k), sign * groups.peak), groups)
                check(target, pool, linear(w, 8), np.full((m, k), sign * Q_MAX, np.int16), 8)
                a = np.full((m, k), sign * 32767, np.int16)
                check(target, pool, linear(w, 16), a, 16)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("top", "shift"), [(100, 0), (32767, 0), (32767, 6)])
def test_offsets(target: str, top: int, shift: int, pool: steps.Pool) -> None:
    """Sums that fit 32 bits, and sums that do not."""
    rng = np.random.default_rng(top + shift)
    for bits, group, k in ((4, 32, 256), (6, 16, 208), (1, 128, 640)):
        for n, m in ((1, 1), (17, 2), (33, 5), (40, 13)):
            w = grouped(rng, n, k, bits, group)
            offset = rng.integers(-top, top + 1, w.scale.shape) << shift
            offset[0, 0] = top << shift
            for a_bits in (8, 16):
                matrix = linear(replace(w, offset=offset), a_bits)
                check(target, pool, matrix, activations(rng, m, k, a_bits), a_bits)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("size", "shift_max"), [(32, 7), (64, 3), (128, 1)])
def test_activations_in_groups(
    target: str, bits: int, size: int, shift_max: int, pool: steps.Pool
) -> None:
    """One zero point for all groups, one for each, and offsets; groups of every size."""
    rng = np.random.default_rng(bits + size)
    activation_groups = ActivationGroups(size=size, shift_max=shift_max)
    shapes = ((16, 16), (16, 208), (32, 96), (48, 144), (64, 576), (96, 288), (128, 640))
    for group, k in (*shapes, (512, 1024)):
        for n, m in ((1, 1), (17, 2), (3, 3), (33, 6), (40, 13)):
            w = grouped(rng, n, k, bits, group, 16 if n > 20 else 8)
            common = replace(w, zero=np.full_like(w.zero, int(rng.integers(0, 2 << bits) // 2)))
            offset = rng.integers(-32767, 32768, w.scale.shape) << (11 if n == 17 else 3)
            a = in_groups(rng, m, k, activation_groups)
            for each in (w, common, replace(common, offset=offset)):
                check_groups(target, pool, each, a, activation_groups)


def in_two_levels(
    rng: np.random.Generator, n: int, k: int, bits: int, group: int, most: int, offset: int | None
) -> StoredWeights:
    """Weights whose scales, and offsets if their largest factor is given, are in two levels, as
    K-quants have them, with multiples up to ``most``; the first row has the largest of all."""
    shape, shift = (n, k // group), (most - 1).bit_length()
    multiple = rng.integers(0, most + 1, shape).astype(np.uint8)
    factor = rng.integers(0, 1 << 16, (n, k // SUPER)).astype(np.uint16)
    factor[0], multiple[0] = 65535, most
    minima = None
    if offset is not None:
        factors = rng.integers(-offset, offset + 1, factor.shape).astype(np.int16)
        factors[0] = offset
        minima = factors, rng.integers(0, most + 1, shape).astype(np.uint8)
    levels = TwoLevels.of(factor, multiple, shift, minima, 5 if offset else 0)
    w = grouped(rng, n, k, bits, group)
    top = (1 << bits) - 1
    if offset is None:
        w = replace(w, zero=np.where(rng.integers(0, 2, shape) > 0, top + 1, top - 1))
    else:
        w = replace(w, zero=np.zeros_like(w.zero))
    return replace(StoredWeights.of(w, grouped=True), scale=None, levels=levels)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("bits", "group", "most", "offset"),
    [
        (4, 32, 63, 32767),
        (6, 16, 128, None),
        (5, 32, 15, 20000),
        (3, 16, 32, None),
        (2, 16, 15, 3000),
        (8, 32, 200, None),
        (4, 16, 63, 900),
    ],
)
def test_two_levels(
    target: str, bits: int, group: int, most: int, offset: int | None, pool: steps.Pool
) -> None:
    """Scales and offsets that are products, with activations of every kind; the rows' bytes."""
    rng, activation_groups = np.random.default_rng(bits + group), ActivationGroups()
    for k in (256, 768):
        for n, m in ((1, 1), (17, 2), (3, 3), (33, 6), (40, 13)):
            stored = in_two_levels(rng, n, k, bits, group, most, offset)
            w, levels = stored.unpack(), stored.levels
            assert levels is not None
            assert int(w.scale.max()) >= 65535 * most >> levels.shift
            a = in_groups(rng, m, k, activation_groups)
            shift = least_shift(w.peak, activation_groups.peak, (1 << 27) - 1, 0)
            linear = PackedLinear(stored, scale_from_float(0.01), shift)
            for strip in sorted({0, strip_rows(target)}):
                matrix = steps.Matrix.of(linear, activation_groups, strip)
                if bits > 2:
                    assert bool(matrix.c.levels) and matrix.n_bytes == stored.n_bytes
                    assert matrix.c.strip == strip
                actual = steps.matmul(target, pool, matrix, a.astype(np.int16), 15)
                np.testing.assert_array_equal(actual, round_shift(a @ w.doubled().T, shift))
            for a_bits in (8, 16):
                shift = least_shift(w.peak, q_max_of(a_bits), (1 << 27) - 1, 0)
                linear = PackedLinear(stored, scale_from_float(0.01), shift)
                check(target, pool, linear, activations(rng, m, k, a_bits), a_bits)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("bits", "group"), [(3, 16), (4, 32), (5, 32), (6, 16), (8, 128)])
def test_columns_about_those_that_are_taken_together(
    target: str, bits: int, group: int, pool: steps.Pool
) -> None:
    """Every number of columns up to more than any tile has, and more; rows of several runs."""
    rng, groups = np.random.default_rng(bits), ActivationGroups()
    w = grouped(rng, 70, 1152, bits, group, 16)
    zero = rng.choice([1 << bits, (1 << bits) - 2], w.zero.shape)
    offset = rng.integers(-32767, 32768, w.scale.shape)
    for m in (*range(1, 19), 40):
        a = in_groups(rng, m, 1152, groups)
        check_groups(target, pool, replace(w, zero=zero), a, groups)
        check_groups(target, pool, replace(w, zero=zero * 0, offset=offset), a, groups)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (5, 32), (6, 16), (8, 32)])
def test_rows_out_of_strips(target: str, bits: int, group: int, pool: steps.Pool) -> None:
    """Matrices in strips for activations in groups, times others: with a zero point for each
    group, two of them, offsets, and scales in two levels."""
    rng, groups = np.random.default_rng(bits), ActivationGroups()
    w = grouped(rng, 70, 768, bits, group, 16)
    marked = replace(w, zero=rng.choice([1 << bits, (1 << bits) - 2], w.zero.shape))
    matrices = [
        StoredWeights.of(w, grouped=True),
        StoredWeights.of(marked, grouped=True),
        in_two_levels(rng, 70, 768, bits, group, 63, 900),
        in_two_levels(rng, 70, 768, bits, group, 63, None),
    ]
    for stored in matrices:
        shift = least_shift(stored.unpack().peak, q_max_of(16), (1 << 27) - 1, 0)
        linear = PackedLinear(stored, scale_from_float(0.01), shift)
        matrix = steps.Matrix.of(linear, groups, strip_rows(target))
        assert matrix.c.strip == strip_rows(target)
        for m, a_bits in ((1, 8), (6, 8), (40, 8), (2, 16), (9, 16)):
            a = activations(rng, m, 768, a_bits)
            expected = round_shift(a.astype(np.int64) @ stored.unpack().doubled().T, shift)
            np.testing.assert_array_equal(steps.matmul(target, pool, matrix, a, a_bits), expected)


@pytest.mark.parametrize("target", TARGETS)
def test_activations_in_groups_at_the_ends(target: str, pool: steps.Pool) -> None:
    """All codes, zero points, offsets, activations and exponents at one end."""
    groups = ActivationGroups()
    shapes = [(32, 16, 16), (32, 32, 16), *((2048, group, 8) for group in (32, 128, 256, 2048))]
    for bits in (1, 4, 5, 6, 8):
        top = (1 << bits) - 1
        for k, group, offset_shift in shapes:
            shape, last = (3, k // group), 32767 << offset_shift
            ends = ((top, 0, None), (0, 2 * top, None), (top, 0, last), (0, 2 * top, -last))
            for code, zero, offset in ends:
                w = GroupedWeights(
                    codes=np.full((3, k), code, np.uint8),
                    scale=np.full(shape, 65535),
                    zero=np.full(shape, zero),
                    bits=bits,
                    group=group,
                    offset=None if offset is None else np.full(shape, offset),
                )
                for m, sign in ((1, 1), (2, -1), (9, 1)):
                    a = np.full((m, k), sign * groups.peak)
                    check_groups(target, pool, w, a, groups)


@pytest.mark.parametrize("target", TARGETS)
def test_rows_without_groups_times_activations_in_groups(target: str, pool: steps.Pool) -> None:
    """Ternary matrices and heads, of depths that 32 bits do not hold the sums of."""
    rng, groups = np.random.default_rng(8), ActivationGroups()
    for n, k in ((1, 16), (35, 144), (3, 5120), (2, 40_064)):
        for m in (1, 2, 3, 6, 13):
            a = in_groups(rng, m, k, groups)
            ternary = GroupedWeights.from_integers(rng.integers(-1, 2, (n, k)).astype(np.int8))
            check_groups(target, pool, ternary, a, groups, 1)
            w = rng.integers(-121, 122, (n, k)).astype(np.int8)
            w[0] = 127 * np.sign(a[0])
            actual = steps.matmul(target, pool, steps.Matrix.signed(w, 12), a.astype(np.int16), 15)
            np.testing.assert_array_equal(actual, round_shift(2 * (a @ w.T.astype(np.int64)), 12))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("scale_bits", "shift"), [(16, 0), (8, 9), (16, 12), (1, 0)])
def test_wide_scales_and_shifts(target: str, scale_bits: int, shift: int, pool: steps.Pool) -> None:
    rng = np.random.default_rng(scale_bits)
    for m in (1, 6):
        w = linear(grouped(rng, 19, 384, 4, 32, scale_bits), 8, shift)
        check(target, pool, w, activations(rng, m, 384, 8), 8)
        w = linear(grouped(rng, 19, 384, 4, 32, scale_bits), 16, shift)
        check(target, pool, w, activations(rng, m, 384, 16), 16)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [1, 2, 4, 5])
def test_sums_of_16_bits_would_overflow(target: str, m: int, pool: steps.Pool) -> None:
    """All weights and activations at one end: sums of 16 bits wrap around, or saturate."""
    k = 4096
    for sign in (-1, 1):
        a = np.full((m, k), sign * Q_MAX, np.int16)
        ones = linear(GroupedWeights.from_integers(np.ones((3, k), np.int8)), 8, 1)
        actual = steps.matmul(target, pool, steps.Matrix.of(ones), a)
        np.testing.assert_array_equal(actual, np.full((m, 3), sign * k * Q_MAX))
        for bits in (1, 2, 3, 4, 5, 6, 8):
            shape = (3, k // 128)
            w = GroupedWeights(
                codes=np.full((3, k), (1 << bits) - 1, np.uint8),
                scale=np.full(shape, 255),
                zero=np.zeros(shape, np.int64),
                bits=bits,
                group=128,
            )
            check(target, pool, linear(w, 8), a, 8)
            check(target, pool, linear(w, 16), (a.astype(np.int32) * 258).astype(np.int16), 16)
        for h in (-121, 121, -128):
            head = steps.Matrix.signed(np.full((3, k), h, np.int8), 1)
            np.testing.assert_array_equal(
                steps.matmul(target, pool, head, a), np.full((m, 3), sign * k * Q_MAX * h)
            )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [1, 6, 17])
def test_one_group_of_any_depth(target: str, m: int, pool: steps.Pool) -> None:
    """Sums of a group that 32 bits do not hold: the group is taken in parts."""
    k = 70_144
    for sign, zero in ((1, 0), (-1, 0), (1, 510)):
        w = GroupedWeights(
            codes=np.full((3, k), 0 if zero else 255, np.uint8),
            scale=np.full((3, 1), 255),
            zero=np.full((3, 1), zero),
            bits=8,
            group=k,
        )
        check(target, pool, linear(w, 8), np.full((m, k), sign * Q_MAX, np.int16), 8)
        check(target, pool, linear(w, 16), np.full((m, k), sign * 32767, np.int16), 16)


@pytest.mark.parametrize("target", TARGETS)
def test_several_groups_of_any_depth(target: str, pool: steps.Pool) -> None:
    """Parts of a group have its scale and its zero point."""
    rng = np.random.default_rng(5)
    w, a = grouped(rng, 3, 2 * 70_144, 8, 70_144), activations(rng, 2, 2 * 70_144, 8)
    check(target, pool, linear(w, 8), a, 8)
    w = replace(w, offset=rng.integers(-32767, 32768, w.scale.shape))
    check(target, pool, linear(w, 8), a, 8)


@pytest.mark.parametrize("target", TARGETS)
def test_signed_rows(target: str, pool: steps.Pool) -> None:
    rng = np.random.default_rng(3)
    for n, k in ((1, 16), (5, 100), (35, 576), (300, 128)):
        w = rng.integers(-121, 122, (n, k)).astype(np.int8)
        for m, bits in ((1, 8), (3, 8), (6, 8), (1, 16), (4, 16)):
            a = activations(rng, m, k, bits)
            exact = 2 * (a.astype(np.int64) @ w.T.astype(np.int64))
            actual = steps.matmul(target, pool, steps.Matrix.signed(w, 4), a, bits)
            np.testing.assert_array_equal(actual, round_shift(exact, 4))


def scale_at(rng: np.random.Generator, low: int, high: int, *shape: int) -> Scale:
    return Scale(rng.integers(1 << 15, 1 << 16, shape), rng.integers(low, high, shape))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("a_bits", [8, 16])
def test_norms(target: str, a_bits: int) -> None:
    rng = np.random.default_rng(a_bits)
    for top in (0, 1, 100, 1 << 15, (1 << 31) - 1, (1 << 47) + 5, 1 << 57):
        for n in (1, 8, 96, 577):
            v = rng.integers(-top, top + 1, n) if top else np.zeros(n, np.int64)
            v[-1], v[0] = top, -top
            gamma = rng.integers(-32768, 32768, n).astype(np.int16)
            scale, eps = scale_at(rng, -40, 0), scale_from_float(1e-5)
            inv_n = scale_from_float(1 / n)
            for plain in (False, True):
                ones = np.full(n, 1 << 14, np.int64)
                q, s = norm_quantize(
                    v[None],
                    Scale(scale.m[None], scale.e[None]),
                    ones if plain else gamma.astype(np.int64),
                    14,
                    inv_n,
                    eps,
                    normalise=not plain,
                    q_max=q_max_of(a_bits),
                )
                actual, out = steps.norm_quantize(
                    target, v, scale, None if plain else gamma, 14, inv_n, eps, a_bits
                )
                np.testing.assert_array_equal(actual, q[0])
                assert (int(out.m), int(out.e)) == (int(s.m[0]), int(s.e[0]))


@pytest.mark.parametrize("target", TARGETS)
def test_a_group_whose_double_is_the_largest(target: str) -> None:
    """It has the exponent 1, as none of its elements passes the row's largest."""
    inv_n, eps = scale_from_float(1 / 64), scale_from_float(1e-5)
    v = np.tile(np.arange(1, 33, dtype=np.int64), 2) << 10
    v[:32] *= 2
    gamma, groups = np.full(64, 1 << 12, np.int16), ActivationGroups(shift_max=3)
    scale = Scale(np.asarray(1 << 15), np.asarray(-29))
    q, _ = norm_quantize(
        v[None],
        Scale(scale.m[None], scale.e[None]),
        gamma.astype(np.int64),
        14,
        inv_n,
        eps,
        groups=groups,
        run=64,
    )
    assert q[0, -1] == 127 << 2
    actual, _ = steps.norm_quantize(target, v, scale, gamma, 14, inv_n, eps, groups=groups, run=64)
    np.testing.assert_array_equal(actual, q[0])


@pytest.mark.parametrize("target", TARGETS)
def test_norms_in_groups(target: str) -> None:
    rng, inv_n, eps = np.random.default_rng(6), scale_from_float(1 / 99), scale_from_float(1e-5)
    for top in (0, 1, 100, (1 << 31) - 1, 1 << 57):
        for n, run in ((32, 32), (1, 1), (96, 96), (240, 80), (64, 16), (577, 577)):
            v = rng.integers(-top, top + 1, n) >> rng.integers(0, 12, -(-n // 16)).repeat(16)[:n]
            gamma = rng.integers(-32768, 32768, n).astype(np.int16)
            scale = scale_at(rng, -40, 0)
            for size, shift_max in ((32, 7), (64, 3), (128, 1)):
                groups = ActivationGroups(size=size, shift_max=shift_max)
                q, s = norm_quantize(
                    v[None],
                    Scale(scale.m[None], scale.e[None]),
                    gamma.astype(np.int64),
                    14,
                    inv_n,
                    eps,
                    groups=groups,
                    run=run,
                )
                actual, out = steps.norm_quantize(
                    target, v, scale, gamma, 14, inv_n, eps, groups=groups, run=run
                )
                np.testing.assert_array_equal(actual, q[0])
                assert (int(out.m), int(out.e)) == (int(s.m[0]), int(s.e[0]))


@pytest.mark.parametrize("target", TARGETS)
def test_gates(target: str) -> None:
    rng = np.random.default_rng(1)
    for n in (1, 7, 200):
        g, u = (rng.integers(-(1 << 19), 1 << 19, n).astype(np.int32) for _ in range(2))
        s, w = scale_at(rng, -40, -20), scale_at(rng, -30, -10)
        np.testing.assert_array_equal(
            steps.gate(target, g, u, False, s, w),
            relu2_gate(g.astype(np.int64), u.astype(np.int64)),
        )
    for e in (-60, -45, -38, -33, -20, 0, 40):
        g, u = (rng.integers(-(1 << 27) + 1, 1 << 27, 999).astype(np.int32) for _ in range(2))
        g[:5] = 0, 1, -1, (1 << 27) - 1, 1 - (1 << 27)
        s, w = scale_at(rng, e, e + 1), scale_at(rng, -20, -15)
        one = Scale(s.m[None], s.e[None])
        expected = swiglu(g.astype(np.int64)[None], u[None].astype(np.int64), one, w)
        np.testing.assert_array_equal(steps.gate(target, g, u, True, s, w), expected[0])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("q_max", [7, 127])
def test_heads(target: str, q_max: int) -> None:
    """Queries, keys and values, with and without biases and norms."""
    rng = np.random.default_rng(2)
    for d in (32, 128, 256):
        table = rope_table(50, d, 10000.0)[31:32]
        rope = table[0].astype(np.int16)
        for top in (0, 3, 1 << 27):
            acc = rng.integers(-top, top + 1, d)
            s, w = scale_at(rng, -40, -25), scale_at(rng, -20, -10)
            row, x = Scale(s.m[None], s.e[None]), acc[None, None]
            narrow = acc.astype(np.int32)
            bias = rng.integers(-32768, 32768, d).astype(np.int16)
            gamma = rng.integers(-32768, 32768, d).astype(np.int16)
            centre = rng.integers(-32768, 32768, d).astype(np.int16)
            golden_bias = HeadBias(bias[None].astype(np.int64), 12)
            golden_centre = HeadBias(bias[None].astype(np.int64), 5, centre[None].astype(np.int64))
            golden_norm = HeadNorm(gamma.astype(np.int64), 13, 43)
            for rotated in (rope, None):
                at = None if rotated is None else table
                for actual, expected in (
                    (
                        steps.head(target, narrow, s, w, rotated, q_max=q_max),
                        rope_quantize(x, row, w, at, q_max),
                    ),
                    (
                        steps.head(
                            target, narrow, s, w, rotated, (bias, 12), fixed=True, q_max=q_max
                        ),
                        rope_quantize_fixed(x, row, w, at, golden_bias, q_max=q_max),
                    ),
                    (
                        steps.head(
                            target,
                            narrow,
                            s,
                            w,
                            rotated,
                            (bias, 5),
                            centre=centre,
                            fixed=True,
                            q_max=q_max,
                        ),
                        rope_quantize_fixed(x, row, w, at, golden_centre, q_max=q_max),
                    ),
                    (
                        steps.head(
                            target,
                            narrow,
                            s,
                            w,
                            rotated,
                            None,
                            (gamma, 13, 43),
                            fixed=True,
                            q_max=q_max,
                        ),
                        rope_quantize_fixed(x, row, w, at, None, golden_norm, q_max),
                    ),
                ):
                    np.testing.assert_array_equal(actual[0], expected[0][0, 0])
                    assert int(actual[1].m) == int(expected[1].m[0, 0])
                    assert int(actual[1].e) == int(expected[1].e[0, 0])


@pytest.mark.parametrize("target", TARGETS)
def test_residual(target: str) -> None:
    rng = np.random.default_rng(4)
    for e in (-50, -30, -14, 10):
        x = rng.integers(-(1 << 31), 1 << 31, 333).astype(np.int32)
        acc = rng.integers(-(1 << 27), 1 << 27, 333).astype(np.int32)
        s, w = scale_at(rng, e, e + 1), scale_at(rng, -16, -15)
        row = Scale(s.m[None], s.e[None])
        exact = residual_sum(x[None].astype(np.int64), acc[None].astype(np.int64), row, w, 14)[0]
        actual, saturated = steps.residual(target, x, acc, s, w, 14)
        np.testing.assert_array_equal(actual, saturate(exact, 32))
        assert saturated == (not np.array_equal(exact, saturate(exact, 32)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("m", "position", "window"),
    [(1, 0, 0), (1, 16, 0), (5, 0, 0), (3, 301, 0), (7, 20, 9), (1, 600, 300), (2, 3, 1)],
)
@pytest.mark.parametrize("kv", KV_PAIRS)
def test_attention(target: str, kv: tuple[int, int], m: int, position: int, window: int) -> None:
    rng = np.random.default_rng(m + position)
    tops = tuple(map(q_max_of, kv))
    for heads, kv_heads, d in ((4, 2, 32), (3, 1, 64), (5, 1, 128), (2, 2, 256)):
        total = position + m
        params = AttentionParams(head_dim=d, n_heads=heads, n_kv_heads=kv_heads)
        q = rng.integers(-127, 128, (m, heads, d)).astype(np.int8)
        k, v = (rng.integers(-top, top + 1, (kv_heads, total, d)).astype(np.int8) for top in tops)
        k[:, 0], v[:, 0], q[0, 0] = tops[0], -tops[1], -127
        q_scale = scale_at(rng, -27, -24, m, heads)
        k_scale, v_scale = (
            scale_at(rng, -25, -20, total, kv_heads),
            scale_at(rng, -40, -20, total, kv_heads),
        )
        v_scale.m[::5] = v_scale.e[::5] = k_scale.m[1::7] = k_scale.e[1::7] = 0
        wide = [x.astype(np.int64) for x in (q, k, v)]
        expected = golden_attend(
            params, wide[0], q_scale, wide[1], k_scale, wide[2], v_scale, position, 14, window
        )
        for page in (16, 64, 256):
            actual = steps.attend(
                target, q, q_scale, k, k_scale, v, v_scale, 14, window, kv, page=page
            )
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("target", TARGETS)
def test_attention_to_its_ends(target: str) -> None:
    """The largest sums: extreme values everywhere, the same at all positions."""
    d, total = 64, 700
    for sign in (-1, 1):
        q = np.full((1, 1, d), 127, np.int8)
        k = np.full((1, total, d), sign * 127, np.int8)
        v = np.full((1, total, d), -sign * 127, np.int8)
        one = Scale(np.full((1, 1), 0xFFFF), np.full((1, 1), -30))
        many = Scale(np.full((total, 1), 0xFFFF), np.full((total, 1), -30))
        params = AttentionParams(head_dim=d, n_heads=1, n_kv_heads=1)
        wide = [x.astype(np.int64) for x in (q, k, v)]
        expected = golden_attend(params, wide[0], one, wide[1], many, wide[2], many, total - 1, 14)
        actual = steps.attend(target, q, one, k, many, v, many, 14)
        np.testing.assert_array_equal(actual, expected)


def test_targets_have_the_numbers_of_their_names() -> None:
    for name in TARGETS:
        assert library().lutra_cpu_target_name(target_number(name)).decode() == name


def test_a_target_that_is_not_there_is_refused() -> None:
    names = ", ".join(TARGETS)
    with pytest.raises(LutraError, match=f"^target must be one of {names} on this machine, not 'm"):
        target_number("mmx")

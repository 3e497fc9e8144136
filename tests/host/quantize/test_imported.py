"""Weights that a checkpoint holds as integers: what the file says is what runs."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.quantize.random_decoder import as_products

from lutra.checkpoints.weights import Grouped, Ternary
from lutra.quantize import imported
from lutra.quantize.imported import from_grouped, from_ternary, scale_step
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import W_BITS
from lutra_golden.model.stored import StoredWeights

N, GROUPS, GROUP = 6, 4, 32


def random_grouped(bits: int, scale: NDArray[np.floating], zero: float, seed: int = 1) -> Grouped:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (len(scale), GROUPS * GROUP))
    return Grouped(
        codes=codes.astype(np.uint8),
        scale=scale.astype(np.float32),
        zero=np.full(scale.shape, zero, np.float32),
        bits=bits,
        group=GROUP,
    )


def half_scales(spread: float, seed: int = 2) -> NDArray[np.float32]:
    """float16 scales of both signs, ``spread`` between the largest and the smallest magnitude."""
    rng = np.random.default_rng(seed)
    scale = 0.11 * spread ** -rng.uniform(0, 1, (N, GROUPS))
    scale[0, :2] = 0.11, 0.11 / spread
    return (scale * rng.choice([-1, 1], scale.shape)).astype(np.float16).astype(np.float32)


def test_ternary_weights_are_exact() -> None:
    codes = np.random.default_rng(3).integers(-1, 2, (4, 64)).astype(np.int8)
    found = from_ternary(Ternary(codes, 0.3))
    assert found.weights.ternary
    assert found.scale == 0.3
    np.testing.assert_array_equal(found.weights.doubled(), 2 * codes.astype(int))


@pytest.mark.parametrize(
    ("bits", "zero"), [(4, 8), (8, 128), (6, 32), (2, 1), (4, 7.5), (4, 0), (4, 15)]
)
def test_half_scales_are_exact(bits: int, zero: float) -> None:
    """Scales within a factor of 32, as integers of 16 bits; negative ones turn codes around."""
    weight = random_grouped(bits, half_scales(31.9), zero)
    found = from_grouped(weight)
    assert (weight.scale < 0).any()
    assert found.weights.scale.max() <= 0xFFFF
    assert found.weights.bits == bits
    np.testing.assert_array_equal(found.dequantized(), weight.dequantized())
    exact = found.weights.doubled() * (found.scale / 2)
    scale, zeros = (x.astype(np.float64).repeat(GROUP, axis=1) for x in (weight.scale, weight.zero))
    np.testing.assert_array_equal(exact, scale * (weight.codes - zeros))


def test_equal_scales_are_ones() -> None:
    weight = random_grouped(4, np.full((N, GROUPS), 0.37), 8)
    found = from_grouped(weight)
    assert found.weights.scale.max() <= 0xFFFF
    np.testing.assert_array_equal(found.dequantized(), weight.dequantized())


def test_small_scales_are_rounded_and_large_ones_are_not() -> None:
    weight = random_grouped(4, half_scales(5000), 8)
    found = from_grouped(weight)
    top = np.abs(weight.scale).max()
    large = np.abs(weight.scale) > top / 31.9
    assert 0 < large.sum() < large.size
    off = np.abs(found.weights.scale * found.scale - np.abs(weight.scale))
    assert off[large].max() == 0
    assert 0 < off.max() <= top * 2**-16


def test_scales_of_many_bits_are_rounded() -> None:
    """Scales as in Q6_K: products of a float16 and an integer."""
    scale = half_scales(4) * np.random.default_rng(4).integers(20, 127, (N, GROUPS))
    weight = random_grouped(6, scale, 32)
    found = from_grouped(weight)
    top = np.abs(weight.scale).max()
    off = np.abs(found.weights.scale * found.scale - np.abs(weight.scale))
    assert 0 < off.max() <= top / 65535 / 2 * 1.001
    assert found.weights.scale.max() == 65535


def test_groups_without_a_scale_weigh_nothing() -> None:
    scale = half_scales(4)
    scale[1], scale[2, 2] = 0, 1e-30
    weight = random_grouped(4, scale, 8)
    found = from_grouped(weight)
    assert not found.weights.doubled()[1].any()
    assert np.abs(found.dequantized() - weight.dequantized()).max() < 1e-28
    empty = from_grouped(random_grouped(4, 0 * scale, 8))
    assert not empty.weights.doubled().any()


def test_the_step() -> None:
    assert scale_step(np.array([3.0, 5.0, 6.5], np.float32)) == 0.5
    assert scale_step(np.array([65535.0, 1.0], np.float32)) == 1
    assert scale_step(np.array([1.0, 2.0**-15], np.float32)) == 2.0**-15
    # 65538 steps are too many: twice the step rounds odd scales alone, a stretched one all but one
    even = np.arange(20000, 65539, 1002)
    assert scale_step(np.array([65538.0, 1.0], np.float32)) == 65538 / 65535
    assert scale_step(np.array([65538.0, 1.0, *even], np.float32)) == 2
    assert scale_step(np.array([0.0, 4.0], np.float32)) == 4
    assert scale_step(np.zeros(3, np.float32)) == 1
    assert scale_step(np.zeros(0, np.float32)) == 1


@pytest.mark.parametrize("lot", [1, 3, 1 << 17])
def test_the_step_of_many_scales(lot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever lots they are looked at in."""
    monkeypatch.setattr(imported, "_NUMBERS", lot)
    assert scale_step(np.array([[24.0, 40.0], [6.5, 8.0]], np.float32)) == 0.5
    assert scale_step(np.array([[12.0, 0.0], [-40.0, 20.0]], np.float32)) == 4
    even = np.arange(20000, 65539, 1002)
    assert scale_step(np.array([65538.0, 1.0, *even], np.float32)) == 2
    assert scale_step(np.array([*even, 1.0, 65538.0], np.float32)) == 2
    assert scale_step(np.array([1.0, 0.0, 65538.0], np.float32)) == 65538 / 65535


@pytest.mark.parametrize("group", [24, 20, 18, 15])
def test_codes_of_negative_groups_alone_are_mirrored(group: int) -> None:
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 16, (5, 7 * group)).astype(np.uint8)
    scale = rng.choice(np.array([-2, 3], np.float32), (5, 7))
    weight = Grouped(
        codes=codes, scale=scale, zero=np.full((5, 7), 7, np.float32), bits=4, group=group
    )
    w = from_grouped(weight).weights
    negative = (scale < 0).repeat(group, axis=1)
    np.testing.assert_array_equal(w.codes, np.where(negative, 15 - codes, codes))
    np.testing.assert_array_equal(w.zero, np.where(scale < 0, 16, 14))
    np.testing.assert_array_equal(w.scale, np.abs(scale))


def with_offsets(bits: int, spread: float = 0.3) -> Grouped:
    """Like K-quants: steps that are products, and minima that are multiples of no step."""
    weight = random_grouped(bits, np.abs(half_scales(8)) * 0.7, 0)
    offset = -np.random.default_rng(6).uniform(0, spread, weight.scale.shape)
    return replace(weight, offset=offset.astype(np.float32))


@pytest.mark.parametrize("bits", [1, 4, 5, 6])
def test_offsets_stay_beside_the_codes(bits: int) -> None:
    weight = with_offsets(bits)
    found = from_grouped(weight, offsets=True)
    w = found.weights
    np.testing.assert_array_equal(w.codes, weight.codes)
    assert w.bits == min(x for x in W_BITS if x >= bits)
    assert w.offset is not None and weight.offset is not None
    StoredWeights.of(w)
    step, offset = w.scale * found.scale, w.offset * found.scale / 2
    assert np.abs(step - weight.scale).max() <= weight.scale.max() * 2**-16
    assert np.abs(offset - weight.offset).max() <= np.abs(weight.offset).max() * 2**-15
    exact = found.weights.doubled() * (found.scale / 2)
    top = np.abs(exact).max()
    np.testing.assert_allclose(found.dequantized(), exact, rtol=0, atol=top * 2**-22)  # float32
    rest = np.abs(exact - weight.dequantized()).max()
    assert rest < top * 2**-14
    finer = from_grouped(weight)
    assert finer.weights.offset is None
    assert finer.weights.bits == 8
    assert np.abs(finer.dequantized() - weight.dequantized()).max() > rest


def test_negative_steps_turn_codes_and_not_offsets() -> None:
    weight = with_offsets(4)
    weight = replace(weight, scale=-weight.scale)
    found = from_grouped(weight, offsets=True)
    np.testing.assert_array_equal(found.weights.codes, 15 - weight.codes)
    np.testing.assert_allclose(found.dequantized(), weight.dequantized(), rtol=0, atol=1e-4)


def test_groups_that_are_their_offsets() -> None:
    """Steps of nothing, or next to nothing."""
    for step in (0.0, 1e-12):
        weight = with_offsets(4)
        weight = replace(weight, scale=np.full_like(weight.scale, step))
        found = from_grouped(weight, offsets=True)
        StoredWeights.of(found.weights)
        np.testing.assert_allclose(found.dequantized(), weight.dequantized(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 15.0, 3000.0])
@pytest.mark.parametrize(("most", "affine"), [(63, True), (127, False), (15, True)])
def test_products_become_two_levels(spread: float, most: int, affine: bool) -> None:
    """Within a step of the largest factor's 65535; and as close to the file as one level is."""
    weight = as_products(40, 3, most, affine=affine, spread=spread)
    found = from_grouped(weight, offsets=True)
    levels, w = found.levels, found.weights
    assert levels is not None
    assert levels.bits == (8 if most > 63 else 6 if most > 15 else 4)
    stored = StoredWeights.of(w, levels=levels)
    np.testing.assert_array_equal(stored.unpack().doubled(), w.doubled())
    scale = np.abs(weight.scales.values().astype(np.float64)) if weight.scales else None
    assert scale is not None
    off = np.abs(w.scale * found.scale - scale)
    assert off.max() <= scale.max() * 2**-16 * (1 + 1 / most)
    if weight.offset is not None:
        assert w.offset is not None
        off = np.abs(w.offset * (found.scale / 2) - weight.offset)
        # factors are exact as integers of fifteen bits, or rounded, too
        limit = 2**-15 if spread < 16 else 2**-14
        assert off.max() <= np.abs(weight.offset).max() * limit
    # where factors are rounded, too, that adds less than one level has: next to nothing
    one = from_grouped(replace(weight, scales=None, offsets=None), offsets=True)
    assert one.levels is None
    exact = weight.dequantized().astype(np.float64)
    errors = [
        float(((each.weights.doubled() * (each.scale / 2) - exact) ** 2).mean())
        for each in (found, one)
    ]
    own = float((scale**2).mean()) / 12  # what a quantiser's own rounding costs
    assert errors[0] <= 2 * errors[1] < 1e-5 * own


def test_factors_that_are_exact_stay_so() -> None:
    """Factors within a factor of 32 of each other count in a power of two."""
    weight = as_products(40, 3, 63, affine=True, spread=15.0)
    levels = from_grouped(weight, offsets=True).levels
    assert levels is not None and weight.scales is not None
    factor = levels.records[..., -4:-2].copy().view("<u2")[..., 0].astype(np.float64)
    ratio = factor / weight.scales.factor
    assert (ratio == ratio[0, 0]).all() and np.log2(ratio[0, 0]) % 1 == 0
    assert 1 << 15 <= factor.max() < 1 << 16


def test_products_of_nothing() -> None:
    weight = as_products(40, 3, 63, affine=True)
    assert weight.scales is not None and weight.offsets is not None
    for scaled, offset in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1e-9, 1.0)):
        scales = weight.scales.scaled(np.float32(scaled))
        offsets = weight.offsets.scaled(np.float32(offset))
        some = replace(
            weight, scale=scales.values(), offset=offsets.values(), scales=scales, offsets=offsets
        )
        found = from_grouped(some, offsets=True)
        np.testing.assert_allclose(found.dequantized(), some.dequantized(), rtol=0, atol=5e-4)
        if not scaled and not offset:
            assert not found.weights.doubled().any()


def test_multiples_of_offsets_that_are_larger_than_those_of_scales() -> None:
    weight = as_products(40, 3, 63, affine=True)
    assert weight.scales is not None
    scales = replace(weight.scales, multiple=weight.scales.multiple // 4)
    weight = replace(weight, scale=scales.values(), scales=scales)
    found = from_grouped(weight, offsets=True)
    assert found.levels is not None and found.levels.shift == 6
    np.testing.assert_allclose(found.dequantized(), weight.dequantized(), rtol=0, atol=1e-4)


def test_products_are_scaled_and_taken_by_rows() -> None:
    weight = as_products(40, 3, 63, affine=True)
    rows = np.array([7, 0, 3])
    by = np.array([[0.5], [3.0], [1.25]], np.float32)
    some = weight.rows(rows).scaled(by)
    assert some.scales is not None and some.offsets is not None and some.offset is not None
    np.testing.assert_allclose(some.scales.values(), some.scale, rtol=1e-6)
    np.testing.assert_allclose(some.offsets.values(), some.offset, rtol=1e-6)
    np.testing.assert_array_equal(some.scale, weight.scale[rows] * by)


def test_devices_without_offsets_take_no_two_levels() -> None:
    for affine in (True, False):
        assert from_grouped(as_products(40, 3, 63, affine=affine)).levels is None


@pytest.mark.parametrize("what", ["scale", "zero"])
def test_values_that_are_not_finite(what: str) -> None:
    weight = random_grouped(4, half_scales(4), 8)
    getattr(weight, what)[2, 1] = np.nan
    with pytest.raises(
        LutraError, match=r"^group scales hold infinities or NaNs: export the model"
    ):
        from_grouped(weight)


def test_zero_points_out_of_range() -> None:
    with pytest.raises(LutraError, match=r"^zero points must be in 0\.\.15, not 16\.0\.\.16\.0: "):
        from_grouped(random_grouped(4, np.abs(half_scales(4)), 16))


def test_an_order_of_columns() -> None:
    weight = random_grouped(4, half_scales(4), 8)
    ordered = Grouped(
        codes=weight.codes,
        scale=weight.scale,
        zero=weight.zero,
        bits=4,
        group=GROUP,
        order=np.arange(GROUPS * GROUP)[::-1],
    )
    with pytest.raises(LutraError, match=r"^the groups of this matrix are not in the order of its"):
        from_grouped(ordered)

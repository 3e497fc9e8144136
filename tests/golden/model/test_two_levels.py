"""Scales and offsets in two levels: products of factors and multiples, and their records."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lutra_golden.arith.scale import scale_from_int
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.packed import PackedLinear
from lutra_golden.model.stored import StoredWeights
from lutra_golden.model.two_levels import SUPER, TwoLevels

N, S = 3, 2


def two_levels(groups: int, most: int, *, offsets: bool, seed: int = 1) -> TwoLevels:
    """Random ones; the first group has the largest numbers of all."""
    rng = np.random.default_rng(seed)
    factor = rng.integers(0, 1 << 16, (N, S)).astype(np.uint16)
    minima = rng.integers(-(1 << 15), 1 << 15, (N, S)).astype(np.int16)
    multiples = rng.integers(0, most + 1, (2, N, S * groups)).astype(np.uint8)
    factor[0, 0], minima[0, 0], multiples[:, 0, 0] = 65535, -32768, most
    shift = (most - 1).bit_length()
    offset = (minima, multiples[1]) if offsets else None
    return TwoLevels.of(factor, multiples[0], shift, offset, 3 if offsets else 0)


def stored(levels: TwoLevels, bits: int = 4) -> StoredWeights:
    """Weights of these scales and offsets."""
    rng, group = np.random.default_rng(2), SUPER // levels.groups
    weights = GroupedWeights(
        codes=rng.integers(0, 1 << bits, (N, S * SUPER)).astype(np.uint8),
        scale=levels.scale.astype(np.int64),
        zero=np.full((N, S * levels.groups), 8),
        bits=bits,
        group=group,
        offset=None if levels.offset is None else levels.offset.astype(np.int64) << 3,
    )
    return StoredWeights.of(weights, levels=levels)


@pytest.mark.parametrize(
    ("groups", "most", "offsets", "bits", "n_bytes"),
    [
        (8, 63, True, 6, 16),
        (16, 15, True, 4, 20),
        (16, 32, False, 6, 14),
        (16, 128, False, 8, 18),
        (8, 255, True, 8, 20),
        (16, 64, True, 8, 36),
    ],
)
def test_products_rounded_half_up(
    groups: int, most: int, offsets: bool, bits: int, n_bytes: int
) -> None:
    """By another reading of the records: bit by bit."""
    levels = two_levels(groups, most, offsets=offsets)
    assert (levels.bits, levels.records.shape) == (bits, (N, S, n_bytes))
    scale, offset = levels.scale, levels.offset
    assert scale.dtype == np.uint16 and scale.shape == (N, S * groups)
    assert (offset is not None) is offsets
    half = 2 ** (levels.shift - 1)
    for n in range(N):
        for s in range(S):
            number = int.from_bytes(levels.records[n, s].tobytes(), "little")
            fields = (1 + offsets) * groups
            multiples = [number >> i * bits & ((1 << bits) - 1) for i in range(fields)]
            factors = number >> fields * bits
            low, high = factors & 0xFFFF, factors >> 16
            for g in range(groups):
                product = low * multiples[g] + half
                assert scale[n, s * groups + g] == product >> levels.shift
                if offset is not None:
                    signed = high - (1 << 16 if high >> 15 else 0)
                    product = signed * multiples[groups + g] + half
                    assert offset[n, s * groups + g] == product >> levels.shift
    assert int(scale.max()) == (65535 * most + half) >> levels.shift


@pytest.mark.parametrize(("groups", "most", "offsets"), [(8, 63, True), (16, 128, False)])
def test_stored_weights_of_two_levels(groups: int, most: int, offsets: bool) -> None:
    """They are the weights of one level, in fewer bytes, with their bounds."""
    levels = two_levels(groups, most, offsets=offsets)
    weights = stored(levels)
    one = weights.one_level()
    assert one.levels is None and one.one_level() is one
    assert weights.has_offsets is one.has_offsets is offsets
    assert one.offset_shift == (3 if offsets else 0)
    assert weights.n_bytes == weights.codes.nbytes + levels.records.nbytes < one.n_bytes
    assert weights.scale_bits == one.scale_bits == 16
    assert weights.peak_bound == one.peak_bound
    assert weights.weight_bound == one.weight_bound
    np.testing.assert_array_equal(weights.unpack().doubled(), one.unpack().doubled())
    assert one.scale is not None
    np.testing.assert_array_equal(one.scale, levels.scale)
    some = weights.rows(np.array([2, 0]))
    np.testing.assert_array_equal(some.unpack().doubled(), one.unpack().doubled()[[2, 0]])
    # as a packed matrix of codes stores it
    linear = PackedLinear(one.unpack(), scale_from_int(1), 1, None, levels)
    assert linear.stored.levels is levels
    np.testing.assert_array_equal(linear.stored.unpack().doubled(), one.unpack().doubled())


def test_numbers_of_nothing() -> None:
    zeros = np.zeros((N, S), np.uint16), np.zeros((N, 8 * S), np.uint8)
    levels = TwoLevels.of(*zeros, 0)
    assert levels.bits == 4 and not levels.scale.any() and levels.offset is None
    ones = TwoLevels.of(zeros[0] + np.uint16(9), zeros[1] + np.uint8(1), 0)
    assert (ones.scale == 9).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits of multiples must be one of (4, 6, 8), not 5"),
        ({"groups": 4}, "groups of 256 weights must be a multiple of 8 up to 256, not 4"),
        ({"shift": 7}, "shift of multiples must be in 0..6, not 7"),
        ({"offsets": False}, "records must be [N, S, 8], not [3, 2, 16]"),
        ({"shift": 4}, "multiples must be in 0..16, not up to 63"),
    ],
)
def test_levels_that_can_not_be(options: dict[str, int], message: str) -> None:
    levels = two_levels(8, 63, offsets=True)
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(levels, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": np.ones((N, 16), np.uint8)}, "zero and either scale or levels must be there"),
        ({"offset_shift": 1}, "offset and offset_shift must be those of the levels"),
        ({"offset": np.ones((N, 16), np.int16)}, "offset and offset_shift must be those of the"),
        ({"group": 64, "zero": np.ones((N, 8), np.uint16)}, "and of 4 groups of 64, not of 512"),
        (
            {"levels": two_levels(8, 63, offsets=True).rows(slice(2))},
            "two levels must be of [3, 2], not [2, 2]",
        ),
        (
            {"levels": replace(two_levels(8, 63, offsets=True), offset_shift=17)},
            "offset_shift must be in 0..16, not 17",
        ),
    ],
)
def test_matrices_that_can_not_be(options: dict[str, object], message: str) -> None:
    weights = stored(two_levels(8, 63, offsets=True))
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(weights, **options)

"""Stacked matrices weigh what their parts do, whatever the bits and groups of each."""

from dataclasses import replace

import numpy as np

from lutra_golden.arith.scale import scale_from_int
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.packed import PackedLinear
from lutra_golden.model.stacks import stack, unify_formats


def _weights(rng: np.random.Generator, n: int, bits: int, group: int) -> GroupedWeights:
    side = (n, 24 // group)
    return GroupedWeights(
        codes=rng.integers(0, 1 << bits, (n, 24)).astype(np.uint8),
        scale=rng.integers(1, 256, side),
        zero=rng.integers(0, 2 * ((1 << bits) - 1), side),
        bits=bits,
        group=group,
    )


def test_rows_of_different_formats() -> None:
    rng = np.random.default_rng(1)
    parts = [_weights(rng, 3, 2, 8), _weights(rng, 5, 4, 12), _weights(rng, 2, 3, 24)]
    whole = stack(parts)
    assert (whole.bits, whole.group) == (4, 4)
    expected = np.concatenate([part.doubled() for part in parts])
    np.testing.assert_array_equal(whole.doubled(), expected)

    linears = [PackedLinear(part, scale_from_int(1), 0) for part in parts]
    unified = unify_formats(linears)
    assert {(each.bits, each.group) for each in unified} == {(4, 4)}
    for part, each in zip(parts, unified, strict=True):
        np.testing.assert_array_equal(each.unpack().doubled(), part.doubled())


def test_five_bits_are_widened() -> None:
    """No format has them: alone, and beside codes of six bits that need those."""
    rng = np.random.default_rng(2)
    five = replace(_weights(rng, 3, 5, 8), bits=6)
    wide = replace(_weights(rng, 4, 6, 8), codes=np.full((4, 24), 63, np.uint8))
    for parts in ((five,), (five, five), (five, wide)):
        linears = [PackedLinear(part, scale_from_int(1), 0) for part in parts]
        assert linears[0].stored.bits == 5
        unified = unify_formats(linears)
        assert {(each.bits, each.group) for each in unified} == {(6, 8)}
        for part, each in zip(parts, unified, strict=True):
            np.testing.assert_array_equal(each.unpack().doubled(), part.doubled())

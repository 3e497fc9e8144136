"""Rotary embedding and its quantisation against float64."""

import numpy as np
import pytest

from lutra_golden.arith.scale import Scale, scale_from_float, scale_to_float
from lutra_golden.vector.heads import HeadBias, HeadNorm
from lutra_golden.vector.rope import (
    ROPE_FRAC,
    rope_quantize,
    rope_quantize_fixed,
    rope_rotate,
    rope_table,
)


def rotate_complex(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Half-rotation order as complex numbers: dimension i and i + half turn by one angle."""
    half = x.shape[-1] // 2
    frequencies = 1.0 / theta ** (np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.outer(positions, frequencies))
    return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize(("head_dim", "theta"), [(64, 10000.0), (16, 500000.0), (128, 1e6)])
def test_table(head_dim: int, theta: float) -> None:
    table = rope_table(300, head_dim, theta)
    ones = np.concatenate([np.ones((300, head_dim // 2)), np.zeros((300, head_dim // 2))], axis=-1)
    expected = rotate_complex(ones, np.arange(300), theta)
    assert np.abs(table / (1 << ROPE_FRAC) - expected).max() <= 0.5001 / (1 << ROPE_FRAC)
    assert np.abs(table).max() == 1 << ROPE_FRAC


def test_rotate() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(-(1 << 23), 1 << 23, (50, 64))
    y = rope_rotate(x, rope_table(50, 64, 10000.0)) / (1 << ROPE_FRAC)
    expected = rotate_complex(x.astype(np.float64), np.arange(50), 10000.0)
    # half a last place of the table per product
    assert np.abs(y - expected).max() <= 2**24 * 2**-15
    assert (y[0] == x[0]).all()


def test_rotate_is_exact_at_the_ends_of_the_range() -> None:
    x = np.array([[-(1 << 23)] * 4, [(1 << 23) - 1] * 4])
    table = np.array([[-(1 << 15)] * 4, [(1 << 15) - 1] * 4])
    for row, turn, y in zip(
        x.tolist(), table.tolist(), rope_rotate(x, table).tolist(), strict=True
    ):
        (low, _, high, _), (cos, _, sin, _) = row, turn
        assert y == 2 * [low * cos - high * sin] + 2 * [high * cos + low * sin]


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("bits", [4, 14, 23])
@pytest.mark.parametrize("q_max", [7, 127])
def test_quantize(rotated: bool, bits: int, q_max: int) -> None:
    rng = np.random.default_rng(bits)
    positions, heads, d = np.arange(20), 3, 32
    x = rng.integers(-(1 << bits), 1 << bits, (20, heads, d))
    s = Scale(rng.integers(1 << 15, 1 << 16, 20), rng.integers(-30, -20, 20))
    w_scale = scale_from_float(0.0123)
    table = rope_table(20, d, 10000.0) if rotated else None
    q, scale = rope_quantize(x, s, w_scale, table, q_max)

    unit = (scale_to_float(s) * 0.0123)[:, None, None]
    exact = np.stack(
        [rotate_complex(x[:, h].astype(np.float64), positions, 10000.0) for h in range(heads)],
        axis=1,
    )
    expected = unit * (exact if rotated else x)
    step = np.abs(expected).max(axis=-1, keepdims=True) / q_max
    assert np.abs(q).max() == q_max
    # half a step for rounding; factor, scale and table are off by parts in 10000
    assert (np.abs(q * scale_to_float(scale)[..., None] - expected) <= step * 0.52).all()


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("q_max", [7, 127])
def test_quantize_fixed(rotated: bool, biased: bool, normed: bool, q_max: int) -> None:
    rng = np.random.default_rng(1)
    positions, heads, d = np.arange(20), 3, 32
    x = rng.integers(-(1 << 17), 1 << 17, (20, heads, d))
    s = Scale(rng.integers(1 << 15, 1 << 16, 20), rng.integers(-30, -25, 20))
    bias = HeadBias(rng.integers(-(1 << 15), 1 << 15, (heads, d)), 12) if biased else None
    norm = HeadNorm(rng.integers(1 << 12, 1 << 14, d), 13, 4295) if normed else None
    table = rope_table(20, d, 10000.0) if rotated else None
    q, scale = rope_quantize_fixed(x, s, scale_from_float(0.0123), table, bias, norm, q_max)

    expected = x * (scale_to_float(s) * 0.0123)[:, None, None]
    if bias is not None:
        expected = expected + bias.values / 2.0**12
    if norm is not None:
        square = (expected * expected).mean(axis=-1, keepdims=True)
        expected = expected / np.sqrt(square + 1e-6) * norm.gamma / 2.0**13
    if rotated:
        expected = np.stack(
            [rotate_complex(expected[:, h], positions, 10000.0) for h in range(heads)], axis=1
        )
    step = np.abs(expected).max(axis=-1, keepdims=True) / q_max
    assert np.abs(q).max() == q_max
    assert (np.abs(q * scale_to_float(scale)[..., None] - expected) <= step * 0.53).all()


@pytest.mark.parametrize("frac", [0, 5, 16])
def test_the_centre_is_taken_from_what_was_rotated(frac: int) -> None:
    """And every softmax stays what it is: all scores of a query differ by one number."""
    rng = np.random.default_rng(frac)
    positions, heads, d = np.arange(20), 3, 32
    x = rng.integers(-(1 << 17), 1 << 17, (20, heads, d))
    s = Scale(rng.integers(1 << 15, 1 << 16, 20), rng.integers(-30, -25, 20))
    biases, centre = rng.integers(-(1 << min(15, frac + 6)), 1 << min(15, frac + 6), (2, heads, d))
    bias = HeadBias(biases, frac, centre)
    table = rope_table(20, d, 10000.0)
    q, scale = rope_quantize_fixed(x, s, scale_from_float(0.0123), table, bias)

    plain = x * (scale_to_float(s) * 0.0123)[:, None, None] + biases / 2.0**frac
    turned = np.stack(
        [rotate_complex(plain[:, h], positions, 10000.0) for h in range(heads)], axis=1
    )
    expected = turned - centre / 2.0**frac
    step = np.abs(expected).max(axis=-1, keepdims=True) / 127
    assert np.abs(q).max() == 127
    assert (np.abs(q * scale_to_float(scale)[..., None] - expected) <= step * 0.53).all()
    difference = np.einsum("mhd,hd->mh", turned - expected, rng.normal(size=(heads, d)))
    np.testing.assert_allclose(difference, difference[:1].repeat(20, axis=0))


@pytest.mark.parametrize("eps", [0, 9])
def test_zero_head_in_fixed_point(eps: int) -> None:
    for norm in (None, HeadNorm(np.full(16, 99), 5, eps)):
        q, scale = rope_quantize_fixed(
            np.zeros((1, 2, 16), np.int64),
            Scale(np.array([40000]), np.array([-20])),
            scale_from_float(1.0),
            rope_table(1, 16, 10000.0),
            HeadBias(np.zeros((2, 16), np.int64), 9),
            norm,
        )
        assert not q.any() and not scale.m.any() and not scale.e.any()


def test_zero_head() -> None:
    q, scale = rope_quantize(
        np.zeros((1, 2, 16), np.int64),
        Scale(np.array([40000]), np.array([-20])),
        scale_from_float(1.0),
        rope_table(1, 16, 10000.0),
    )
    assert not q.any() and not scale.m.any() and not scale.e.any()


def test_zero_scale() -> None:
    x = np.arange(16).reshape(1, 1, 16)
    q, scale = rope_quantize(x, Scale(np.array([0]), np.array([0])), scale_from_float(1.0), None)
    assert q[0, 0, -1] == 127
    assert scale.m[0, 0] == scale.e[0, 0] == 0

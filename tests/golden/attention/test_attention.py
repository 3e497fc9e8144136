"""The integer attention against softmax attention in float64."""

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from lutra_golden.arith.exp2 import EXP2
from lutra_golden.arith.fixed import Int, Saturation
from lutra_golden.arith.scale import SCALE, Scale, scale_from_float, scale_to_float
from lutra_golden.attention.attention import (
    AttentionParams,
    attend,
    attention_weights,
    first_seen,
    scores,
)

SMALL = AttentionParams(head_dim=16, n_heads=6, n_kv_heads=2, pass_tokens=5, max_context=64)
FRAC = 12


def scale_from_floats(values: ArrayLike) -> Scale:
    values = np.asarray(values, np.float64)
    scales = [scale_from_float(float(x)) for x in values.ravel()]
    return Scale(
        np.array([int(s.m) for s in scales]).reshape(values.shape),
        np.array([int(s.e) for s in scales]).reshape(values.shape),
    )


def _scales(rng: np.random.Generator, shape: tuple[int, ...], middle: float) -> Scale:
    return scale_from_floats(middle * np.exp(rng.normal(0, 0.4, shape)))


def _inputs(
    params: AttentionParams, n_tokens: int, position: int, *, sharpness: float = 1.0, seed: int = 1
) -> tuple[Int, Scale, Int, Scale, Int, Scale]:
    rng = np.random.default_rng(seed)
    n, dim, heads, kv = position + n_tokens, params.head_dim, params.n_heads, params.n_kv_heads
    q = rng.integers(-127, 128, (n_tokens, heads, dim))
    k = rng.integers(-127, 128, (kv, n, dim))
    v = rng.integers(-127, 128, (kv, n, dim))
    # the scores get a deviation of about `sharpness`, in log2 units
    q_scale = _scales(rng, (n_tokens, heads), sharpness / np.sqrt(dim) / 73)
    return q, q_scale, k, _scales(rng, (n, kv), 1 / 73), v, _scales(rng, (n, kv), 1 / 73)


def _float_attention(
    params: AttentionParams,
    q: Int,
    q_scale: Scale,
    k: Int,
    k_scale: Scale,
    v: Int,
    v_scale: Scale,
    position: int,
    window: int = 0,
) -> NDArray[np.float64]:
    queries = q * scale_to_float(q_scale)[:, :, None]  # [M, H, D]
    keys = k * scale_to_float(k_scale).T[:, :, None]  # [G, P, D]
    values = v * scale_to_float(v_scale).T[:, :, None]
    out = np.zeros(q.shape)
    for m in range(q.shape[0]):
        for h in range(params.n_heads):
            g, n = h // params.q_per_kv, position + m + 1
            first = max(0, n - window) if window else 0
            score = keys[g, first:n] @ queries[m, h]
            weight = np.exp2(score - score.max())
            out[m, h] = weight / weight.sum() @ values[g, first:n]
    return out


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
@pytest.mark.parametrize(("n_tokens", "position"), [(1, 0), (1, 59), (5, 0), (5, 17)])
def test_agrees_with_float(n_tokens: int, position: int, sharpness: float) -> None:
    inputs = _inputs(SMALL, n_tokens, position, sharpness=sharpness)
    out = attend(SMALL, *inputs, position, 20) / 2.0**20
    expected = _float_attention(SMALL, *inputs, position)
    error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
    assert error < 1e-3


def test_a_single_position_returns_its_value() -> None:
    inputs = _inputs(SMALL, 1, 0)
    _, _, _, _, v, v_scale = inputs
    out = attend(SMALL, *inputs, 0, 20) / 2.0**20
    expected = (v * scale_to_float(v_scale).T[:, :, None])[:, 0].repeat(SMALL.q_per_kv, axis=0)
    assert np.abs(out[0] - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("position", [0, 3, 40])
def test_tile_size_does_not_matter(position: int) -> None:
    q, q_scale, k, k_scale, v, v_scale = _inputs(SMALL, 5, position)
    tile = attend(SMALL, q, q_scale, k, k_scale, v, v_scale, position, FRAC)
    for m in range(5):
        n = position + m + 1
        single = attend(
            SMALL,
            q[m : m + 1],
            Scale(q_scale.m[m : m + 1], q_scale.e[m : m + 1]),
            k[:, :n],
            Scale(k_scale.m[:n], k_scale.e[:n]),
            v[:, :n],
            Scale(v_scale.m[:n], v_scale.e[:n]),
            position + m,
            FRAC,
        )
        np.testing.assert_array_equal(single[0], tile[m])


@pytest.mark.parametrize("window", [1, 2, 5, 6, 40, 64])
@pytest.mark.parametrize(("n_tokens", "position"), [(1, 0), (1, 59), (5, 0), (5, 3), (5, 17)])
def test_a_window_agrees_with_float(n_tokens: int, position: int, window: int) -> None:
    inputs = _inputs(SMALL, n_tokens, position)
    out = attend(SMALL, *inputs, position, 20, window) / 2.0**20
    expected = _float_attention(SMALL, *inputs, position, window)
    assert np.linalg.norm(out - expected) < 1e-3 * np.linalg.norm(expected)


def test_a_window_of_everything_is_none() -> None:
    inputs = _inputs(SMALL, 5, 17)
    for window in (22, 23, 65535):
        np.testing.assert_array_equal(
            attend(SMALL, *inputs, 17, FRAC, window), attend(SMALL, *inputs, 17, FRAC)
        )


@pytest.mark.parametrize("window", [1, 2, 4, 5, 6, 20])
def test_a_tile_sees_what_its_tokens_see(window: int) -> None:
    """One token alone, with nothing in the cache but its window, gives the tile's bits."""
    position = 11
    q, q_scale, k, k_scale, v, v_scale = _inputs(SMALL, 5, position, sharpness=3)
    v_scale.e[:] += np.random.default_rng(2).integers(-9, 10, v_scale.e.shape)
    tile = attend(SMALL, q, q_scale, k, k_scale, v, v_scale, position, FRAC, window)
    for m in range(5):
        first, n = first_seen(position + m, window), position + m + 1
        assert n - first == min(window, n)
        single = attend(
            SMALL,
            q[m : m + 1],
            Scale(q_scale.m[m : m + 1], q_scale.e[m : m + 1]),
            k[:, first:n],
            Scale(k_scale.m[first:n], k_scale.e[first:n]),
            v[:, first:n],
            Scale(v_scale.m[first:n], v_scale.e[first:n]),
            position + m - first,
            FRAC,
        )
        np.testing.assert_array_equal(single[0], tile[m])


def test_what_lies_before_the_window_does_not_matter() -> None:
    q, q_scale, k, k_scale, v, v_scale = _inputs(SMALL, 5, 9)
    tile = attend(SMALL, q, q_scale, k, k_scale, v, v_scale, 9, FRAC, 4)
    k[:, :8], v[:, :8], v_scale.e[:8] = -128, 127, 100  # token 1 sees 7..10, token 2 sees 8..11
    changed = attend(SMALL, q, q_scale, k, k_scale, v, v_scale, 9, FRAC, 4)
    np.testing.assert_array_equal(changed[2:], tile[2:])
    assert (changed[:2] != tile[:2]).any(axis=(1, 2)).all()


def test_what_lies_behind_a_token_does_not_matter() -> None:
    q, q_scale, k, k_scale, v, v_scale = _inputs(SMALL, 5, 3)
    tile = attend(SMALL, q, q_scale, k, k_scale, v, v_scale, 3, FRAC)
    k[:, 5:], v[:, 5:], v_scale.e[5:] = -128, 127, 100
    changed = attend(SMALL, q, q_scale, k, k_scale, v, v_scale, 3, FRAC)
    np.testing.assert_array_equal(changed[:2], tile[:2])
    assert (changed[2:] != tile[2:]).any()


def test_scores_are_log2_units_and_saturate() -> None:
    q, k = np.full(16, 127), np.array([np.full(16, 127), np.full(16, -128), np.zeros(16, int)])
    unit = scale_from_floats([1 / 127**2] * 3)
    scale = scale_from_floats([[1.0], [2.0**20]])
    np.testing.assert_array_equal(
        scores(np.stack([q, q]), scale, k, unit, SMALL.score_frac, SMALL.score_width),
        # 16 * 128 / 127 * 2**12, rounded
        [[16 << 12, -66052, 0], [(1 << 29) - 1, -(1 << 29), 0]],
    )


def test_scores_of_real_models_fit() -> None:
    """A Qwen2.5 of 1.5 billion parameters reaches 18,370, of which only differences count."""
    q, k = np.full((1, 16), 127), np.array([np.full(16, 127), np.full(16, 126)])
    flag, top = Saturation(), 18_370
    unit, scale = scale_from_floats([1 / 127] * 2), scale_from_floats([[top / 127 / 16]])
    found = scores(q, scale, k, unit, SMALL.score_frac, SMALL.score_width, flag)
    assert not flag.seen
    np.testing.assert_allclose(found / (1 << 12), [[top, top * 126 / 127]], rtol=1e-4)


@pytest.mark.parametrize(
    ("q_e", "v_e", "seen"),
    [
        (-40, -30, False),
        (-10, -30, True),  # a score beyond 30 bits
        (8, -30, True),  # a small one that would be shifted to the left
        (-40, 0, True),  # an output beyond 32 bits
        (-40, 40, True),
    ],
)
def test_the_flag_of_saturation(q_e: int, v_e: int, seen: bool) -> None:
    """Set by scores and outputs that a query sees, not by those that it does not."""
    q, k, v = np.zeros((2, SMALL.n_heads, 16), np.int64), *np.zeros((2, SMALL.n_kv_heads, 2, 16))
    dims = slice(None) if q_e < 0 else 0
    q[0, :, dims] = k[:, 0, dims] = v[:, 0, dims] = 127 if q_e < 0 else 1
    k, v = k.astype(np.int64), v.astype(np.int64)
    q_scale = Scale(np.full((2, SMALL.n_heads), 1 << 15), np.full((2, SMALL.n_heads), q_e))
    k_scale = Scale(np.full((2, SMALL.n_kv_heads), 1 << 15), np.full((2, SMALL.n_kv_heads), -20))
    v_scale = Scale(k_scale.m, np.full((2, SMALL.n_kv_heads), v_e))
    flag = Saturation()
    attend(SMALL, q, q_scale, k, k_scale, v, v_scale, 0, FRAC, saturation=flag)
    assert flag.seen == seen
    # the same key where no query sees it
    k[:, 1], v[:, 1], k[:, 0], v[:, 0] = k[:, 0], v[:, 0], 0, 0
    flag = Saturation()
    attend(
        SMALL, q[:1], Scale(q_scale.m[:1], q_scale.e[:1]), k, k_scale, v, v_scale, 0, FRAC,
        saturation=flag,
    )  # fmt: skip
    assert not flag.seen
    # or a later one, of zeros, to whose weights alone the value counts
    attend(SMALL, q, q_scale, k, k_scale, v, v_scale, 0, FRAC, saturation=flag)
    assert flag.seen == (v_e != -30)


def test_weights_fold_the_value_scale() -> None:
    score = np.array([[0, -4096, -4096, 0, -(1 << 23), 1 << 22]])
    hidden = np.array([[False] * 5 + [True]])
    v_scale = Scale(
        np.array([1 << 15, 1 << 15, 0xFFFF, 0, 0xFFFF, 1 << 15]),
        np.array([-20, -20, -18, 0, -18, 20]),
    )
    w, den, e = attention_weights(score, v_scale, hidden)
    assert e == -18  # neither the zero scale nor the hidden one counts
    assert den == 2 * (1 << 15) + 2 * (1 << 14)
    np.testing.assert_array_equal(w, [[1 << 13, 1 << 12, (0xFFFF + 1) >> 1, 0, 0, 0]])


def test_zero_values_everywhere() -> None:
    zero = Scale(np.zeros(4, np.int64), np.zeros(4, np.int64))
    w, den, e = attention_weights(np.arange(4)[None], zero, np.zeros((1, 4), np.bool_))
    assert e == SCALE.e_min and den > 0
    np.testing.assert_array_equal(w, 0)


def test_widths_are_exact() -> None:
    nano = AttentionParams()
    n, one = nano.max_context, 1 << EXP2.y_frac
    largest = Scale(np.full(n, 0xFFFF), np.zeros(n, np.int64))
    w, den, _ = attention_weights(np.zeros((1, n), np.int64), largest, np.zeros((1, n), np.bool_))
    assert den == n * one < 1 << nano.den_width
    assert w.sum() * 128 <= 1 << (nano.acc_width - 1)
    assert nano.head_dim * 128 * 128 < 1 << (nano.dot_width - 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pass_tokens": 0}, ValueError, "pass_tokens must be positive, not 0"),
        ({"head_dim": 1.5}, TypeError, "head_dim must be an integer, not 1.5"),
        ({"n_kv_heads": 3}, ValueError, "n_heads must be a multiple of n_kv_heads, not 4 of 3"),
        ({"pair_cycles": 0}, ValueError, "pair_cycles must be positive, not 0"),
        ({"pair_cycles": 3}, ValueError, "pair_cycles must be a power of two, not 3"),
        (
            {"pair_cycles": 16},
            ValueError,
            "pair_cycles must cut a head of 64 elements into whole words of 8, not into 16 parts",
        ),
    ],
)
def test_rejects_bad_parameters(
    change: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        AttentionParams(**change)
    assert str(caught.value) == message

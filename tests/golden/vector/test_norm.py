"""RMSNorm and quantisation in integers against float64."""

import numpy as np
import pytest

from lutra_golden.arith.fixed import Int, Saturation
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.arith.scale import Scale, scale_from_float, scale_to_float
from lutra_golden.arith.silu import silu
from lutra_golden.vector.norm import (
    SWIGLU_SHIFTS,
    NormParams,
    gate_scale,
    norm_quantize,
    relu2_gate,
    swiglu,
    swiglu_scale,
)

EPS = 1e-5
GAMMA_FRAC = 13


def _scales(values: np.ndarray) -> Scale:
    scales = [scale_from_float(float(x)) for x in values]
    return Scale(np.array([s.m for s in scales]), np.array([s.e for s in scales]))


def _check(v: Int, v_scale: Scale, gamma: Int, q: Int, scale: Scale) -> None:
    x = v * scale_to_float(v_scale)[:, None]
    normalised = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS)
    y = normalised * gamma / (1 << GAMMA_FRAC)
    y_max = np.abs(y).max(axis=-1, keepdims=True)
    assert np.abs(q - y / y_max * 127).max() <= 1
    assert scale_to_float(scale) == pytest.approx(y_max[:, 0] / 127, rel=1e-4)


@pytest.mark.parametrize("bits", [4, 12, 15, 16, 17, 24, 31])
@pytest.mark.parametrize("n", [8, 192, 1000])
def test_against_float(bits: int, n: int) -> None:
    rng = np.random.default_rng(bits)
    limit = (1 << bits) - 1
    v = np.clip(np.rint(rng.normal(0, limit / 4, (6, n))), -limit, limit).astype(np.int64)
    v[0, 0], v[1, -1] = limit, -limit
    v_scale = _scales(rng.uniform(0.5, 2, 6) / limit * 10)
    gamma = np.rint(rng.uniform(0.3, 2, n) * (1 << GAMMA_FRAC)).astype(np.int64)
    args = (gamma, GAMMA_FRAC, scale_from_float(1 / n), scale_from_float(EPS))
    q, scale = norm_quantize(v, v_scale, *args)
    _check(v, v_scale, gamma, q, scale)


@pytest.mark.parametrize("bits", [12, 24, 54])
def test_int16_and_plain_against_float(bits: int) -> None:
    """Without RMSNorm ``q * scale`` is ``v * gamma``; 16 bits leave the block shift's rounding."""
    rng = np.random.default_rng(bits)
    limit = (1 << bits) - 1
    v = np.clip(np.rint(rng.normal(0, limit / 4, (5, 192))), -limit, limit).astype(np.int64)
    v_scale = _scales(rng.uniform(0.5, 2, 5) / limit)
    gamma = np.rint(rng.uniform(0.3, 2, 192) * (1 << GAMMA_FRAC)).astype(np.int64)
    args = (gamma, GAMMA_FRAC, scale_from_float(1 / 192), scale_from_float(EPS))
    for q_max in (127, 32767):
        for normalise in (False, True):
            q, scale = norm_quantize(v, v_scale, *args, normalise=normalise, q_max=q_max)
            x = v * scale_to_float(v_scale)[:, None]
            if normalise:
                x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS)
            y = x * gamma / (1 << GAMMA_FRAC)
            y_max = np.abs(y).max(axis=-1, keepdims=True)
            assert np.abs(q).max() == q_max if q_max == 127 else np.abs(q).max() >= q_max - 2
            # a step, the scale's error, and half a last place of the 15 bits that a block shift
            # leaves, which the largest gamma may amplify
            bound = 0.5 / q_max + 2e-4 + 2.0**-15 * gamma.max() / gamma.min()
            error = np.abs(q * scale_to_float(scale)[:, None] - y) / y_max
            assert error.max() <= bound


@pytest.mark.parametrize("shift_max", [3, 7])
@pytest.mark.parametrize("normalise", [True, False])
def test_groups_have_the_same_scale(normalise: bool, shift_max: int) -> None:
    """Integers of a finer step: a group four times smaller has the int8 of the larger one."""
    rng = np.random.default_rng(7)
    v = 4 * rng.integers(-1000, 1001, (4, 96))
    v[:, 32:64], v[:, 64:] = v[:, :32] // 4, v[:, 64:] // 2
    v[3] = 0
    v_scale = _scales(rng.uniform(0.5, 2, 4))
    gamma = np.full(96, 1 << GAMMA_FRAC)
    args = (gamma, GAMMA_FRAC, scale_from_float(1 / 96), scale_from_float(EPS))
    groups = ActivationGroups(shift_max=shift_max)
    plain, scale = norm_quantize(v, v_scale, *args, normalise=normalise)
    q, fine = norm_quantize(v, v_scale, *args, normalise=normalise, groups=groups)
    np.testing.assert_array_equal(fine.m, scale.m)
    np.testing.assert_array_equal(fine.e, scale.e - np.where(scale.m == 0, 0, shift_max))
    np.testing.assert_array_equal(q[:, :32], plain[:, :32] << shift_max)
    np.testing.assert_array_equal(q[:, 32:64], plain[:, :32] << (shift_max - 2))
    assert not q[3].any()


def test_plain_does_not_depend_on_what_normalises() -> None:
    v, gamma = np.array([[1000, -7, 3, 510]]), np.full(4, 1 << GAMMA_FRAC)
    results = [
        norm_quantize(v, _scales(np.array([0.5])), gamma, GAMMA_FRAC, inv_n, eps, normalise=False)
        for inv_n, eps in (
            (scale_from_float(0.25), scale_from_float(EPS)),
            (scale_from_float(0), scale_from_float(1e9)),
        )
    ]
    assert results[0][0].tolist() == results[1][0].tolist() == [[127, -1, 0, 65]]
    assert results[0][1] == results[1][1]
    assert scale_to_float(results[0][1]) == pytest.approx(500 / 127, rel=1e-4)


def test_epsilon_dominates_small_rows() -> None:
    v = np.array([[3, -1, 0, 2]])
    v_scale = _scales(np.array([1e-6]))
    gamma = np.full(4, 1 << GAMMA_FRAC)
    args = (gamma, GAMMA_FRAC, scale_from_float(1 / 4), scale_from_float(EPS))
    q, scale = norm_quantize(v, v_scale, *args)
    _check(v, v_scale, gamma, q, scale)
    assert q.tolist() == [[127, -42, 0, 85]]


def test_zero_row() -> None:
    v, gamma = np.zeros((1, 8), np.int64), np.full(8, 1 << GAMMA_FRAC)
    args = (gamma, GAMMA_FRAC, scale_from_float(1 / 8), scale_from_float(EPS))
    q, scale = norm_quantize(v, _scales(np.array([1.0])), *args)
    assert q.tolist() == [[0] * 8]
    assert (scale.m.tolist(), scale.e.tolist()) == ([0], [0])


def test_gate_against_float() -> None:
    rng = np.random.default_rng(1)
    gate = rng.integers(-(1 << 19), 1 << 19, (4, 64))
    up = rng.integers(-(1 << 19), 1 << 19, (4, 64))
    gate[0, 0], up[0, 0] = (1 << 19) - 1, -(1 << 19)
    s, w_gate, w_up = rng.uniform(0.01, 0.1, 4), 0.02, 0.015
    v = relu2_gate(gate, up)
    v_scale = gate_scale(_scales(s), scale_from_float(w_gate), scale_from_float(w_up))
    exact = np.maximum(gate * s[:, None] * w_gate, 0) ** 2 * (up * s[:, None] * w_up)
    assert v * scale_to_float(v_scale)[:, None] == pytest.approx(exact, rel=1e-4)

    gamma = np.rint(rng.uniform(0.3, 2, 64) * (1 << GAMMA_FRAC)).astype(np.int64)
    args = (gamma, GAMMA_FRAC, scale_from_float(1 / 64), scale_from_float(EPS))
    q, scale = norm_quantize(v, v_scale, *args)
    _check(v, v_scale, gamma, q, scale)


def test_swiglu_against_float() -> None:
    rng = np.random.default_rng(1)
    gate = rng.integers(-(1 << 27), 1 << 27, (6, 64)) >> rng.integers(0, 27, (6, 64))
    up = rng.integers(-(1 << 27), 1 << 27, (6, 64))
    s, w_gate, w_up = 10.0 ** -rng.uniform(1, 6, 6), 0.02, 0.015
    v = swiglu(gate, up, _scales(s), scale_from_float(w_gate))
    v_scale = scale_to_float(swiglu_scale(_scales(s), scale_from_float(w_up)))[:, None]
    x = np.clip(gate * s[:, None] * w_gate, -1024, 1024)
    u = up * s[:, None] * w_up
    # silu within 2.4e-5, its argument within half a last place and the scale's error
    error = np.abs(v * v_scale - x / (1 + np.exp(-x)) * u)
    assert (error <= (2.4e-5 + 2.0**-16 + 6e-5 * np.abs(x)) * np.abs(u) * 1.1).all()


def test_swiglu_saturates_and_vanishes() -> None:
    """The limits of the shift change nothing: the scale may be of any size, or zero."""
    gate, up = np.array([[1, -1, 0, (1 << 27) - 1, -(1 << 27)]]), np.ones((1, 5), np.int64)
    one, top = Scale(np.array([1 << 15]), np.array([-15])), (1 << 26) - 1
    for e in (-4, 0, 40, 200):
        w_gate = Scale(np.array(1 << 15), np.array(e))
        assert swiglu(gate, up, one, w_gate).tolist() == [[top, 0, 0, top, 0]]
    for e in (-70, -90, -300):
        w_gate = Scale(np.array(0xFFFF), np.array(e))
        assert not swiglu(gate, up, one, w_gate).any()
    assert not swiglu(gate, up, one, Scale(np.array(0), np.array(0))).any()
    # between them the shift is exact: x is 2**-16 * 2**-shift * m
    for shift in range(SWIGLU_SHIFTS[0], SWIGLU_SHIFTS[1] + 1):
        w_gate = Scale(np.array(1 << 15), np.array(-shift - 16))
        value = np.floor(gate * 2.0 ** (15 - shift) + 0.5)
        x = np.clip(value, -(1 << 26), top).astype(np.int64)
        assert swiglu(gate, up, one, w_gate).tolist() == silu(x).tolist()


def test_swiglu_scale_of_nothing() -> None:
    scale = swiglu_scale(Scale(np.array([0]), np.array([0])), scale_from_float(0.5))
    assert (scale.m.tolist(), scale.e.tolist()) == ([0], [0])


@pytest.mark.parametrize("gate_width", [8, 20, 21])
@pytest.mark.parametrize("acc_width", [18, 24, 28, 30])
def test_the_products_fit_the_source(gate_width: int, acc_width: int) -> None:
    params = NormParams(gate_width=gate_width, acc_width=acc_width)
    limit = 1 << (params.v_width - 1)
    gate, acc = 1 << (gate_width - 1), 1 << (acc_width - 1)
    assert relu2_gate(np.array(gate - 1), np.array(-gate)) >= -limit
    s = Scale(np.array([1 << 15]), np.array([100]))
    for up in (-acc, acc - 1):
        product = swiglu(np.array([[1]]), np.array([[up]]), s, scale_from_float(1))
        assert product == silu((1 << 26) - 1) * up
        assert -limit <= product[0, 0] < limit


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gate_width": 22}, "gate_width must be in 2..21, not 22"),
        ({"acc_width": 31}, "acc_width must be in 2..30, not 31"),
        ({"acc_width": 1}, "acc_width must be in 2..30, not 1"),
        ({"a_width": 12}, "a_width must be 8 or 16, not 12"),
    ],
)
def test_rejects(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        NormParams(**fields)
    assert str(error.value) == message


@pytest.mark.parametrize(("gate", "seen"), [(1023, False), (1024, True), (-5000, False)])
def test_the_flag_of_saturation(gate: int, seen: bool) -> None:
    """SiLU is zero below its range as at its end, so nothing is lost there."""
    flag, one = Saturation(), _scales(np.ones(1))
    swiglu(np.array([[gate]]), np.array([[1]]), one, scale_from_float(1.0), flag)
    assert flag.seen == seen

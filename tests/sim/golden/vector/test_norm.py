"""RMSNorm and quantisation in integers against float64."""

import numpy as np
import pytest

from lutra.sim.golden.arith.fixed import Int
from lutra.sim.golden.arith.scale import Scale, scale_from_float, scale_to_float
from lutra.sim.golden.vector.norm import NormParams, gate_scale, norm_quantize, relu2_gate

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


def test_the_gate_fits_the_source() -> None:
    params = NormParams()
    limit = 1 << (params.gate_width - 1)
    assert relu2_gate(np.array(limit - 1), np.array(-limit)) > -(1 << 57)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lanes": 0}, "lanes must be positive, not 0"),
        ({"gate_width": 23}, "gate_width must be at most 21, not 23"),
    ],
)
def test_rejects(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        NormParams(**fields)
    assert str(error.value) == message

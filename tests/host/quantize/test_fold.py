"""Folding, AWQ and SmoothQuant: before rounding the model is the same, after it a better one."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.quantize.random_decoder import GROUP, VARIANTS, random_decoder, random_tokens

from lutra.checkpoints.weights import Dense
from lutra.models.decoder import Decoder, DecoderLayer
from lutra.models.layers import round_activations
from lutra.quantize import quantize_layer
from lutra.quantize.awq import awq, round_scaled, scales
from lutra.quantize.calibration import STACKS, Inputs, States, output_error
from lutra.quantize.fold import fold, shared
from lutra.quantize.rtn import round_to_nearest
from lutra.quantize.smoothquant import smooth, smoothing, smoothquant
from lutra.quantize.target import Target
from lutra_golden.model.shapes import LINEARS

Single = NDArray[np.float32]


def target_for(model: Decoder, bits: int = 3, a_bits: int = 8) -> Target:
    return Target(
        bits=dict.fromkeys(LINEARS, bits),
        group=GROUP,
        a_bits=a_bits,
        head_dim=model.config.head_dim,
    )


def assert_same_logits(model: Decoder, layers: list[DecoderLayer]) -> None:
    tokens = random_tokens(model, 1, 20)[0]
    expected = model.forward(tokens)
    found = replace(model, layers=layers).forward(tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_folding_changes_no_logit(variant: str, stack: str) -> None:
    model = random_decoder(**VARIANTS[variant])
    rng, layers = np.random.default_rng(3), list[DecoderLayer]()
    for layer in model.layers:
        scale = np.exp(rng.normal(0, 1, layer.linear(stack).shape[1])).astype(np.float32)
        scale = shared(layer, stack, scale, model.config.head_dim)
        folded = fold(layer, stack, scale, model.config.head_dim)
        w = layer.linear(stack).dequantized()
        np.testing.assert_allclose(folded.linear(stack).dequantized(), w * scale, rtol=1e-6)
        layers.append(folded)
    assert_same_logits(model, layers)


def test_heads_that_share_values_share_scales() -> None:
    model = random_decoder(**VARIANTS["grouped"])  # 4 heads of 16, 2 of values
    values = np.arange(64, dtype=np.float32)
    found = shared(model.layers[0], "o_proj", values, 16)
    np.testing.assert_array_equal(found, np.concatenate([values[16:32]] * 2 + [values[48:]] * 2))
    for stack in ("q_proj", "gate_proj", "down_proj"):
        np.testing.assert_array_equal(shared(model.layers[0], stack, values, 16), values)
    normed = random_decoder(**VARIANTS["sub-norms"])  # each channel has its own weight of the norm
    np.testing.assert_array_equal(shared(normed.layers[0], "o_proj", values, 16), values)


def collected(variant: str) -> tuple[Decoder, DecoderLayer, dict[str, Inputs]]:
    model = random_decoder(**VARIANTS[variant])
    states = States(model, random_tokens(model, 8, 40))
    return model, model.layers[0], states.inputs(0, model.layers[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_smoothing_changes_no_logit(variant: str) -> None:
    model, layer, inputs = collected(variant)
    folded, scale = smooth(layer, inputs, target_for(model))
    assert scale.keys() == inputs.keys()
    assert_same_logits(model, [folded, *model.layers[1:]])


def error_of_outputs(w: Single, found: Single, inputs: Inputs, scale: Single, a_bits: int) -> float:
    """Squared error of the sample's outputs, with ``scale`` moved from inputs to the matrix."""
    x, unit = round_activations((inputs.sample / scale).astype(np.float64), a_bits)
    rest = (x * unit) @ found.T - inputs.sample @ w.T
    return float((rest * rest).sum())


@pytest.mark.parametrize("variant", VARIANTS)
def test_smoothing_is_never_worse_than_none(variant: str) -> None:
    """By the error that it searches by: outputs of rounded weights and rounded inputs."""
    model, layer, inputs = collected(variant)
    # outliers as those of large models: one channel is a hundred times the others
    norm = layer.input_layernorm.copy()
    norm[5] *= 100
    w_q = layer.q_proj.dequantized() / np.where(np.arange(64) == 5, 100, 1)
    layer = replace(layer, input_layernorm=norm, q_proj=Dense(w_q.astype(np.float32)))
    inputs = States(model, random_tokens(model, 8, 40)).inputs(0, layer)
    target = target_for(model, 8)
    found, plain = smoothquant(layer, inputs, target), quantize_layer(layer, target.bits, GROUP)
    _, scale = smooth(layer, inputs, target)
    totals = [0.0, 0.0]
    for name in STACKS["q_proj"]:
        w, x = layer.linear(name).dequantized(), inputs["q_proj"]
        ones = np.ones_like(scale["q_proj"])
        for at, (weights, s) in enumerate(((found, scale["q_proj"]), (plain, ones))):
            totals[at] += error_of_outputs(w, weights.linear(name).dequantized(), x, s, 8)
    assert totals[0] < 0.5 * totals[1]


def test_smoothing_by_the_papers_formula() -> None:
    x, w = np.array([16.0, 1, 4, 0], np.float32), np.array([1.0, 4, 1, 1], np.float32)
    found = smoothing(x, w, 0.5)
    # sqrt(x / w) is 4, 1/2, 2, about their middle
    np.testing.assert_allclose(found, np.array([4, 0.5, 2, np.sqrt(2)]) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_array_equal(smoothing(0 * x, w, 0.5), np.ones(4))
    # of x alone, and of w alone: 16, 1, 4, about 4, and 1, 1/4, 1, about 1/2
    found = smoothing(x, w, 1)
    np.testing.assert_allclose(found, [4, 0.25, 1, 1], rtol=1e-6)
    found = smoothing(x, w, 0)
    np.testing.assert_allclose(found, [2, 0.5, 2, 1], rtol=1e-6)


def test_inputs_that_gain_nothing_are_not_smoothed() -> None:
    model, layer, inputs = collected("llama")
    silent = {name: replace(x, sample=0 * x.sample) for name, x in inputs.items()}
    _, scale = smooth(layer, silent, target_for(model))
    assert all((each == 1).all() for each in scale.values())


def test_scales_are_powers_about_one() -> None:
    found = scales(np.array([1.0, 4, 16, 0], np.float32), 0.5)
    assert found.max() * found.min() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found[:3] / found[0], [1, 2, 4], rtol=1e-5)
    np.testing.assert_array_equal(scales(np.array([3.0, 5], np.float32), 0), np.ones(2))
    np.testing.assert_array_equal(scales(np.zeros(3, np.float32), 0.5), np.ones(3))


def test_ranges_are_clipped_by_what_comes_in() -> None:
    """The power of inputs that were divided already."""
    model, layer, inputs = collected("llama")
    target, x = target_for(model), inputs["q_proj"]
    scale = np.geomspace(0.1, 10, len(x.power)).astype(np.float32)
    found = round_scaled(layer, {"q_proj": scale}, {"q_proj": x}, target)
    for name in STACKS["q_proj"]:
        w = layer.linear(name).dequantized()
        expected = round_to_nearest(w, target.bits[name], GROUP, x.power / scale**2)
        np.testing.assert_array_equal(found.linear(name).dequantized(), expected.dequantized())


@pytest.mark.parametrize("variant", VARIANTS)
def test_awq_has_less_error_than_rounding(variant: str) -> None:
    """Summed over a stack, inputs divided by what the norm was divided by."""
    model, layer, inputs = collected(variant)
    target = target_for(model)
    found, plain = awq(layer, inputs, target), quantize_layer(layer, target.bits, GROUP)
    scale = layer.input_layernorm / found.input_layernorm
    assert not np.allclose(scale, 1)
    x = inputs["q_proj"]
    errors = [0.0, 0.0]
    for name in ("q_proj", "k_proj"):  # the rows of v are scaled too
        w = layer.linear(name).dequantized()
        rounded = (found.linear(name).dequantized() / scale).astype(np.float32)
        errors[0] += output_error(w, rounded, x.gram)
        errors[1] += output_error(w, plain.linear(name).dequantized(), x.gram)
    assert errors[0] < 0.9 * errors[1]

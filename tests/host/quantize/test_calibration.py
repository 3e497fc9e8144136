"""Calibration: windows of a text, statistics of what matrices are fed with."""

from dataclasses import replace

import numpy as np
import pytest
from tests.host.quantize.random_decoder import VARIANTS, random_decoder, random_tokens

from lutra.models.layers import rms_norm
from lutra.quantize.calibration import STACKS, States, calibration_windows, in_float, output_error
from lutra_golden.errors import LutraError


def test_windows_are_pieces_of_the_text() -> None:
    tokens = list(range(100, 400))
    windows = calibration_windows(tokens, 9, 33, seed=3, bos=1)
    assert windows.shape == (9, 33)
    assert (windows[:, 0] == 1).all()
    assert (np.diff(windows[:, 1:]) == 1).all()
    # 9 * 32 of 300 tokens: no token twice
    assert len(np.unique(windows[:, 1:])) == 9 * 32
    np.testing.assert_array_equal(windows, calibration_windows(tokens, 9, 33, seed=3, bos=1))
    assert not np.array_equal(windows, calibration_windows(tokens, 9, 33, seed=4, bos=1))


def test_windows_overlap_only_where_they_must() -> None:
    windows = calibration_windows(list(range(40)), 7, 20, seed=0)
    assert windows.shape == (7, 20)
    assert (np.diff(windows) == 1).all()


@pytest.mark.parametrize("bos", [None, 0])
def test_a_text_that_is_just_long_enough(bos: int | None) -> None:
    n = 8 if bos is None else 7
    windows = calibration_windows([5] * n, 3, 8, seed=0, bos=bos)
    assert windows.shape == (3, 8)


@pytest.mark.parametrize(("n", "length"), [(0, 8), (1, 1)])
def test_windows_that_can_not_be(n: int, length: int) -> None:
    message = f"calibration needs at least one window of at least two tokens, not {n} of {length}"
    with pytest.raises(LutraError, match=f"^{message}$"):
        calibration_windows(list(range(10)), n, length, seed=0)


def test_a_text_that_is_too_short() -> None:
    message = (
        "the calibration text has 10 tokens, a window takes 11: give a longer text or shorter "
        "windows"
    )
    with pytest.raises(LutraError, match=f"^{message}$"):
        calibration_windows(list(range(10)), 2, 12, seed=0, bos=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_inputs_are_those_of_the_matrices(variant: str) -> None:
    """Statistics by hand for the first stack; outputs by them for all."""
    model = random_decoder(**VARIANTS[variant])
    windows = random_tokens(model, 3, 20)
    states, layer = States(model, windows), model.layers[0]
    found = states.inputs(0, layer)
    assert list(found) == list(STACKS)
    x = np.concatenate([model.embed(window) for window in windows])
    x = rms_norm(x, layer.input_layernorm, model.config.rms_norm_eps)
    np.testing.assert_allclose(found["q_proj"].gram, x.T @ x / len(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["q_proj"].mean, np.abs(x).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["q_proj"].peak, np.abs(x).max(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["q_proj"].power, (x * x).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["q_proj"].sample, x, rtol=1e-4, atol=1e-5)
    for stack, inputs in found.items():
        assert inputs.gram.shape == (layer.linear(stack).shape[1],) * 2


def test_only_what_is_asked_for_is_collected() -> None:
    model = random_decoder()
    found = States(model, random_tokens(model, 2, 8)).inputs(0, model.layers[0], ["down_proj"])
    assert list(found) == ["down_proj"]


def test_a_long_text_leaves_a_sample() -> None:
    model = random_decoder()
    found = States(model, random_tokens(model, 20, 48)).inputs(0, model.layers[0])
    assert 256 <= len(found["q_proj"].sample) < 300


@pytest.mark.parametrize("windows_of_layers", [(0, 0), (0, 3)])
def test_the_stream_is_the_models(windows_of_layers: tuple[int, int]) -> None:
    model = random_decoder()
    model = replace(model, config=replace(model.config, windows=windows_of_layers))
    windows = random_tokens(model, 2, 10)
    states = States(model, windows)
    for i, layer in enumerate(model.layers):
        states.x = states.after(i, layer)
    for window, x in zip(windows, states.x, strict=True):
        assert x.dtype == np.float32
        np.testing.assert_allclose(model.logits(x), model.forward(window), rtol=1e-3, atol=1e-3)


def test_the_error_of_outputs() -> None:
    rng = np.random.default_rng(0)
    x, w, other = (rng.normal(size=(n, 24)).astype(np.float32) for n in (50, 7, 7))
    gram = (x.T @ x / len(x)).astype(np.float32)
    expected = ((x @ (other - w).T) ** 2).sum(axis=1).mean()
    assert output_error(w, other, gram) == pytest.approx(expected, rel=1e-4)
    assert output_error(w, w, gram) == 0


def test_a_layer_in_float_is_the_same_layer() -> None:
    layer = random_decoder().layers[0]
    single = in_float(layer)
    for name in ("q_proj", "down_proj"):
        np.testing.assert_array_equal(
            single.linear(name).dequantized(), layer.linear(name).dequantized()
        )

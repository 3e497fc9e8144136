"""Llama checkpoints: the float forward pass, rounding, and every way a checkpoint is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tests.host.random_model import LLAMAS, SHAPES, load, write_model

from lutra.checkpoints.weights import Dense
from lutra.models import find_model, load_model, shipped_models
from lutra.models.bitnet import BITNET
from lutra.models.layers import round_activations
from lutra.models.llama import LLAMA
from lutra_golden.errors import LutraError
from lutra_golden.model.shapes import LINEARS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", LLAMAS["llama"])


def change_config(folder: Path, **changes: object) -> None:
    """Change fields of ``config.json``; None removes one."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def change_tensor(folder: Path, name: str, tensor: NDArray[np.generic] | None) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, path)


# -- reading


def test_tensors_arrive_where_they_belong(folder: Path) -> None:
    model, tensors = load(folder), load_file(folder / "model.safetensors")
    layer, prefix = model.layers[0], "model.layers.0"
    assert model.name == "model"
    assert model.activation_bits is None
    np.testing.assert_array_equal(model.embed_tokens.values, tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(model.norm, tensors["model.norm.weight"])
    for name in LINEARS:
        part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        expected = tensors[f"{prefix}.{part}.{name}.weight"]
        np.testing.assert_array_equal(layer.linear(name).dequantized(), expected)
    for name in ("input_layernorm", "post_attention_layernorm"):
        np.testing.assert_array_equal(getattr(layer, name), tensors[f"{prefix}.{name}.weight"])


def test_half_precision_is_read_too(folder: Path) -> None:
    weight = load(folder).layers[0].q_proj.dequantized()
    change_tensor(folder, "model.layers.0.self_attn.q_proj.weight", weight.astype(np.float16))
    np.testing.assert_array_equal(
        load(folder).layers[0].q_proj.dequantized(), weight.astype(np.float16).astype(np.float32)
    )


def test_the_shipped_model() -> None:
    assert "tales-llama" in shipped_models()
    model = load_model(find_model("tales-llama"))
    assert model.architecture == LLAMA
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (256, 3)
    # all weights are bfloat16: the lower half of a float32 is empty
    for name in LINEARS:
        weight = model.layers[0].linear(name).dequantized()
        assert not (weight.view(np.uint32) & 0xFFFF).any()


def test_the_architecture_chooses_what_reads_a_folder(tmp_path: Path, folder: Path) -> None:
    assert load_model(folder).architecture == LLAMA
    bitnet = write_model(tmp_path / "bitnet", SHAPES["least"])
    assert load_model(bitnet).architecture == BITNET


# -- the forward pass


# the reference wants a hidden size that is a multiple of the heads
@pytest.mark.parametrize("name", ["llama", "llama-grouped", "llama-whole"])
def test_forward_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    """The same checkpoint in float64 here and in float32 by the reference implementation."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, shape = write_model(tmp_path / "model", LLAMAS[name]), LLAMAS[name]
    tokens = np.random.default_rng(2).integers(0, shape.vocab_size, shape.max_position_embeddings)
    reference = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens)[None]).logits[0].numpy()
    actual = load(folder).forward(tokens)
    assert np.abs(actual - expected).max() < 1e-4 * expected.std()


def test_forward_by_hand(folder: Path) -> None:
    """One layer, one head, token after token."""
    model = load(folder)
    c, layer, tokens = model.config, model.layers[0], np.array([5, 9, 200])
    keys, values, logits = [], [], []
    w = {each: layer.linear(each).dequantized().astype(np.float64) for each in LINEARS}
    embedding = model.embed_tokens.dequantized().astype(np.float64)

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x) + c.rms_norm_eps) * weight

    def rotate(x: np.ndarray, position: int) -> np.ndarray:
        z = (x[:16] + 1j * x[16:]) * np.exp(1j * position * 10000.0 ** (-np.arange(16) / 16))
        return np.concatenate([z.real, z.imag])

    for position, token in enumerate(tokens):
        x = embedding[token]
        h = norm(x, layer.input_layernorm)
        keys.append(rotate(w["k_proj"] @ h, position))
        values.append(w["v_proj"] @ h)
        p = np.exp(np.array(keys) @ rotate(w["q_proj"] @ h, position) / np.sqrt(32))
        x = x + w["o_proj"] @ (p @ np.array(values) / p.sum())
        h = norm(x, layer.post_attention_layernorm)
        gate = w["gate_proj"] @ h
        x = x + w["down_proj"] @ (gate / (1 + np.exp(-gate)) * (w["up_proj"] @ h))
        logits.append(embedding @ norm(x, model.norm))
    np.testing.assert_allclose(model.forward(tokens), logits, atol=1e-9)


def test_residual_peak_is_of_the_whole_stream(folder: Path) -> None:
    model, tokens = load(folder), np.array([5, 9, 200])
    peak = model.residual_peak(tokens)
    assert peak >= np.abs(model.embed_tokens.dequantized()[tokens]).max()
    larger = replace(model, layers=[replace(model.layers[0], down_proj=Dense(1e3 * np.eye(32)))])
    assert larger.residual_peak(tokens) > 10 * peak


@pytest.mark.parametrize(("bits", "bound"), [(16, 1e-3), (8, 0.1)])
def test_rounded_activations_come_near_the_exact_ones(
    bits: int, bound: float, folder: Path
) -> None:
    model, tokens = load(folder), np.arange(20)
    exact = model.forward(tokens)
    error = replace(model, activation_bits=bits).forward(tokens) - exact
    assert 0 < np.sqrt((error**2).mean()) < bound * exact.std()


def test_activations_are_rounded_per_token() -> None:
    x = np.array([[1.0, -127.0, 0.4], [0.01, 0.005, 0.0], [0.0, 0.0, 0.0]])
    q, unit = round_activations(x, 8)
    np.testing.assert_array_equal(q, [[1, -127, 0], [127, 64, 0], [0, 0, 0]])
    np.testing.assert_allclose(unit[:2, 0], [1.0, 0.01 / 127])
    q, unit = round_activations(x, 16)
    assert q[0, 1] == -32767
    np.testing.assert_allclose(q[0] * unit[0], x[0], atol=0.5 * 127 / 32767)


# -- what is wrong with a folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported is 'silu': use"),
        ({"attention_bias": True}, "attention_bias True is not supported; supported is False"),
        ({"mlp_bias": True}, "mlp_bias True is not supported; supported is False"),
        (
            {"rope_scaling": {"type": "su"}},
            "rope_type 'su' is not supported; supported are default",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": -1}}, "factor must be positive, not -1"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5 is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quant_method 'fp8' is not supported"),
    ],
)
def test_a_model_that_is_not_supported(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    change_config(folder, **changes)
    with pytest.raises(LutraError, match=rf"^\S+config\.json: {message}"):
        load(folder)


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        (["GPT2LMHeadModel"], "architecture 'GPT2LMHeadModel' is not supported; supported are Bit"),
        (
            ["LlamaForCausalLM", "BitNetForCausalLM"],
            "architectures must be a list of one name, not",
        ),
        ("LlamaForCausalLM", "architectures must be a list of one name, not 'LlamaForCausalLM'"),
        (None, "architectures must be a list of one name, not None: "),
    ],
)
def test_an_architecture_that_is_unknown(folder: Path, named: object, shown: str) -> None:
    change_config(folder, architectures=named)
    with pytest.raises(LutraError, match=rf"^\S+config\.json: {shown}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head_dim", 7, "must be a multiple of 4, not 7"),
        ("num_attention_heads", 3, "must be a multiple of 2, not 3"),
        ("vocab_size", 0, "must be a positive whole number, not 0"),
        ("rope_theta", "big", "must be a number, not 'big'"),
    ],
)
def test_a_number_that_is_wrong(folder: Path, name: str, value: object, message: str) -> None:
    change_config(folder, num_key_value_heads=2, **{name: value})
    with pytest.raises(LutraError, match=rf"^\S+config\.json: {name} {message}$"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.norm.weight", None, " has no tensor model.norm.weight: copy the model again"),
        (
            "model.layers.0.mlp.up_proj.weight",
            np.zeros((32, 16), np.float32),
            r": model.layers.0.mlp.up_proj.weight must be \[32, 32\], not \[32, 16\]",
        ),
        (
            "model.layers.0.self_attn.q_proj.weight",
            np.zeros((32, 32), np.int8),
            ": model.layers.0.self_attn.q_proj.weight must be in floating point, not int8",
        ),
        (
            "model.layers.0.self_attn.k_proj.weight",
            np.full((32, 32), np.nan, np.float32),
            ": model.layers.0.self_attn.k_proj.weight holds infinities or NaNs: export the model",
        ),
    ],
)
def test_a_tensor_that_is_wrong(
    folder: Path, name: str, tensor: NDArray[np.generic] | None, message: str
) -> None:
    change_tensor(folder, name, tensor)
    with pytest.raises(LutraError, match=rf"^\S+model\.safetensors{message}"):
        load(folder)

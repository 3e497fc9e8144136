"""BitNet checkpoints: unpacking, the float forward pass, and every way a checkpoint is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tests.host.random_model import Shape, load, write_model

from lutra.checkpoints.huggingface import unpack_ternary
from lutra.checkpoints.weights import Ternary
from lutra.models import find_model, shipped_models
from lutra.models.decoder import Decoder
from lutra_golden.errors import LutraError

SHAPE = Shape(hidden_size=32, intermediate_size=32, num_hidden_layers=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", SHAPE)


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


def test_unpacking_strides_rows_by_a_quarter() -> None:
    packed = np.array([[0b00_10_10_00], [0b10_10_01_01]], np.uint8)
    expected = [[-1], [0], [1], [0], [1], [1], [-1], [1]]
    np.testing.assert_array_equal(unpack_ternary(packed), expected)


def test_tensors_arrive_where_they_belong(folder: Path) -> None:
    model, tensors = load(folder), load_file(folder / "model.safetensors")
    layer, prefix = model.layers[0], "model.layers.0"
    assert model.name == "model"
    assert model.config.head_dim == 32
    np.testing.assert_array_equal(model.embed_tokens.values, tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(model.norm, tensors["model.norm.weight"])
    for name, linear in {
        "self_attn.q_proj": layer.q_proj,
        "self_attn.k_proj": layer.k_proj,
        "self_attn.v_proj": layer.v_proj,
        "self_attn.o_proj": layer.o_proj,
        "mlp.gate_proj": layer.gate_proj,
        "mlp.up_proj": layer.up_proj,
        "mlp.down_proj": layer.down_proj,
    }.items():
        weight = unpack_ternary(tensors[f"{prefix}.{name}.weight"])
        assert isinstance(linear, Ternary)
        np.testing.assert_array_equal(linear.codes, weight)
        assert linear.scale == tensors[f"{prefix}.{name}.weight_scale"][0]
    np.testing.assert_array_equal(layer.ffn_sub_norm, tensors[f"{prefix}.mlp.ffn_sub_norm.weight"])


def test_the_size_of_a_head_follows_where_it_is_not_said(tmp_path: Path) -> None:
    folder = write_model(tmp_path, Shape(hidden_size=64, num_attention_heads=2))
    change_config(folder, head_dim=None)
    assert load(folder).config.head_dim == 32


def test_shipped_models_are_found_by_name_and_by_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "tales" in shipped_models()
    assert load(find_model("tales")).config.vocab_size == 2048
    assert find_model(folder) == find_model(str(folder)) == folder
    # a folder that only happens to have the name of a shipped model
    (tmp_path / "tales").mkdir()
    monkeypatch.chdir(tmp_path)
    assert (find_model("tales") / "model.safetensors").exists()
    write_model(tmp_path / "tales", SHAPE)
    assert find_model("tales") == Path("tales")


def test_an_unknown_model() -> None:
    message = (
        r"^model 'no/such/model' is neither a folder nor a shipped model \(.*tales.*\): "
        "give the folder that holds config.json and model.safetensors, a GGUF file, or an id "
    )
    with pytest.raises(LutraError, match=message):
        find_model("no/such/model")


# -- what is wrong with a folder


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(LutraError, match=r"config\.json does not exist: give a model folder, a"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"architectures": [', "\xff\xfe", '{"x": "\\ud800"}'])
def test_a_config_that_is_not_json(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(LutraError, match=r"config\.json is not JSON \(.*\): copy the model again"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported is 'relu2' or"),
        ({"input_bits": 4}, "input_bits 4 is not supported; supported is None or 8: "),
        ({"quantization_config": {"x": 1}}, "quant_method 'missing' is not supported; supported a"),
        (
            {"quantization_config": {"quant_method": "bitnet", "linear_class": "other"}},
            "linear_class 'other' is not supported; supported is 'autobitlinear' or 'bitlinear'",
        ),
    ],
)
def test_an_architecture_that_is_not_supported(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    change_config(folder, **changes)
    with pytest.raises(LutraError, match=rf"^\S+config\.json: {message}"):
        load(folder)


def test_a_config_that_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(LutraError, match="architectures must be a list of one name, not None"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_size", None, "must be a positive whole number, not None"),
        ("hidden_size", "32", "must be a positive whole number, not '32'"),
        ("hidden_size", 32.5, r"must be a positive whole number, not 32\.5"),
        ("hidden_size", True, "must be a positive whole number, not True"),
        ("intermediate_size", 0, "must be a positive whole number, not 0"),
        ("num_hidden_layers", -1, "must be a positive whole number, not -1"),
        ("num_attention_heads", 3, "must be a multiple of 2, not 3"),
        ("head_dim", 7, "must be a multiple of 4, not 7"),
        ("eos_token_id", [1, -304], r"must be a token id in 0\.\.303, not -304"),
        ("eos_token_id", "1", r"must be a token id in 0\.\.303, not '1'"),
        ("bos_token_id", -1, r"must be a token id in 0\.\.303, not -1"),
        ("rms_norm_eps", "1e-5", "must be a number, not '1e-5'"),
        ("rms_norm_eps", 0, "must be positive, not 0"),
        ("rope_theta", float("inf"), "must be positive, not inf"),
        ("rope_theta", float("nan"), "must be positive, not nan"),
    ],
)
def test_a_number_that_is_wrong(folder: Path, name: str, value: object, message: str) -> None:
    change_config(folder, num_key_value_heads=2, **{name: value})
    with pytest.raises(LutraError, match=rf"^\S+config\.json: {name} {message}$"):
        load(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(LutraError, match=r"model\.safetensors does not exist"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.mlp.down_proj.weight_scale",
    ],
)
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    change_tensor(folder, name, None)
    message = rf"has no tensor {name}: copy the model again$"
    with pytest.raises(LutraError, match=message):
        load(folder)


def test_more_layers_than_there_are(folder: Path) -> None:
    change_config(folder, num_hidden_layers=2)
    with pytest.raises(LutraError, match=r"has no tensor model\.layers\.1\.self_attn\.q_proj"):
        load(folder)


def test_a_tensor_of_another_shape(folder: Path) -> None:
    change_tensor(folder, "model.norm.weight", np.ones(31, np.float32))
    with pytest.raises(LutraError, match=r"model\.norm\.weight must be \[32\], not \[31\]: config"):
        load(folder)


def test_weights_that_are_not_packed(folder: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    change_tensor(folder, name, np.zeros((8, 64), np.float32))
    with pytest.raises(LutraError, match=f"{name} must be packed uint8, not float32$"):
        load(folder)


def test_a_code_that_stands_for_nothing(folder: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    packed = np.zeros((8, 64), np.uint8)
    packed[3, 5] = 0b0000_1100
    change_tensor(folder, name, packed)
    with pytest.raises(LutraError, match=f"{name} holds codes other than 0, 1 and 2: copy"):
        load(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(folder: Path, value: float) -> None:
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    embedding[7, 3] = value
    change_tensor(folder, "model.embed_tokens.weight", embedding)
    message = r"model\.embed_tokens\.weight holds infinities or NaNs: export the model again$"
    with pytest.raises(LutraError, match=message):
        load(folder)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive(folder: Path, scale: float) -> None:
    name = "model.layers.0.mlp.up_proj.weight_scale"
    change_tensor(folder, name, np.array([scale], np.float32))
    with pytest.raises(LutraError, match=rf"{name} must be positive, not -?\d\.0$"):
        load(folder)


# -- the float forward pass


def test_forward_is_causal(checkpoint: Callable[[str], Decoder]) -> None:
    model = checkpoint("grouped")
    tokens = np.arange(12) * 7
    whole = model.forward(tokens)
    np.testing.assert_allclose(model.forward(tokens[:5]), whole[:5], rtol=1e-9)
    changed = model.forward(np.append(tokens[:11], 3))
    np.testing.assert_allclose(changed[:11], whole[:11], rtol=1e-9)
    assert not np.allclose(changed[11], whole[11])


def test_residual_peak_is_the_largest_value_on_the_way(
    checkpoint: Callable[[str], Decoder],
) -> None:
    model, tokens = checkpoint("least"), np.arange(8)
    peak = model.residual_peak(tokens)
    assert peak >= np.abs(model.embed_tokens.dequantized()[tokens]).max()


def test_forward_is_that_of_the_training_code() -> None:
    """The shipped model in float64 here and in float32 torch."""
    torch = pytest.importorskip("torch")
    export = pytest.importorskip("lutra_flows.train.export")
    folder = find_model("tales")
    tokens = np.random.default_rng(1).integers(2, 2048, 96)
    tokens[0] = 0
    actual = load(folder).forward(tokens)
    with torch.no_grad():
        expected = export.load_checkpoint(folder)(torch.from_numpy(tokens[None]))[0].numpy()
    assert_close(actual, expected)


def test_forward_is_that_of_transformers() -> None:
    """The shipped model in float64 here and in float32 by the reference implementation."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    folder = find_model("tales")
    tokens = np.random.default_rng(2).integers(2, 2048, 96)
    tokens[0] = 0
    actual = load(folder).forward(tokens)
    reference = transformers.BitNetForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.nn.Module.float(reference)  # the weights were unpacked to bfloat16, exactly
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = reference(torch.from_numpy(tokens[None])).logits[0].numpy()
    assert_close(actual, expected)


def assert_close(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> None:
    """Float32 moves some activations across a rounding, and with them everything that follows."""
    assert actual.shape == expected.shape
    error = np.sqrt(((actual - expected) ** 2).mean()) / actual.std()
    assert error < 0.01

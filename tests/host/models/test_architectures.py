"""Every architecture and variant: a second implementation and the libraries' give equal logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tests.host.models.plain_forward import plain_forward
from tests.host.models.small_models import (
    TOKENS,
    VARIANTS,
    config_of,
    dense_weights,
    write_variant,
)

from lutra.models import load_model


def plain(folder: Path) -> NDArray[np.float64]:
    """Logits of the second implementation, for one file or several."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return plain_forward(config, dense_weights(config, tensors), TOKENS)


def assert_same(actual: NDArray[np.float64], expected: NDArray[Any], bound: float) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < bound * expected.std()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_second_implementation_gives_the_same(variant: str, tmp_path: Path) -> None:
    folder = write_variant(tmp_path / variant, variant)
    actual = load_model(folder).forward(np.array(TOKENS))
    # scales and masters are float32 in the one and float64 in the other
    assert_same(actual, plain(folder), 1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("variant", ["llama-untied", "qwen2", "qwen3", "bitnet-large"])
def test_types(variant: str, dtype: str, tmp_path: Path) -> None:
    folder = write_variant(tmp_path / variant, variant, dtype)
    assert_same(load_model(folder).forward(np.array(TOKENS)), plain(folder), 1e-5)


def test_shards(tmp_path: Path) -> None:
    one = load_model(write_variant(tmp_path / "one", "qwen3"))
    folder = write_variant(tmp_path / "three", "qwen3", shards=3)
    assert not (folder / "model.safetensors").exists()
    tokens = np.array(TOKENS)
    np.testing.assert_array_equal(load_model(folder).forward(tokens), one.forward(tokens))


@pytest.mark.parametrize(
    ("variant", "part"),
    [
        ("qwen2", "self_attn.k_proj.bias"),
        ("qwen3", "self_attn.q_norm.weight"),
        ("bitnet", "self_attn.attn_sub_norm.weight"),
        ("bitnet-large", "mlp.ffn_layernorm.weight"),
        ("falcon3", "self_attn.v_proj.weight_scale"),
        ("llama", "input_layernorm.weight"),
    ],
)
def test_every_part_counts(variant: str, part: str, tmp_path: Path) -> None:
    """A part of one layer that is changed changes the logits: none is read and not used."""
    folder = write_variant(tmp_path / variant, variant)
    before = load_model(folder).forward(np.array(TOKENS))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = f"model.layers.1.{part}"
    tensors[name] = tensors[name] * np.linspace(0.5, 1.5, len(tensors[name]), dtype=np.float32)
    save_file(tensors, path)
    after = load_model(folder).forward(np.array(TOKENS))
    assert np.abs(after - before).max() > 1e-2 * before.std()
    assert_same(after, plain(folder), 1e-5)


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("llama-yarn", {"rope_scaling": None}),
        ("llama-linear", {"rope_scaling": None}),
        ("llama-llama3", {"rope_scaling": None}),
        ("qwen2-window", {"use_sliding_window": False}),
        ("mistral-window", {"sliding_window": None}),
        ("llama", {"rope_theta": 10000.0}),
    ],
)
def test_every_field_counts(variant: str, changes: dict[str, object], tmp_path: Path) -> None:
    folder = write_variant(tmp_path / variant, variant)
    before = load_model(folder).forward(np.array(TOKENS))
    (folder / "config.json").write_text(json.dumps(config_of(variant) | changes))
    after = load_model(folder).forward(np.array(TOKENS))
    assert np.abs(after - before).max() > 1e-2 * before.std()


# -- against transformers


def saved_by_transformers(folder: Path, variant: str, dtype: str = "float32", **how: Any) -> Any:
    """The library's model of a variant with random weights, which it also saved to ``folder``."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fields = config_of(variant)
    architecture = fields.pop("architectures")[0]
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(4)
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_()
            else:
                parameter.normal_(std=1 if "embed" in name else parameter.shape[-1] ** -0.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder, **how)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


def logits_of(model: Any) -> NDArray[np.float32]:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].float().numpy()


FLOATING = [name for name in VARIANTS if "bitnet" not in name and name != "falcon3"]


@pytest.mark.parametrize("variant", FLOATING)
def test_transformers_gives_the_same(variant: str, tmp_path: Path) -> None:
    reference = saved_by_transformers(tmp_path / variant, variant)
    actual = load_model(tmp_path / variant).forward(np.array(TOKENS))
    assert_same(actual, logits_of(reference), 1e-4)
    assert_same(plain(tmp_path / variant), logits_of(reference), 1e-4)


@pytest.mark.parametrize("variant", ["bitnet", "bitnet-divides", "bitnet-online", "falcon3"])
def test_ternary_layers_of_transformers(variant: str, tmp_path: Path) -> None:
    """Its own classes of packed layers; float32 moves some activations across a rounding."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    folder = write_variant(tmp_path / variant, variant)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # the weights were unpacked to bfloat16, exactly
    torch.nn.Module.float(model)
    with torch.compiler.set_stance("force_eager"):
        expected = logits_of(model)
    actual = load_model(folder).forward(np.array(TOKENS))
    assert np.sqrt(((actual - expected) ** 2).mean()) < 0.01 * actual.std()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("variant", ["llama-untied", "qwen2"])
def test_types_of_transformers(variant: str, dtype: str, tmp_path: Path) -> None:
    reference = saved_by_transformers(tmp_path / variant, variant, dtype)
    assert_same(
        load_model(tmp_path / variant).forward(np.array(TOKENS)), logits_of(reference), 1e-4
    )


def test_shards_of_transformers(tmp_path: Path) -> None:
    reference = saved_by_transformers(tmp_path, "qwen3", max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(load_model(tmp_path).forward(np.array(TOKENS)), logits_of(reference), 1e-4)

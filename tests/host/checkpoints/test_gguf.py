"""GGUF checkpoints: the same logits as the definition's weights give, and what is refused."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

gguf = pytest.importorskip("gguf")

from tests.host.gguf_model import (
    MODELS,
    GgufModel,
    Tensors,
    random_floats,
    reference_logits,
    write_gguf,
)

from lutra.checkpoints import open_checkpoint
from lutra.checkpoints.gguf import GgufCheckpoint
from lutra.checkpoints.weights import Dense, Grouped, Ternary
from lutra.models import load_model
from lutra.models.rope import Rope
from lutra.quantize import DEFAULT_GROUP, default_format, quantize_layer
from lutra.quantize.kept import KEPT, Kept
from lutra_golden.errors import LutraError
from lutra_golden.model.shapes import LINEARS

TOKENS = np.random.default_rng(3).integers(0, 96, 9)
EXACT = 1e-3
# offsets are rounded when groups become integers, all else of these is exact
PACKED = {"Q4_K": 0.03, "Q4_1": 0.03, "Q5_1": 0.03}


def forward(path: Path) -> NDArray[np.float64]:
    """Logits without rounding of activations."""
    return replace(load_model(path), activation_bits=None).forward(TOKENS)


def relative(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(np.abs(found - expected).max() / expected.std())


def by_transformers(model: GgufModel, tensors: Tensors, **options: object) -> NDArray[np.float64]:
    """Logits of transformers' own class with these weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{model.reference}Config")(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        max_position_embeddings=32,
        rms_norm_eps=1e-5,
        hidden_act="relu2" if model.relu2 else "silu",
        tie_word_embeddings=model.tied,
        attn_implementation="eager",
        **{"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}} | options,
        **({"sliding_window": model.window} if model.window else {}),
    )
    reference = getattr(transformers, f"{model.reference}ForCausalLM")(config).float().eval()
    state = {name: torch.from_numpy(values.copy()) for name, values in tensors.items()}
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if model.tied else [])
    reference.tie_weights()
    with torch.no_grad():
        return reference(torch.from_numpy(TOKENS)[None]).logits[0].double().numpy()


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_each_architecture(name: str, kind: str, tmp_path: Path) -> None:
    path, model = tmp_path / "model.gguf", MODELS[name]
    held = write_gguf(path, model, kind)
    assert relative(forward(path), reference_logits(model, held, TOKENS)) < EXACT


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    path, model = tmp_path / "model.gguf", MODELS[name]
    held = write_gguf(path, model, "TQ2_0" if name == "bitnet" else "Q8_0")
    assert relative(forward(path), by_transformers(model, held)) < EXACT


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in ("llama", "bitnet")
        for kind in (
            "F16",
            "BF16",
            "Q8_0",
            "Q4_K",
            "Q6_K",
            "TQ1_0",
            "TQ2_0",
            "I2_S",
            "Q5_1",
            "Q1_0",
            "Q2_0",
            "IQ3_XXS",
        )
    ],
)
def test_logits_of_each_type(name: str, kind: str, tmp_path: Path) -> None:
    path, model = tmp_path / "model.gguf", MODELS[name]
    outer = {"Q4_K": "Q6_K", "IQ3_XXS": "IQ3_XXS"}.get(kind, "F16")
    held = write_gguf(path, model, kind, outer=outer)
    assert relative(forward(path), reference_logits(model, held, TOKENS)) < EXACT


@pytest.mark.parametrize(
    "kind",
    [
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "MXFP4",
        "Q4_K",
        "Q6_K",
        "TQ2_0",
        "Q1_0",
        "Q2_0",
        "PQ2_0",
        "IQ1_S",
        "IQ2_XS",
        "IQ3_XXS",
        "IQ3_S",
    ],
)
def test_what_is_kept_of_each_type(kind: str, tmp_path: Path) -> None:
    """The integers that run are the file's weights; rows need be no multiple of 256."""
    path, model = tmp_path / "model.gguf", MODELS["qwen3"]
    if kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"):
        model = replace(
            model, hidden_size=96, intermediate_size=160, num_attention_heads=3,
            num_key_value_heads=1, head_dim=32,
        )  # fmt: skip
    held = write_gguf(path, model, kind)
    source = load_model(path)
    bits: dict[str, int] = dict.fromkeys(LINEARS, default_format(source).w_bits)
    layers = [quantize_layer(layer, bits, DEFAULT_GROUP) for layer in source.layers]
    found = replace(source.replaced(layers, 8), activation_bits=None).forward(TOKENS)
    expected = reference_logits(model, held, TOKENS)
    assert relative(found, expected) < PACKED.get(kind, EXACT)
    assert replace(source, activation_bits=None).forward(TOKENS).shape == found.shape


def test_the_format_that_a_type_runs_in(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for kind, format in (
        ("Q1_0", "W1A8"), ("PQ2_0", "W1.58g128A8"),
        ("Q4_0", "W4A8"), ("Q5_0", "W6A8"), ("Q4_K", "W4A8"),
        ("MXFP4", "W6A8"), ("I2_S", "W1.58A8"),
        ("IQ1_S", "W4A8"), ("IQ2_XS", "W8A8"), ("IQ3_XXS", "W6A8"), ("IQ3_S", "W4A8"),
    ):  # fmt: skip
        write_gguf(path, MODELS["llama"], kind)
        assert str(default_format(load_model(path), offsets=True)) == format
        runs_in = KEPT[kind].runs_in.replace(" in groups of ", "g")
        named = runs_in.startswith(format.removesuffix("A8"))
        assert named or kind == "I2_S" or "W1.58 without its fourth code" in runs_in
    write_gguf(path, MODELS["llama"], "Q4_K")
    assert str(default_format(load_model(path))) == "W8A8"
    assert KEPT["Q4_K"].runs_in.endswith(" with offsets, W8 without")


def test_the_table_of_types_in_the_manual() -> None:
    page = (Path(__file__).parents[3] / "docs/formats.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| [\d.]+ \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert {name: Kept(runs_in, exact) for name, runs_in, exact in rows} == KEPT


@pytest.mark.parametrize("fault", ["rows", "nibbles", "scale"])
def test_the_limits_catch_a_fault(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows left permuted, nibbles swapped, a scale inverted: each is far beyond the limits."""
    from lutra.checkpoints import gguf as module

    path, model = tmp_path / "model.gguf", MODELS["llama"]
    held = write_gguf(path, model, "Q4_0")
    read, rows = module.read_weight, module._take_rows

    def swapped(*args: object) -> Grouped:
        weight = read(*args)  # pyright: ignore[reportArgumentType]
        assert isinstance(weight, Grouped)
        if fault == "nibbles":
            halves = weight.codes.reshape(-1, 2, 16)[:, ::-1]
            return replace(weight, codes=halves.reshape(weight.codes.shape))
        return replace(weight, scale=1e-4 / weight.scale)

    if fault == "rows":
        monkeypatch.setattr(module, "_take_rows", lambda weight, _order: weight)
    else:
        monkeypatch.setattr(module, "read_weight", swapped)
    assert module._take_rows is not rows or module.read_weight is not read
    assert relative(forward(path), reference_logits(model, held, TOKENS)) > 0.2


def test_types_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for kind, expected in (
        ("F16", Dense), ("Q4_0", Grouped), ("Q6_K", Grouped), ("TQ1_0", Ternary), ("I2_S", Ternary)
    ):  # fmt: skip
        write_gguf(path, MODELS["llama"], kind)
        checkpoint = GgufCheckpoint(path)
        weight = checkpoint.linear("model.layers.1.self_attn.q_proj", 256, 256)
        assert isinstance(weight, expected)
        assert weight.shape == (256, 256)
        # ternary weights are for activations of eight bits
        assert load_model(path).activation_bits == (8 if expected is Ternary else None)


def test_bitnet_in_floating_point(tmp_path: Path) -> None:
    """Weights that are ternary are taken as such, others stay what they are."""
    path, model = tmp_path / "model.gguf", MODELS["bitnet"]
    floats = random_floats(model)
    name = "model.layers.0.mlp.up_proj"
    write_gguf(path, model, "F32", floats=floats)
    masters = floats[f"{name}.weight"]
    mean = np.abs(masters).mean()
    expected = np.clip(np.rint(masters / mean), -1, 1)
    layer = load_model(path).layers[0]
    assert isinstance(layer.up_proj, Dense)
    assert layer.exempt == set(LINEARS)
    np.testing.assert_array_equal(layer.up_proj.values, masters)

    floats[f"{name}.weight"] = (expected * 0.375).astype(np.float32)
    write_gguf(path, model, "F16", floats=floats)
    found = load_model(path).layers[0].up_proj
    assert isinstance(found, Ternary)
    np.testing.assert_array_equal(found.codes, expected)
    assert found.scale == 0.375


def test_both_models_called_bitnet(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    model = replace(MODELS["bitnet"], arch="bitnet", tied=False)
    write_gguf(path, model, "TQ2_0")
    assert GgufCheckpoint(path).config.architecture == "BitnetForCausalLM"
    silu = replace(model, relu2=False)
    held = write_gguf(path, silu, "TQ2_0")
    assert relative(forward(path), reference_logits(silu, held, TOKENS)) < EXACT
    fields: dict[str, object] = {"tokenizer.ggml.model": "gpt2"}
    held = write_gguf(path, replace(model, fields=fields), "TQ2_0")
    assert GgufCheckpoint(path).config.architecture == "BitNetForCausalLM"
    assert relative(forward(path), reference_logits(model, held, TOKENS)) < EXACT


def test_factors_of_frequencies(tmp_path: Path) -> None:
    """Llama 3's scaling is a tensor of factors in GGUF."""
    path = tmp_path / "model.gguf"
    scaled = Rope(
        theta=20000.0, kind="llama3", factor=8.0, original=16, low_freq_factor=1.0,
        high_freq_factor=4.0,
    )  # fmt: skip
    factors = Rope(theta=20000.0).frequencies(64, 32) / scaled.frequencies(64, 32)
    model = replace(MODELS["llama"], factors=tuple(factors.tolist()))
    held = write_gguf(path, model, "Q8_0")
    rope = load_model(path).config.rope
    np.testing.assert_allclose(rope.frequencies(64, 32), scaled.frequencies(64, 32), rtol=1e-6)
    found = forward(path)
    assert relative(found, reference_logits(model, held, TOKENS)) < EXACT
    assert relative(found, reference_logits(MODELS["llama"], held, TOKENS)) > 10 * EXACT
    # with torch, the same by the class that defines the scaling
    scaling = {
        "rope_type": "llama3", "rope_theta": 20000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    assert relative(found, by_transformers(model, held, rope_parameters=scaling)) < EXACT


def test_linear_scaling(tmp_path: Path) -> None:
    path, model = tmp_path / "model.gguf", MODELS["qwen3"]
    for fields in (
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.factor": 4.0},
        {"rope.scale_linear": 4.0},
    ):
        write_gguf(path, replace(model, fields=fields))
        rope = load_model(path).config.rope
        np.testing.assert_allclose(
            rope.frequencies(64, 32) * 4, Rope(theta=20000.0).frequencies(64, 32)
        )
    # what converters of BitNet write
    fields = {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}
    write_gguf(path, replace(model, fields=fields))
    assert load_model(path).config.rope.kind == "default"


def test_yarn(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    fields: dict[str, object] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 8,
    }
    model = replace(MODELS["qwen3"], fields=fields | {"rope.scaling.attn_factor": 0.5})
    write_gguf(path, model)
    sharper = load_model(path).config.rope.magnitude
    assert sharper == pytest.approx(0.5 * (0.1 * np.log(4) + 1))
    model = replace(model, fields=fields)
    held = write_gguf(path, model)
    found = forward(path)
    assert relative(found, reference_logits(model, held, TOKENS)) > 10 * EXACT
    scaling: dict[str, object] = {
        "rope_type": "yarn", "rope_theta": 20000.0, "factor": 4.0,
        "original_max_position_embeddings": 8,
    }  # fmt: skip
    assert relative(found, by_transformers(model, held, rope_parameters=scaling)) < EXACT


def test_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    fields: dict[str, object] = {
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(96)],
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 5,
        "tokenizer.ggml.eot_token_id": 7,
    }
    write_gguf(path, replace(MODELS["mistral"], fields=fields))
    model = load_model(path)
    c = model.config
    assert model.name == "model"
    assert model.architecture == "MistralForCausalLM"
    assert (c.hidden_size, c.intermediate_size, c.num_hidden_layers) == (256, 512, 2)
    assert (c.num_attention_heads, c.num_key_value_heads, c.head_dim) == (4, 2, 64)
    assert (c.vocab_size, c.max_position_embeddings, c.windows) == (96, 32, (5, 5))
    assert (c.bos_token_id, c.eos_token_id) == (3, (5, 7))
    assert c.rms_norm_eps == pytest.approx(1e-5)
    assert c.rope.theta == 20000
    assert model.lm_head is not None
    write_gguf(path, MODELS["qwen2"])
    model = load_model(path)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (None, ())
    assert model.lm_head is None
    assert "model.layers.1.self_attn.k_proj.bias" in GgufCheckpoint(path).names()


def test_opening_by_magic_or_suffix(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, MODELS["llama"])
    assert isinstance(open_checkpoint(path), GgufCheckpoint)
    other = path.rename(tmp_path / "model-of-a-cache")
    assert isinstance(open_checkpoint(other), GgufCheckpoint)
    path.write_bytes(b"something else")
    with pytest.raises(LutraError, match="is not a GGUF file, it begins with 'some', not 'GGUF'"):
        open_checkpoint(path)


def test_separate_scales(tmp_path: Path) -> None:
    """Converters may leave the scale of ternary weights in a tensor of its own."""
    path, model, scale = tmp_path / "model.gguf", MODELS["bitnet"], "blk.0.ffn_up.scale"
    held = write_gguf(path, replace(model, extra={scale: [0.25]}), "TQ2_0")
    held["model.layers.0.mlp.up_proj.weight"] *= np.float32(0.25)
    found = load_model(path).layers[0].up_proj
    assert isinstance(found, Ternary)
    np.testing.assert_array_equal(found.dequantized(), held["model.layers.0.mlp.up_proj.weight"])
    write_gguf(path, replace(model, extra={scale: [-1.0]}), "TQ2_0")
    message = f"^{path}: {scale} must be positive, not -1.0: convert the model again$"
    with pytest.raises(LutraError, match=message):
        load_model(path).layers[0]


# -- what is refused


def changed(name: str = "llama", **fields: object) -> GgufModel:
    """A model with metadata beyond or against the rest; dots in keys are double underscores."""
    return replace(
        MODELS[name], fields={key.replace("__", "."): value for key, value in fields.items()}
    )


REFUSED = {
    "architecture 'gemma3' is not supported; supported are llama, qwen2, qwen3, bitnet, "
    "bitnet-25, bitnet-b1.58: give a model of one of these": replace(
        MODELS["llama"], arch="gemma3"
    ),
    "llama.expert_count is not supported, it may change what the model computes: use a model "
    "without it": changed(expert_count=8),
    "qwen2.attention.sliding_window is not supported, it may change what the model computes: use "
    "a model without it": changed("qwen2", attention__sliding_window=8),
    "llama.rope.scaling.alpha is not supported, it may change what the model computes: use a "
    "model without it": changed(rope__scaling__alpha=2.0),
    "llama.hidden_activation 'gelu' is not supported; supported are silu, swish, relu2, relu_sqr: "
    "use a model with one of these": changed(hidden_activation="gelu"),
    "llama.rope.scaling.type 'longrope' is not supported; supported are none, linear and yarn: "
    "use a model with one of these": changed(rope__scaling__type="longrope"),
    "rope_freqs.weight together with llama.rope.scaling.type 'linear' is not supported: use a "
    "model with one of them": replace(changed(rope__scale_linear=2.0), factors=(1.0,) * 32),
    "rope_freqs.weight must be [32], not [16]: metadata and tensors are of different "
    "models": replace(MODELS["llama"], factors=(1.0,) * 16),
    "tensor blk.0.attn_q.bias is not supported in a model of architecture LlamaForCausalLM with 2 "
    "layers: use another model": replace(MODELS["llama"], biases=True),
    "tensor blk.02.attn_norm.weight is not supported in a model of architecture LlamaForCausalLM "
    "with 2 layers: use another model": replace(
        MODELS["llama"], extra={"blk.02.attn_norm.weight": [1.0]}
    ),
    "tokenizer.ggml.eos_token_id must be below 1, not 1": changed(
        "qwen2", tokenizer__ggml__tokens=["a"], tokenizer__ggml__eos_token_id=1
    ),
    "llama.attention.value_length must be the size of a head, 64, not 32: use another "
    "model": changed(attention__value_length=32),
    "prism.hadamard.version is not supported, it changes what the model computes: use a model "
    "without it": changed(prism__hadamard__version=1),
    "metadata has no llama.block_count: copy the model again": changed(block_count=None),
}


@pytest.mark.parametrize("message", REFUSED)
def test_models_that_are_refused(message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, REFUSED[message])
    with pytest.raises(LutraError) as error:
        load_model(path)
    assert str(error.value) == f"{path}: {message}"


def test_parts_that_are_missing_or_of_another_size(tmp_path: Path) -> None:
    path, model = tmp_path / "model.gguf", MODELS["llama"]
    floats = random_floats(model)
    for name, missing in (
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
    ):
        gone = (name, "lm_head.weight")  # which serves as the embedding where there is none
        rest = {key: value for key, value in floats.items() if key not in gone}
        write_gguf(path, model, floats=rest)
        message = f"^{path} has no tensor {missing}: copy the model again$"
        with pytest.raises(LutraError, match=message):
            list(load_model(path).layers)
    name = "model.layers.0.self_attn.k_proj.weight"
    write_gguf(path, model, floats=floats | {name: floats[name][:64]})
    message = r": blk.0.attn_k.weight must be \[128, 256\], not \[64, 256\]: metadata and tensors"
    with pytest.raises(LutraError, match=message):
        list(load_model(path).layers)
    # an integer matrix where a key's heads should be
    write_gguf(path, replace(model, num_hidden_layers=3), floats=floats)
    with pytest.raises(LutraError, match=r"has no tensor blk\.2\.attn_q\.weight"):
        list(load_model(path).layers)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path, model = tmp_path / "model.gguf", MODELS["llama"]
    floats = random_floats(model)
    for kind in ("F32", "F16", "Q8_0", "Q4_0"):
        for name in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
            broken = floats[name].copy()
            broken.ravel()[7] = np.nan
            with np.errstate(invalid="ignore"):
                write_gguf(path, model, kind, floats=floats | {name: broken})
            with pytest.raises(LutraError, match="holds infinities or NaNs: convert the model"):
                list(load_model(path).layers)


def test_heads_of_differing_sizes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    model = MODELS["llama"]
    write_gguf(
        path, replace(model, head_dim=32, num_attention_heads=8), floats=random_floats(model)
    )
    with pytest.raises(
        LutraError, match=r"blk.0.attn_k.weight must be \[64, 256\], not \[128, 256"
    ):
        list(load_model(path).layers)

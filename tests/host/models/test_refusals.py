"""Models that are not supported and files that are not whole: one line says what, and what is."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tests.host.models.small_models import TOKENS, config_of, write_variant

from lutra.models import load_model
from lutra_golden.errors import LutraError

LAYER = "model.layers.1."


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


def run(folder: Path) -> None:
    """Load a model and use all of it: layers are read when they are asked for."""
    load_model(folder).forward(np.array(TOKENS[:2]))


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        (
            "llama",
            {"architectures": ["GPT2LMHeadModel"]},
            (
                "architecture 'GPT2LMHeadModel' is not supported; supported are BitNetForCausalLM, "
                "BitnetForCausalLM, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, "
                "Qwen3ForCausalLM: give a model of one of these$"
            ),
        ),
        ("llama", {"architectures": []}, r"architectures must be a list of one name, not \[\]"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported is 'silu"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported is 'silu"),
        ("mistral", {"hidden_act": "relu2"}, "hidden_act 'relu2' is not supported; supported is"),
        (
            "bitnet",
            {"hidden_act": "gelu"},
            "hidden_act 'gelu' is not supported; supported is 'relu",
        ),
        ("llama", {"attention_bias": True}, "attention_bias True is not supported; supported is F"),
        ("llama", {"mlp_bias": True}, "mlp_bias True is not supported; supported is False"),
        ("qwen3", {"attention_bias": True}, "attention_bias True is not supported; supported is F"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "longrope"}},
            (
                "rope_type 'longrope' is not supported; supported are default, linear, dynamic, "
                "yarn, llama3: use a model with one of these$"
            ),
        ),
        (
            "llama-yarn",
            {"rope_theta": 1},
            "rope_scaling: theta must not be 1 with the kind 'yarn'$",
        ),
        ("llama-yarn", {"rope_theta": -1.0}, "rope_theta must be positive, not -1.0$"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        (
            "llama",
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            (
                "quant_method 'bitsandbytes' is not supported; supported are bitnet, gptq, awq, "
                "compressed-tensors, mlx, auto-round: use a checkpoint in one of these, or in "
                "floating point$"
            ),
        ),
        ("llama", {"quantization_config": {"bits": 4}}, "quant_method 'missing' is not supported"),
        ("llama", {"num_key_value_heads": 3}, "num_attention_heads must be a multiple of 3, not 4"),
        ("llama", {"head_dim": 10}, "head_dim must be a multiple of 4, not 10$"),
        ("llama", {"hidden_size": 0}, "hidden_size must be a positive whole number, not 0$"),
        ("llama", {"vocab_size": 1 << 40}, r"vocab_size must be at most \d+, not \d+$"),
        ("llama", {"rms_norm_eps": 1e300}, r"rms_norm_eps must be at most 1, not 1e\+300$"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps must be a number, not 'small'$"),
        ("llama", {"eos_token_id": -2}, "eos_token_id must be a token id in 0..111, not -2$"),
        ("llama", {"is_causal": False}, "is_causal False is not supported; supported is None or T"),
        (
            "llama",
            {"rope_parameters": {"full_attention": {"rope_theta": 9.0}}},
            (
                "rope_parameters must be one object of numbers, but it has full_attention: use a "
                "model with the same rotary embedding in all layers$"
            ),
        ),
        (
            "llama",
            {"rope_scaling": "yarn"},
            "rope_scaling must be one object of numbers, but it ",
        ),
        (
            "falcon3",
            {"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}},
            "use_rms_norm True is not supported; supported is False: export the model as one of",
        ),
        (
            "bitnet-online",
            {
                "quantization_config": {
                    "quant_method": "bitnet",
                    "quantization_mode": "online",
                    "modules_to_not_convert": ["(a+)+$"],
                }
            },
            r"modules_to_not_convert must hold names of layers, with \.\* for anything, not '\(a\+",
        ),
        (
            "llama",
            {"quantization_config": {"quant_method": "auto-round", "backend": "auto_round:x"}},
            "packing_format 'auto_round:x' is not supported; supported are auto_round:auto_gptq",
        ),
        (
            "llama",
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "rotation": "hadamard"}},
            "rotation 'hadamard' is not supported",
        ),
        ("llama", {"quantization": {"bits": 4, "mode": "mxfp4"}}, "mode 'mxfp4' is not supported"),
        (
            "qwen2-window",
            {"layer_types": ["chunked_attention"] * 3},
            "layer_types 'chunked_attention' is not supported; supported is 'sliding_attention' or",
        ),
        ("qwen2-window", {"layer_types": ["full_attention"]}, "layer_types must have 3 entries"),
        ("mistral-window", {"sliding_window": -4}, "sliding_window must be a positive whole numbe"),
    ],
)
def test_a_config_that_is_not_supported(
    variant: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = write_variant(tmp_path / "model", variant)
    change_config(folder, **changes)
    with pytest.raises(LutraError, match=rf"^\S+config\.json: {message}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("llama", LAYER + "self_attn.q_proj.bias"),
        ("llama", LAYER + "self_attn.q_norm.weight"),
        ("llama", LAYER + "mlp.gate_proj.lora_A"),
        ("llama", "model.layers.3.mlp.gate_proj.weight"),
        ("llama", "score.weight"),
        ("qwen2", LAYER + "self_attn.o_proj.bias"),
        ("qwen3", LAYER + "self_attn.q_proj.bias"),
        ("mistral", LAYER + "block_sparse_moe.gate.weight"),
        ("bitnet", LAYER + "self_attn.inner_attn_ln.weight"),
    ],
)
def test_a_tensor_that_is_not_supported(variant: str, name: str, tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", variant)
    rows = config_of(variant)["hidden_size" if "o_proj" in name else "num_attention_heads"]
    rows = rows if "o_proj" in name else rows * 16
    change_tensor(folder, name, np.ones(rows, np.float32))
    message = (
        rf"^\S+model\.safetensors: tensor {name.removesuffix('.weight')} is not supported; "
        r"supported of the 3 layers of \w+ are self_attn\.q_proj, .*: use a model without it$"
    )
    with pytest.raises(LutraError, match=message):
        load_model(folder)


def test_tensors_that_change_nothing(tmp_path: Path) -> None:
    """Programs write biases of zeros and scales of caches, old checkpoints the frequencies."""
    folder = write_variant(tmp_path / "model", "llama")
    expected = load_model(folder).forward(np.array(TOKENS))
    change_tensor(folder, LAYER + "self_attn.q_proj.bias", np.zeros(64, np.float16))
    change_tensor(folder, LAYER + "self_attn.rotary_emb.inv_freq", np.ones(8, np.float32))
    change_tensor(folder, LAYER + "self_attn.k_scale", np.ones(1, np.float32))
    change_tensor(folder, LAYER + "self_attn.v_proj.output_scale", np.ones(1, np.float32))
    np.testing.assert_array_equal(load_model(folder).forward(np.array(TOKENS)), expected)


@pytest.mark.parametrize(
    ("variant", "name", "tensor", "message"),
    [
        ("llama", "model.norm.weight", None, " has no tensor model.norm.weight: copy the model"),
        (
            "qwen2",
            LAYER + "self_attn.v_proj.bias",
            None,
            r" has no tensor \S+v_proj.bias: copy the",
        ),
        (
            "qwen3",
            LAYER + "self_attn.k_norm.weight",
            None,
            r" has no tensor \S+k_norm.weight: copy",
        ),
        (
            "llama",
            LAYER + "mlp.up_proj.weight",
            np.zeros((80, 40), np.float32),
            (
                r": \S+up_proj.weight must be \[80, 48\], not \[80, 40\]: config.json and the "
                "tensors are of different models$"
            ),
        ),
        (
            "llama",
            LAYER + "mlp.up_proj.weight",
            np.zeros((80, 48), np.int8),
            r": \S+up_proj.weight must be in floating point, not int8: use a checkpoint in BF16",
        ),
        (
            "llama",
            LAYER + "mlp.down_proj.weight",
            np.full((48, 80), np.nan, np.float32),
            r": \S+down_proj.weight holds infinities or NaNs: export the model again$",
        ),
        (
            "llama",
            LAYER + "input_layernorm.weight",
            np.full(48, np.inf, np.float16),
            r": \S+input_layernorm.weight holds infinities or NaNs: export the model again$",
        ),
        (
            "bitnet",
            LAYER + "mlp.up_proj.weight_scale",
            np.array([np.nan], np.float32),
            r": \S+up_proj.weight_scale holds infinities or NaNs: export the model again$",
        ),
        (
            "bitnet",
            LAYER + "mlp.up_proj.weight_scale",
            np.array([0], np.float32),
            r": \S+up_proj.weight_scale must be positive, not 0.0$",
        ),
        (
            "bitnet",
            LAYER + "mlp.up_proj.weight",
            np.full((20, 64), 3, np.uint8),
            r": \S+up_proj.weight holds codes other than 0, 1 and 2: copy the model again$",
        ),
        (
            "falcon3",
            LAYER + "mlp.up_proj.weight_scale",
            np.ones((2, 1), np.float32),
            r": \S+up_proj.weight_scale must be \[1\], not \[2, 1\]: config.json and the tensors",
        ),
    ],
)
def test_a_tensor_that_is_wrong(
    variant: str, name: str, tensor: NDArray[np.generic] | None, message: str, tmp_path: Path
) -> None:
    folder = write_variant(tmp_path / "model", variant)
    change_tensor(folder, name, tensor)
    with pytest.raises(LutraError, match=rf"^\S+model\.safetensors{message}"):
        run(folder)


def test_a_head_that_is_quantized_in_a_model_that_is_not(tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", "llama-untied")
    change_tensor(folder, "lm_head.qweight", np.zeros((6, 112), np.int32))
    change_tensor(folder, "lm_head.weight", None)
    message = (
        r"model\.safetensors: lm_head must be in floating point, in lm_head\.weight, not in "
        r"lm_head\.qweight: use a checkpoint that leaves it as it is$"
    )
    with pytest.raises(LutraError, match=message):
        load_model(folder)


def test_embedding_and_head_serve_as_each_other(tmp_path: Path) -> None:
    """A file with one of them has it as both; one with both has a head of its own, whatever
    ``tie_word_embeddings`` says."""
    folder, tokens = write_variant(tmp_path / "model", "llama"), np.array(TOKENS)
    tied, embedding = load_model(folder), "model.embed_tokens.weight"
    values = load_file(folder / "model.safetensors")[embedding]
    change_config(folder, tie_word_embeddings=False)
    np.testing.assert_array_equal(load_model(folder).forward(tokens), tied.forward(tokens))
    change_tensor(folder, "lm_head.weight", values)
    change_tensor(folder, embedding, None)
    for said in (True, False):
        change_config(folder, tie_word_embeddings=said)
        np.testing.assert_array_equal(load_model(folder).forward(tokens), tied.forward(tokens))
    change_tensor(folder, embedding, values)
    change_tensor(folder, "lm_head.weight", values[::-1].copy())
    for said in (True, False):
        change_config(folder, tie_word_embeddings=said)
        found = load_model(folder).forward(tokens)
        np.testing.assert_allclose(found, tied.forward(tokens)[:, ::-1], rtol=1e-9)


def test_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", "llama")
    change_config(folder, bos_token_id=112, eos_token_id=[2, 128001])
    config = load_model(folder).config
    assert (config.bos_token_id, config.eos_token_id) == (None, (2,))


def test_what_is_no_model(tmp_path: Path) -> None:
    """An adapter, a pointer of Git LFS, parts without their index: each is named."""
    folder = write_variant(tmp_path / "model", "llama", shards=2)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(LutraError, match=r"holds parts of a model such as model-00001-of-00002"):
        load_model(folder)
    folder = write_variant(tmp_path / "pointer", "llama")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x")
    with pytest.raises(LutraError, match="is a pointer of Git LFS, not the file: run `git lfs"):
        load_model(folder)
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(LutraError, match=f"^{folder} holds an adapter, not a model: merge it"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_a_truncated_file(keep: int, tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", "llama")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    message = rf"^{path} is not a whole safetensors file \(.*\): copy or download it again$"
    with pytest.raises(LutraError, match=message):
        run(folder)


HEADERS = {
    "no JSON": b"{not JSON",
    "a list": b"[]",
    "an end behind the file": b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "an end before the beginning": b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}',
    "another size": b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}',
    "a size that overflows": b'{"x":{"dtype":"F32","shape":[4611686018427387904,4],'
    b'"data_offsets":[0,8]}}',
    "a type that is none": b'{"x":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}',
    "negative": b'{"x":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_wrong_header(fault: str, tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", "llama")
    path, header = folder / "model.safetensors", HEADERS[fault]
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    message = rf"^{path} is not a whole safetensors file \(.*\): copy or download it again$"
    with pytest.raises(LutraError, match=message):
        run(folder)


@pytest.mark.parametrize("size", [1 << 62, (1 << 64) - 1, 1 << 30])
def test_a_header_that_is_said_to_be_huge(size: int, tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", "llama")
    path = folder / "model.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + bytes(100))
    with pytest.raises(LutraError, match="is not a whole safetensors file"):
        run(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle(name: str, tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", "llama")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x02}q\x00.")
    message = (
        rf"^{folder / name} is a pickle, which can run any code and is not read; expected is "
        r"model\.safetensors: convert the model to safetensors$"
    )
    with pytest.raises(LutraError, match=message):
        load_model(folder)


def test_a_pickle_that_is_called_safetensors(tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", "llama")
    (folder / "model.safetensors").write_bytes(b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.")
    with pytest.raises(LutraError, match="is not a whole safetensors file"):
        load_model(folder)


@pytest.mark.parametrize("name", ["norm", "embed_tokens", "layers.0.self_attn.q_proj"])
def test_numbers_beyond_float32(name: str, tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", "llama", "float64")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.{name}.weight"].flat[3] = -1e39
    save_file(tensors, folder / "model.safetensors")
    message = rf"model\.{name}\.weight holds numbers beyond float32: rescale the checkpoint$"
    with pytest.raises(LutraError, match=message):
        load_model(folder).layers[0]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", r"is not JSON \(.*\): copy the model again"),
        ("[]", "has no weight_map: copy the model again"),
        ('{"weight_map": {}}', r"has no tensor model\.\S*: copy the model again"),
    ],
)
def test_a_wrong_index(index: str, message: str, tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", "llama", shards=2)
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(LutraError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../x.safetensors", "must name files of its folder, not '../x."),
        ("no.safetensors", "does not exist, though model.*names it: copy"),
    ],
)
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_an_index_with_a_wrong_file(name: str, file: str, message: str, tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", "llama", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][name] = file
    path.write_text(json.dumps(index))
    with pytest.raises(LutraError, match=message):
        load_model(folder)


def test_a_shard_that_does_not_hold_what_the_index_says(tmp_path: Path) -> None:
    folder = write_variant(tmp_path / "model", "llama", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    name = "model.norm.weight"
    index["weight_map"][name] = next(each for each in files if each != index["weight_map"][name])
    path.write_text(json.dumps(index))
    message = (
        r"has no tensor model\.norm\.weight, though model.*index\.json says so: copy it again$"
    )
    with pytest.raises(LutraError, match=message):
        run(folder)

"""Small random checkpoints of every architecture and variant, made without any library's help."""

import copy
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

__all__ = ["TOKENS", "VARIANTS", "config_of", "dense_weights", "write_variant"]

Config = dict[str, Any]
Tensors = dict[str, NDArray[np.generic]]

_COMMON: Config = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 112,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA: Config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_QWEN2: Config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "head_dim": None}
_QWEN2 |= {"hidden_size": 64}
_QWEN3: Config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
_MISTRAL: Config = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
_BITNET: Config = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_act": "relu2",
}
_BITNET |= {"hidden_size": 64}  # its norm before the output projection is as wide as the model
_PACKED: Config = {"quant_method": "bitnet", "linear_class": "autobitlinear"}


def _scaled(**scaling: object) -> Config:
    return _LLAMA | {"rope_scaling": scaling}


_YARN: Config = {"factor": 4.0, "original_max_position_embeddings": 16}
_LLAMA3: Config = _YARN | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS: dict[str, Config] = {
    "llama": _LLAMA,
    "llama-untied": _LLAMA | {"tie_word_embeddings": False},
    "llama-all-heads": _LLAMA | {"num_key_value_heads": 4},
    "llama-linear": _scaled(rope_type="linear", factor=4.0),
    "llama-dynamic": _scaled(type="dynamic", factor=2.0),
    "llama-dynamic-said": _scaled(rope_type="dynamic", **_YARN),
    "llama-yarn": _scaled(rope_type="yarn", **_YARN),
    "llama-yarn-slow": _scaled(rope_type="yarn", **_YARN, beta_fast=4.0, beta_slow=0.5),
    "llama-yarn-mscale": _scaled(rope_type="yarn", **_YARN, mscale=0.8, mscale_all_dim=0.3),
    "llama-yarn-factor": _scaled(rope_type="yarn", **_YARN, attention_factor=0.7),
    "llama-llama3": _scaled(rope_type="llama3", **_LLAMA3),
    "qwen2": _QWEN2,
    "qwen2-untied": _QWEN2 | {"tie_word_embeddings": False},
    "qwen2-window": _QWEN2
    | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": _QWEN3,
    "qwen3-wide-heads": _QWEN3 | {"head_dim": 24, "num_key_value_heads": 1},
    "mistral": _MISTRAL | {"sliding_window": None},
    "mistral-window": _MISTRAL | {"sliding_window": 9},
    "bitnet": _BITNET | {"quantization_config": _PACKED},
    "bitnet-divides": _BITNET
    | {"quantization_config": _PACKED | {"linear_class": "bitlinear"}, "num_key_value_heads": 4},
    "bitnet-floats": _BITNET | {"tie_word_embeddings": False},
    "bitnet-online": _BITNET | {"quantization_config": _PACKED | {"quantization_mode": "online"}},
    "bitnet-large": _BITNET
    | {"architectures": ["BitnetForCausalLM"], "hidden_act": "silu", "num_key_value_heads": 4}
    | {"weight_bits": 1, "input_bits": 8},
    "falcon3": _LLAMA
    | {"quantization_config": {"quant_method": "bitnet"}, "head_dim": 24}
    | {"tie_word_embeddings": False},
}
"""Entries of ``config.json`` that extend or override the common part."""
TOKENS = np.random.default_rng(5).integers(0, _COMMON["vocab_size"], 40).tolist()


def config_of(variant: str, changes: Config | None = None) -> Config:
    """The whole ``config.json``, with ``changes``."""
    # a copy all through: transformers writes into what it is given
    fields = copy.deepcopy(_COMMON | VARIANTS[variant] | (changes or {}))
    return {k: v for k, v in fields.items() if v is not None or k == "sliding_window"}


def write_variant(
    folder: Path,
    variant: str,
    dtype: str = "float32",
    shards: int = 1,
    changes: Config | None = None,
) -> Path:
    """Write ``config.json``, with ``changes``, and safetensors; return the folder."""
    folder.mkdir(exist_ok=True)
    config = config_of(variant, changes)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = _tensors(config, dtype)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    table: dict[str, str] = {}
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, folder / name)
        table |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _tensors(config: Config, dtype: str) -> Tensors:
    rng = np.random.default_rng(3)
    d, f, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim", d // heads)
    q, kv = heads * head_dim, config["num_key_value_heads"] * head_dim
    kind = config["architectures"][0]
    quantization = config.get("quantization_config")
    packed = quantization is not None and quantization.get("quantization_mode") != "online"
    cast = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    out: Tensors = {}

    def linear(name: str, n: int, k: int) -> None:
        if not packed:
            out[f"{name}.weight"] = (rng.normal(size=(n, k)) / np.sqrt(k)).astype(cast)
            return
        codes = rng.integers(0, 3, (n, k))
        words = np.zeros((n // 4, k), np.uint8)
        for row in range(n):  # rows a quarter of the matrix apart share a byte
            words[row % (n // 4)] |= (codes[row] << (2 * (row // (n // 4)))).astype(np.uint8)
        out[f"{name}.weight"] = words
        assert quantization is not None
        multiplies = quantization.get("linear_class") == "autobitlinear"
        scale = rng.uniform(1, 1.5) / np.sqrt(k)
        out[f"{name}.weight_scale"] = np.array([scale if multiplies else 1 / scale], cast)

    def norm(name: str, n: int) -> None:
        out[f"{name}.weight"] = rng.uniform(0.5, 1.5, n).astype(cast)

    out["model.embed_tokens.weight"] = rng.normal(size=(config["vocab_size"], d)).astype(cast)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, n in (("q", q), ("k", kv), ("v", kv)):
            linear(f"{layer}.self_attn.{name}_proj", n, d)
            if kind.startswith("Qwen2"):
                out[f"{layer}.self_attn.{name}_proj.bias"] = rng.normal(size=n).astype(cast)
        linear(f"{layer}.self_attn.o_proj", d, q)
        linear(f"{layer}.mlp.gate_proj", f, d)
        linear(f"{layer}.mlp.up_proj", f, d)
        linear(f"{layer}.mlp.down_proj", d, f)
        norm(f"{layer}.input_layernorm", d)
        norm(f"{layer}.post_attention_layernorm", d)
        if kind.startswith("Qwen3"):
            norm(f"{layer}.self_attn.q_norm", head_dim)
            norm(f"{layer}.self_attn.k_norm", head_dim)
        if kind == "BitNetForCausalLM":
            norm(f"{layer}.self_attn.attn_sub_norm", q)
            norm(f"{layer}.mlp.ffn_sub_norm", f)
        if kind == "BitnetForCausalLM":
            norm(f"{layer}.self_attn.inner_attn_ln", q)
            norm(f"{layer}.mlp.ffn_layernorm", f)
    norm("model.norm", d)
    if not config["tie_word_embeddings"]:
        head = rng.normal(size=(config["vocab_size"], d)) / np.sqrt(d)
        out["lm_head.weight"] = head.astype(cast)
    return out


def _makes_ternary(config: Config) -> bool:
    quantization = config.get("quantization_config") or {}
    return (
        config["architectures"] == ["BitnetForCausalLM"]
        or quantization.get("quantization_mode") == "online"
    )


def dense_weights(config: Config, tensors: Tensors) -> dict[str, NDArray[np.float64]]:
    """The weights in floating point, ternary ones unpacked or made, row by row."""
    out: dict[str, NDArray[np.float64]] = {}
    quantization = config.get("quantization_config")
    for name, tensor in tensors.items():
        if name.endswith("_scale"):
            continue
        values = tensor.astype(np.float64)
        if quantization and f"{name}_scale" in tensors:
            scale = float(tensors[f"{name}_scale"][0])
            if quantization.get("linear_class") != "autobitlinear":
                scale = 1 / scale
            rows = []
            for shift in range(4):
                rows += [(row.astype(int) >> (2 * shift)) % 4 - 1.0 for row in tensor]
            values = np.array(rows) * scale
        elif _makes_ternary(config) and "_proj" in name:
            mean = np.abs(values).mean()
            values = np.array([np.clip(np.round(row / mean), -1, 1) for row in values]) * mean
        out[name] = values
    return out

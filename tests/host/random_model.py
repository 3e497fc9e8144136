"""Small models with random weights, as checkpoint folders, and configurations that hold them."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from lutra.models import load_model
from lutra.models.decoder import Decoder
from lutra_golden.core.config import ENGINES, AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import two_ports

__all__ = [
    "GROUP",
    "LLAMAS",
    "SHAPES",
    "Shape",
    "config_for",
    "load",
    "random_tensors",
    "write_model",
    "write_tokenizer",
]

BOS, EOS = 0, 1
N_TOKENIZER = 260
"""Special tokens, the 256 bytes, and the merges ``th`` and ``the``."""
GROUP = 32
"""Divides every depth of the Llama models."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a random model, named as in ``config.json``; BitNet, or Llama if so said."""

    llama: bool = False
    hidden_size: int = 64
    intermediate_size: int = 96
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    num_key_value_heads: int = 1
    head_dim: int = 32
    vocab_size: int = 304
    max_position_embeddings: int = 32
    options: dict[str, object] = field(default_factory=dict[str, object])
    """Entries of ``config.json`` that extend or override the rest."""


SHAPES = {
    "least": Shape(
        hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    ),
    "grouped": Shape(num_attention_heads=4, num_key_value_heads=2, vocab_size=1040),
    "odd": Shape(
        hidden_size=160,
        intermediate_size=208,
        num_hidden_layers=3,
        num_attention_heads=3,
        vocab_size=301,
        max_position_embeddings=19,
    ),
    "no-grouping": Shape(num_attention_heads=2, num_key_value_heads=2, intermediate_size=320),
}


LLAMAS = {
    "llama": Shape(
        llama=True,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
    ),
    "llama-grouped": Shape(
        llama=True, num_attention_heads=4, num_key_value_heads=2, vocab_size=1040
    ),
    "llama-odd": Shape(
        llama=True,
        hidden_size=160,
        intermediate_size=224,
        num_hidden_layers=3,
        num_attention_heads=3,
        vocab_size=301,
        max_position_embeddings=19,
    ),
    "llama-whole": Shape(llama=True, intermediate_size=128),
}

# What a step of the small configurations takes: depth, and bits of a digit.
_ENGINES = {
    "ternary": (24, 2),
    "lut": (32, 1),
    "mixpe": (8, 4),
    "mac": (16, 2),
    "lookup": (24, 1),
}


def config_for(
    shape: Shape, engine: str = "ternary", *, a_width: int = 8, **changes: int
) -> AcceleratorConfig:
    """The smallest configuration that holds the model, with ``changes``."""
    q_out = shape.num_attention_heads * shape.head_dim
    rows = max(
        q_out + 2 * shape.num_key_value_heads * shape.head_dim,
        2 * shape.intermediate_size,
        shape.hidden_size,
    )
    depth = max(shape.hidden_size, q_out, shape.intermediate_size)
    lanes, (step_depth, w_width) = 8, _ENGINES[engine]
    plain = not ENGINES[engine].grouped
    depth_tile = changes.get("depth_tile", step_depth if plain else GROUP)
    fields: dict[str, object] = {
        "step_depth": step_depth,
        "depth_tile": depth_tile,
        "a_width": a_width,
        "w_width": w_width,
        "acc_width": 24 if plain else 28,
        "sum_width": 24 if plain else 20 + a_width + changes.get("scale_width", 8),
        "pass_tokens": 4,
        "acc_blocks": -(-rows // (2 * lanes)) * 2,
        "act_tiles": -(-depth // depth_tile),
        "weight_buffer_words": _power_of_two(max(rows // lanes, 16)),
        "hidden_max": shape.hidden_size,
        "param_words": _power_of_two(4 * depth // lanes),
        "head_dim": shape.head_dim,
        "n_heads": shape.num_attention_heads,
        "n_kv_heads": shape.num_key_value_heads,
        "max_context": _power_of_two(shape.max_position_embeddings),
        "ports": two_ports(weights=512, data=max(256, 8 * shape.head_dim), burst_bytes=256),
    }
    if engine == "lookup":
        fields |= {"step_tokens": 2, "step_rows": 2 * lanes}
    options: Any = fields | changes
    return NANO.with_(name="small", engine=engine, **options)


def load(folder: Path) -> Decoder:
    """The checkpoint in a folder, every layer read."""
    model = load_model(folder)
    return replace(model, layers=list(model.layers))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def random_tensors(shape: Shape, seed: int = 1) -> dict[str, NDArray[np.generic]]:
    """Tensors of a checkpoint whose activations and logits have magnitudes of a trained model's."""
    rng = np.random.default_rng(seed)
    d, f = shape.hidden_size, shape.intermediate_size
    q_out = shape.num_attention_heads * shape.head_dim
    kv_out = shape.num_key_value_heads * shape.head_dim
    tensors: dict[str, NDArray[np.generic]] = {}

    def linear(name: str, n: int, k: int) -> None:
        if shape.llama:
            weight = rng.standard_t(5, (n, k)) * rng.uniform(0.6, 0.9) / np.sqrt(k)
            tensors[f"{name}.weight"] = weight.astype(np.float32)
            return
        codes = rng.integers(0, 3, (4, n // 4, k)).astype(np.uint8)
        packed = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
        tensors[f"{name}.weight"] = packed.astype(np.uint8)
        scale = rng.uniform(0.8, 1.2) / np.sqrt(k)
        tensors[f"{name}.weight_scale"] = np.array([scale], np.float32)

    def norm(name: str, n: int) -> None:
        tensors[f"{name}.weight"] = rng.uniform(0.5, 1.5, n).astype(np.float32)

    embedding = rng.normal(0, 0.4, (shape.vocab_size, d)).astype(np.float32)
    tensors["model.embed_tokens.weight"] = embedding
    for i in range(shape.num_hidden_layers):
        layer = f"model.layers.{i}"
        linear(f"{layer}.self_attn.q_proj", q_out, d)
        linear(f"{layer}.self_attn.k_proj", kv_out, d)
        linear(f"{layer}.self_attn.v_proj", kv_out, d)
        linear(f"{layer}.self_attn.o_proj", d, q_out)
        linear(f"{layer}.mlp.gate_proj", f, d)
        linear(f"{layer}.mlp.up_proj", f, d)
        linear(f"{layer}.mlp.down_proj", d, f)
        norm(f"{layer}.input_layernorm", d)
        if not shape.llama:
            norm(f"{layer}.self_attn.attn_sub_norm", q_out)
        norm(f"{layer}.post_attention_layernorm", d)
        if not shape.llama:
            norm(f"{layer}.mlp.ffn_sub_norm", f)
    norm("model.norm", d)
    return tensors


def write_model(folder: Path, shape: Shape, seed: int = 1) -> Path:
    """Write ``config.json``, ``model.safetensors`` and ``tokenizer.json``; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: value for name, value in vars(shape).items() if name not in ("options", "llama")}
    kind: dict[str, object] = {
        "architectures": ["BitNetForCausalLM"],
        "hidden_act": "relu2",
        "quantization_config": {"linear_class": "autobitlinear", "quant_method": "bitnet"},
    }
    if shape.llama:
        kind = {
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "model_type": "llama",
        }
    content: dict[str, object] = {
        **kind,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(content | sizes | shape.options))
    save_file(random_tensors(shape, seed), folder / "model.safetensors")
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE: ids 2..257 are the bytes in the order of the library's alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<|bos|>", "<|eos|>", *alphabet, "th", "the"]
    assert len(names) == N_TOKENIZER
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing("<|bos|> $A", None, [("<|bos|>", BOS)])
    tokenizer.save(str(folder / "tokenizer.json"))

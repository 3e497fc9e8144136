"""Checkpoints of real shapes with random weights: ``python -m lutra.models.random NAME OUT``.

For measuring and testing at full size where no trained model is at hand. What such a model says
means nothing.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as safetensors_numpy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lutra.models.bitnet import BITNET, BITNET_LARGE
from lutra.models.llama import LLAMA
from lutra.models.qwen import QWEN2, QWEN3
from lutra.progress import StepProgress
from lutra_golden.errors import LutraError
from lutra_golden.model.shapes import linear_shapes

__all__ = ["RANDOM_SHAPES", "write_random"]

Shape = Mapping[str, object]
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_LAYERS_PER_FILE = 4

RANDOM_SHAPES: Mapping[str, Shape] = {
    "bitnet-2b-4t": {
        "architectures": [BITNET], "model_type": "bitnet", "hidden_act": "relu2",
        "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 30,
        "num_attention_heads": 20, "num_key_value_heads": 5, "vocab_size": 128256,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    "bitnet-large": {
        "architectures": [BITNET_LARGE], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32002,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "weight_bits": 1, "input_bits": 8,
    },
    "bonsai-1.7b": {
        "architectures": [QWEN3], "model_type": "qwen3", "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": True,
    },
    "bonsai-4b": {
        "architectures": [QWEN3], "model_type": "qwen3", "hidden_act": "silu",
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": True,
    },
    "bonsai-8b": {
        "architectures": [QWEN3], "model_type": "qwen3", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": False,
    },
    "llama-2-7b": {
        "architectures": [LLAMA], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "llama-3-8b": {
        "architectures": [LLAMA], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    "smollm-135m": {
        "architectures": [LLAMA], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "architectures": [QWEN2], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": {
        "architectures": [QWEN2], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        "architectures": [QWEN3], "model_type": "qwen3", "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        "architectures": [QWEN3], "model_type": "qwen3", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""``config.json`` of the shapes, by name."""


class _Saving(Protocol):
    """The part of safetensors that is used here; its own stubs leave the type of paths open."""

    def save_file(self, tensors: Mapping[str, NDArray[np.generic]], path: Path) -> None: ...


class _Adding(Protocol):
    """The part of a tokenizer whose types its stubs leave open."""

    def add_special_tokens(self, tokens: list[str]) -> int: ...


def write_random(
    name: str,
    out: Path,
    *,
    seed: int = 0,
    n_layers: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Path:
    """Write a checkpoint in Hugging Face's layout, sharded; returns ``out``.

    Layers of a BitNet that says so are packed ternary, all other weights bfloat16. ``n_layers``
    makes it shallower.
    """
    if name not in RANDOM_SHAPES:
        raise LutraError(f"shape must be one of {', '.join(RANDOM_SHAPES)}, not {name!r}")
    config: dict[str, object] = dict(RANDOM_SHAPES[name])
    if n_layers is not None:
        config["num_hidden_layers"] = n_layers
    ternary = config["architectures"] == [BITNET]
    if ternary:
        linear = {"linear_class": "autobitlinear", "quantization_mode": "offline"}
        config["quantization_config"] = {"quant_method": "bitnet", **linear}
    config |= {"bos_token_id": 0, "eos_token_id": 1}
    rng = np.random.default_rng(seed)
    d, f = _int(config, "hidden_size"), _int(config, "intermediate_size")
    n_heads = _int(config, "num_attention_heads")
    dh = _int(config, "head_dim") if "head_dim" in config else d // n_heads
    q, kv = n_heads * dh, _int(config, "num_key_value_heads") * dh
    shapes = linear_shapes(d, f, q, kv)
    # every byte whose four fields are 0, 1 or 2
    valid = np.array([b for b in range(256) if all(b >> s & 3 < 3 for s in (0, 2, 4, 6))], np.uint8)

    def linear_tensors(prefix: str, n: int, k: int) -> dict[str, NDArray[np.generic]]:
        if not ternary:
            return {f"{prefix}.weight": _normal(rng, (n, k), 0.7 / np.sqrt(k))}
        packed = valid[rng.integers(0, len(valid), (n // 4, k), np.uint8)]
        scale = np.array([1.1 / np.sqrt(k)], np.float32).astype(_BFLOAT16)
        return {f"{prefix}.weight": packed, f"{prefix}.weight_scale": scale}

    def layer(i: int) -> dict[str, NDArray[np.generic]]:
        prefix = f"model.layers.{i}"
        norms = {"input_layernorm": d, "post_attention_layernorm": d}
        if ternary:
            norms |= {"self_attn.attn_sub_norm": q, "mlp.ffn_sub_norm": f}
        if config["architectures"] == [BITNET_LARGE]:
            norms |= {"self_attn.inner_attn_ln": q, "mlp.ffn_layernorm": f}
        if config["architectures"] == [QWEN3]:
            norms |= {"self_attn.q_norm": dh, "self_attn.k_norm": dh}
        tensors = {f"{prefix}.{key}.weight": _gamma(rng, n) for key, n in norms.items()}
        for key, (n, k) in shapes.items():
            part = "self_attn" if key[0] in "qkvo" else "mlp"
            tensors |= linear_tensors(f"{prefix}.{part}.{key}", n, k)
            if config["architectures"] == [QWEN2] and key[0] in "qkv":
                tensors[f"{prefix}.self_attn.{key}.bias"] = _normal(rng, (n,), 0.5)
        return tensors

    out.mkdir(parents=True, exist_ok=True)
    total, vocab = _int(config, "num_hidden_layers"), _int(config, "vocab_size")
    table: dict[str, str] = {}

    def save(index: int, tensors: dict[str, NDArray[np.generic]]) -> None:
        file = f"model-{index:05d}.safetensors"
        cast("_Saving", safetensors_numpy).save_file(tensors, out / file)
        table.update(dict.fromkeys(tensors, file))

    for first in range(0, total, _LAYERS_PER_FILE):
        if progress:
            progress(f"writing {name}", first / (total + 1))
        tensors: dict[str, NDArray[np.generic]] = {}
        for i in range(first, min(first + _LAYERS_PER_FILE, total)):
            tensors |= layer(i)
        save(first, tensors)
    rest: dict[str, NDArray[np.generic]] = {"model.norm.weight": _gamma(rng, d)}
    rest["model.embed_tokens.weight"] = _normal(rng, (vocab, d), 0.4)
    if not config["tie_word_embeddings"]:
        rest["lm_head.weight"] = _normal(rng, (vocab, d), 0.4)
    save(total, rest)
    index = {"metadata": {}, "weight_map": table}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (out / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(out)
    return out


def _int(config: Shape, name: str) -> int:
    value = config[name]
    assert isinstance(value, int)
    return value


def _normal(
    rng: np.random.Generator, shape: tuple[int, ...], deviation: float
) -> NDArray[np.generic]:
    values = rng.standard_normal(shape, np.float32)
    values *= np.float32(deviation)
    return values.astype(_BFLOAT16)


def _gamma(rng: np.random.Generator, n: int) -> NDArray[np.generic]:
    return rng.uniform(0.5, 1.5, n).astype(np.float32).astype(_BFLOAT16)


def _write_tokenizer(folder: Path) -> None:
    """The 256 bytes behind two special tokens."""
    names = ["<|bos|>", "<|eos|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    cast("_Adding", tokenizer).add_special_tokens(names[:2])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lutra.models.random", description=__doc__)
    parser.add_argument("shape", choices=tuple(RANDOM_SHAPES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    args = parser.parse_args()
    with StepProgress() as progress:
        write_random(args.shape, args.out, seed=args.seed, n_layers=args.layers, progress=progress)
    return 0


if __name__ == "__main__":
    sys.exit(_main())

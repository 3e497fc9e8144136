"""Packed models of every architecture, small enough for the RTL: two layers, random weights.

All have the same sizes, so that one configuration of each engine holds them; heads of 16 and 24 are
padded to those of 32.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tests.host.checkpoints import test_gptq
from tests.host.checkpoints.quantized import Matrix
from tests.host.gguf_model import MODELS, write_gguf
from tests.host.models.small_models import write_variant
from tests.host.random_model import Shape, config_for

from lutra.checkpoints.weights import Dense, Grouped
from lutra.models import load_model
from lutra.models.decoder import Decoder, DecoderLayer
from lutra.quantize import quantize_layer
from lutra.quantize.pack import pack_decoder, pack_model
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import PackedBias, PackedModel
from lutra_golden.model.shapes import LINEARS

__all__ = ["MAKERS", "SHAPE", "config_of_engine", "is_ternary", "make"]

SHAPE = Shape(llama=True, num_attention_heads=4, num_key_value_heads=2)
GROUP = 32
_SIZES: dict[str, Any] = {
    name: getattr(SHAPE, name)
    for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
    )
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
_WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}


def config_of_engine(engine: str, **changes: int) -> AcceleratorConfig:
    """Configuration that holds every model here that the engine runs, with ``changes``."""
    if engine == "ternary":
        # the one of mixtures and of ranges, too: a simulator less to build
        return config_for(SHAPE, engine, **{"pass_tokens": 5, **changes})
    if engine == "lookup":
        # two groups of tokens, for which words are used again
        return config_for(SHAPE, engine, **changes)
    # depth tiles of 16 with whole float16 scales, for the checkpoints that have them
    wide: dict[str, int] = {"depth_tile": 16, "scale_width": 16, "qkv_bias": True, "qk_norm": True}
    if engine == "lut":
        wide["step_depth"] = 16
    return config_for(SHAPE, engine, **(wide | changes))


def _read(folder: Path, variant: str, changes: dict[str, Any]) -> Decoder:
    return load_model(write_variant(folder, variant, changes=_SIZES | changes))


def _rounded(variant: str, bits: int, **changes: object) -> Callable[[Path], PackedModel]:
    """A checkpoint of Hugging Face, rounded to nearest."""

    def made(folder: Path) -> PackedModel:
        return pack_model(_read(folder, variant, changes), Format(w_bits=bits, a_bits=8), GROUP)

    return made


def _as_it_is(variant: str, **changes: object) -> Callable[[Path], PackedModel]:
    """A checkpoint of ternary weights."""
    return lambda folder: pack_model(_read(folder, variant, changes))


def _biased_and_normed(folder: Path) -> PackedModel:
    """Qwen3 with biases, which no released model has: they add up before the heads' norms."""
    model = _rounded("qwen3", 4)(folder)
    rng, n = np.random.default_rng(8), (4 + 2 + 2) * SHAPE.head_dim
    layers = [
        replace(layer, bias=PackedBias(rng.integers(-32000, 32000, n).astype(np.int16), 14))
        for layer in model.layers
    ]
    return replace(model, layers=layers, biased=True)


def _stretched(folder: Path) -> PackedModel:
    """A dynamic scaling of twice the context that the checkpoint was trained with."""
    n = SHAPE.max_position_embeddings
    model = _read(folder, "llama-dynamic", {"max_position_embeddings": n // 2})
    model = replace(model, config=replace(model.config, max_position_embeddings=n))
    return pack_model(model, Format(w_bits=4, a_bits=8), GROUP)


def _mixed(folder: Path) -> PackedModel:
    """Layers and matrices of different bits; queries, keys and values too."""
    model = _read(folder, "qwen2", {})
    several = (
        {"q_proj": 2, "k_proj": 4, "v_proj": 8, "o_proj": 3, "gate_proj": 1, "up_proj": 4},
        {"q_proj": 6, "k_proj": 6, "v_proj": 3, "o_proj": 8, "gate_proj": 4, "up_proj": 2},
    )
    layers = [
        quantize_layer(layer, bits | {"down_proj": 4}, GROUP)
        for layer, bits in zip(model.layers, several, strict=True)
    ]
    return pack_decoder(model.replaced(layers, 8))


def _grouped(weight: Dense, bits: int, group: int) -> Grouped:
    """Codes about a zero point in the middle, and float16 scales of either sign."""
    groups = weight.dequantized().reshape(len(weight.values), -1, group)
    half = 1 << (bits - 1)
    scale = (np.abs(groups).max(axis=2) / (half - 1)).astype(np.float16).astype(np.float32)
    scale[:, ::2] *= -1
    codes = np.clip(np.rint(groups / scale[..., None]) + half, 0, 2 * half - 1)
    zero = np.full_like(scale, half)
    codes = codes.astype(np.uint8).reshape(weight.shape)
    return Grouped(codes=codes, scale=scale, zero=zero, bits=bits, group=group)


def _groups_of_two_sizes(folder: Path) -> PackedModel:
    """Mixed like Q4_K_M: some matrices in groups of 32, others in groups of 16."""
    model = _read(folder, "llama-untied", {})
    layers = list[DecoderLayer]()
    for i, layer in enumerate(model.layers):
        parts = dict[str, Grouped]()
        for name in LINEARS:
            weight = layer.linear(name)
            assert isinstance(weight, Dense)
            finer = name in ("v_proj", "down_proj") or (i == 1 and name == "q_proj")
            parts[name] = _grouped(weight, *((6, 16) if finer else (8, 32)))
        layers.append(quantize_layer(replace(layer, **parts), dict.fromkeys(LINEARS, 8), GROUP))
    return pack_decoder(model.replaced(layers, 8))


def _gptq(folder: Path) -> PackedModel:
    """Quantised layers as AutoGPTQ stores them; one output projection is left as it was."""
    _read(folder, "qwen2", {})
    path = folder / "model.safetensors"
    tensors: dict[str, NDArray[np.generic]] = dict(load_file(path))
    for seed, name in enumerate(sorted(tensors)):
        owner = name.removesuffix(".weight")
        if not owner.endswith("_proj") or owner == "model.layers.1.self_attn.o_proj":
            continue
        n, k = tensors.pop(name).shape
        matrix = Matrix.random(n, k, k // 16, 4, seed=seed)
        # scales of random codes are those of weights near 1 / sqrt(k)
        small = (matrix.scale.astype(np.float32) * 4 / np.sqrt(k)).astype(np.float16)
        for part, values in test_gptq.pack(replace(matrix, scale=small)).items():
            tensors[f"{owner}.{part}"] = np.ascontiguousarray(values)
    save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    said = {"quantization_config": test_gptq.CONFIG}
    (folder / "config.json").write_text(json.dumps(config | said))
    return pack_model(load_model(folder), Format(w_bits=4, a_bits=8), GROUP)


def _gguf(arch: str, kind: str) -> Callable[[Path], PackedModel]:
    def made(folder: Path) -> PackedModel:
        sizes = {k: v for k, v in _SIZES.items() if k != "max_position_embeddings"}
        path = folder.with_suffix(".gguf")
        write_gguf(path, replace(MODELS[arch], **sizes), kind)
        return pack_model(load_model(path))

    return made


MAKERS: dict[str, Callable[[Path], PackedModel]] = {
    "qwen2": _rounded("qwen2", 4),
    "qwen2-narrow": _rounded("qwen2", 4, head_dim=16),
    "qwen2-window": _rounded("qwen2", 4, **_WINDOW),
    "qwen3": _rounded("qwen3", 4),
    "qwen3-narrow": _rounded("qwen3", 4, head_dim=16),
    "qwen-both": _biased_and_normed,
    "mistral-window": _rounded("mistral", 4, sliding_window=7),
    "llama-linear": _rounded("llama-linear", 8),
    "llama-dynamic": _stretched,
    "llama-yarn": _rounded("llama-yarn", 6, rope_scaling=_YARN),
    "llama-llama3": _rounded("llama-llama3", 3, tie_word_embeddings=False),
    "llama-untied": _rounded("llama-untied", 4),
    "mixed": _mixed,
    "two-groups": _groups_of_two_sizes,
    "gptq": _gptq,
    "gguf-q4_0": _gguf("llama", "Q4_0"),
    "gguf-qwen3": _gguf("qwen3", "Q8_0"),
    "bitnet": _as_it_is("bitnet"),
    "bitnet-large": _as_it_is("bitnet-large", num_key_value_heads=2),
    "bitnet-large-odd": _as_it_is("bitnet-large", num_key_value_heads=2, head_dim=24),
    "falcon3": _as_it_is("falcon3"),
}
"""Makers of the models, each into a folder that does not exist yet."""


def is_ternary(name: str) -> bool:
    """True if the engines of ternary weights run the model."""
    return name in ("bitnet", "bitnet-large", "bitnet-large-odd", "falcon3")


def make(root: Path) -> Callable[[str], PackedModel]:
    """The models by name, each made once below ``root``."""
    return cache(lambda name: MAKERS[name](root / name))

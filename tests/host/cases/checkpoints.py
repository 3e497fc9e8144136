"""Small checkpoints with traits that models people publish have, and that runtimes misread.

Each is written by its builder, which returns what a judge needs: the content of a ``config.json``
and the weights that the file stands for, under Hugging Face's names; or no weights, where the judge
reads the folder by itself. Everything is drawn from seeded generators.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tests.host.checkpoints import test_awq, test_compressed_tensors, test_gptq
from tests.host.checkpoints.quantized import Matrix, string_of_bits
from tests.host.gguf_model import MODELS, GgufModel, random_floats, write_gguf

__all__ = ["CASES", "KEY_BIASES", "TOKENS", "Case", "Held", "write_floats"]

Array = NDArray[np.generic]
Tensors = dict[str, Array]
Config = dict[str, Any]
VOCAB = 64
TOKENS = np.random.default_rng(1).integers(0, VOCAB, 8)
KEY_BIASES = (30, 100, 300)

_COMMON: Config = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_KINDS: Mapping[str, Config] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "bitnet": {
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2"
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a file holds: ``config`` as ``config.json`` has it, and ``weights`` in floating point;
    None if the folder itself is to be read."""

    config: Config
    weights: Tensors | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A checkpoint, and how far it may be from its reference, in relative L2 error of the logits:
    ``source`` read in floating point, ``integers`` as it runs by default. ``suffix`` of a file, if
    it is no folder."""

    write: Callable[[Path], Held]
    source: float = 2e-6
    integers: float = 0.05
    suffix: str = ""


# -- folders


def _floats(config: Config, seed: int = 3) -> Tensors:
    """Weights whose contributions to the residual stream are of order one."""
    rng = np.random.default_rng(seed)
    d, f, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim") or d // heads
    q, kv = heads * size, config["num_key_value_heads"] * size
    out: Tensors = {}

    def put(name: str, values: NDArray[np.float64]) -> None:
        out[name] = values.astype(np.float32)

    put("model.embed_tokens.weight", rng.normal(size=(config["vocab_size"], d)))
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, n, k in (
            ("self_attn.q_proj", q, d), ("self_attn.k_proj", kv, d), ("self_attn.v_proj", kv, d),
            ("self_attn.o_proj", d, q), ("mlp.gate_proj", f, d), ("mlp.up_proj", f, d),
            ("mlp.down_proj", d, f),
        ):  # fmt: skip
            put(f"{layer}.{name}.weight", rng.normal(size=(n, k)) * 1.5 / np.sqrt(k))
            if config["model_type"] == "qwen2" and name[10:] in ("q_proj", "k_proj", "v_proj"):
                put(f"{layer}.{name}.bias", rng.normal(size=n) * 0.3)
        norms = {"input_layernorm": d, "post_attention_layernorm": d}
        if config["model_type"] == "qwen3":
            norms |= {"self_attn.q_norm": size, "self_attn.k_norm": size}
        if config["model_type"] == "bitnet":
            norms |= {"self_attn.attn_sub_norm": q, "mlp.ffn_sub_norm": f}
        for name, n in norms.items():
            put(f"{layer}.{name}.weight", rng.uniform(0.7, 1.3, n))
    put("model.norm.weight", rng.uniform(0.7, 1.3, d))
    if not config["tie_word_embeddings"]:
        put("lm_head.weight", rng.normal(size=(config["vocab_size"], d)) * 3 / np.sqrt(d))
    return out


def _is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def _save(
    folder: Path, config: Config, tensors: Mapping[str, Array], file: str = "model.safetensors"
) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    whole = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    save_file(whole, folder / file)


def write_floats(
    folder: Path,
    kind: str = "llama",
    *,
    changes: Config | None = None,
    said: Config | None = None,
    missing: tuple[str, ...] = (),
    edit: Callable[[Tensors], Tensors] | None = None,
    dtype: Any = np.float32,
) -> Held:
    """A model in floating point, with other tensors, whose ``config.json`` says other things, and
    leaves out fields that are ``missing``. The judge reads the folder."""
    config = _COMMON | _KINDS[kind] | (changes or {})
    tensors = _floats(config)
    if edit is not None:
        tensors = edit(tensors)
    content = {name: x for name, x in (config | (said or {})).items() if name not in missing}
    _save(folder, content, {name: w.astype(dtype) for name, w in tensors.items()})
    return Held(config=content)


def _on_grid(shares: int, along: bool, group: int, binary: bool) -> Callable[[Tensors], Tensors]:
    """Weights of two or three levels: in groups, or with a scale for each share of a matrix, whose
    shares are of rows (of columns for those that follow them, as training on several devices
    leaves) if ``along``."""

    def levels(w: Array) -> NDArray[np.float32]:
        w = w.astype(np.float32)
        scale = np.abs(w).mean(axis=-1, keepdims=True).astype(np.float16).astype(np.float32)
        codes = np.where(w >= 0, 1, -1) if binary else np.clip(np.rint(w / scale), -1, 1)
        return (codes * scale).astype(np.float32)

    def edit(tensors: Tensors) -> Tensors:
        out = dict(tensors)
        for name, w in tensors.items():
            if not _is_linear(name):
                continue
            if group:
                out[name] = levels(w.reshape(-1, group)).reshape(w.shape)
                continue
            axis = int(along and ("o_proj" in name or "down_proj" in name))
            parts = np.split(w.astype(np.float32), shares, axis=axis)
            parts = [
                levels(part.reshape(1, -1) * (1 + 0.35 * i)).reshape(part.shape)
                for i, part in enumerate(parts)
            ]
            out[name] = np.concatenate(parts, axis=axis)
        return out

    return edit


# -- layouts of integers


def _matrix(
    w: Array, bits: int, group: int, *, symmetric: bool, order: NDArray[np.int64] | None = None
) -> Matrix:
    """Weights rounded to nearest; the groups have the columns in this order."""
    n, k = w.shape
    order = np.arange(k) if order is None else order
    x = w.astype(np.float64)[:, order].reshape(n, -1, group)
    top = (1 << bits) - 1
    if symmetric:
        scale = np.abs(x).max(axis=2) / (top / 2)
        zero = np.full(scale.shape, (top + 1) // 2)
    else:
        low, high = np.minimum(x.min(axis=2), 0), np.maximum(x.max(axis=2), 0)
        scale = (high - low) / top
        zero = np.maximum(np.rint(-low / scale), 1)
    scale = scale.astype(np.float16)
    codes = np.rint(x / scale.astype(np.float64)[..., None]) + zero[..., None]
    index, held = np.empty(k, np.int64), np.empty((n, k), np.int64)
    index[order] = np.arange(k) // group
    held[:, order] = np.clip(codes, 0, top).astype(np.int64).reshape(n, k)
    return Matrix(
        codes=held, zero=zero.astype(np.int64), scale=scale, index=index.astype(np.int64), bits=bits
    )


Packing = Callable[[str, Array], tuple[dict[str, Array], Array] | None]
"""Parts of a matrix of this name, and what they stand for; None leaves it in floating point."""


def _layout(
    folder: Path,
    packing: Packing,
    quantization: Config,
    *,
    extra: Tensors | None = None,
    others: Mapping[str, str] | None = None,
    changes: Config | None = None,
    edit: Callable[[Tensors], Tensors] | None = None,
    field: str = "quantization_config",
    beside: str = "",
    file: str = "model.safetensors",
) -> Held:
    """A Llama whose matrices are packed. How is said in ``field`` of ``config.json``, or in a file
    beside it; ``extra`` tensors mean nothing to the judge."""
    config = _COMMON | _KINDS["llama"] | (changes or {})
    floats = _floats(config)
    floats = edit(floats) if edit is not None else floats
    floats = {name: w.astype(np.float16).astype(np.float32) for name, w in floats.items()}
    weights: Tensors = dict(floats)
    tensors: Tensors = dict(extra or {})
    for name, w in floats.items():
        owner = name.removesuffix(".weight")
        packed = packing(owner, w) if w.ndim == 2 else None
        if packed is None:
            tensors[name] = w.astype(np.float16)
            continue
        weights[name] = packed[1]
        tensors |= {f"{owner}.{part}": values for part, values in packed[0].items()}
    said = config if beside else config | {field: quantization}
    _save(folder, said, tensors, file)
    if beside:
        (folder / beside).write_text(json.dumps(quantization))
    return Held(config=config, weights=weights)


def _gptq(
    *, bits: int = 4, group: int = 32, version: int = 1, shuffled: bool = False, rule: Any = None
) -> Packing:
    """``rule`` gives bits for a name: none for a matrix that is left in floating point."""

    def pack(name: str, w: Array) -> tuple[dict[str, Array], Array] | None:
        width = (bits if name.endswith("_proj") else 0) if rule is None else rule(name)
        if not width:
            return None
        rng = np.random.default_rng(len(name) + w.size)
        order = rng.permutation(w.shape[1]) if shuffled else None
        matrix = _matrix(w, width, group, symmetric=False, order=order)
        return dict(test_gptq.pack(matrix, version=version)), matrix.dense()

    return pack


def _awq(name: str, w: Array) -> tuple[dict[str, Array], Array] | None:
    if not name.endswith("_proj"):
        return None
    matrix = _matrix(w, 4, 32, symmetric=False)
    return dict(test_awq.pack(matrix)), matrix.dense()


def _compressed(rule: Callable[[str], tuple[int, int] | None], kind: str = "packed") -> Packing:
    """``rule`` gives bits and group of a name; ``kind`` is packed, padded or bytes."""

    def pack(name: str, w: Array) -> tuple[dict[str, Array], Array] | None:
        found = rule(name) if name.endswith("_proj") else None
        if found is None:
            return None
        bits, group = found
        matrix = _matrix(w, bits, group or w.shape[1], symmetric=True)
        parts = dict(test_compressed_tensors.pack(matrix, symmetric=True))
        if kind == "padded":
            per_word = 32 // bits
            rows = [
                np.concatenate(
                    [
                        string_of_bits(row[i : i + per_word], bits)
                        for i in range(0, len(row), per_word)
                    ]
                )
                for row in matrix.codes
            ]
            parts["weight_packed"] = np.stack(rows)
        if kind == "bytes":
            signed = (matrix.codes - (1 << (bits - 1))).astype(np.int8)
            parts = {"weight": signed, "weight_scale": matrix.scale}
        return parts, matrix.dense()

    return pack


def _scheme(bits: int, group: int = 32, **more: object) -> Config:
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return {"num_bits": bits, "type": "int", "symmetric": True, **strategy, **more}


def _ct(*groups: Config, **more: object) -> Config:
    """``quantization_config``; groups are ``weights``, or whole if they have those."""
    whole = [
        each if "weights" in each else {"targets": ["Linear"], "weights": each} for each in groups
    ]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {f"group_{i}": each for i, each in enumerate(whole)},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        **more,
    }


def _mlx(name: str, w: Array) -> tuple[dict[str, Array], Array] | None:
    """Four bits in groups of 64: a step and the least weight of each."""
    n, k = w.shape
    x = w.astype(np.float64).reshape(n, -1, 64)
    low = x.min(axis=2).astype(np.float16)
    step = ((x.max(axis=2) - low) / 15).astype(np.float16)
    codes = np.clip(np.rint((x - low[..., None]) / step.astype(np.float64)[..., None]), 0, 15)
    words = np.stack([string_of_bits(row, 4) for row in codes.astype(np.int64).reshape(n, k)])
    dense = codes * step.astype(np.float32)[..., None] + low.astype(np.float32)[..., None]
    parts: dict[str, Array] = {"weight": words.view(np.uint32), "scales": step, "biases": low}
    return parts, dense.astype(np.float32).reshape(n, k)


def _packed_ternary(folder: Path, kind: str, exempt: tuple[str, ...], quantization: Config) -> Held:
    """A ternary model of packed layers, but for those ``exempt``; of none if it is ``online``."""
    config = _COMMON | _KINDS[kind] | {"quantization_config": quantization}
    floats, tensors = _floats(config), Tensors()
    for name, w in floats.items():
        owner = name.removesuffix(".weight")
        online = quantization.get("quantization_mode") == "online"
        if not _is_linear(name) or owner in exempt or online:
            tensors[name] = w
            continue
        scale = np.abs(w.astype(np.float32)).mean()
        # a power of two is exact in every type that a judge computes in
        scale = np.exp2(np.rint(np.log2(scale)))
        codes = np.clip(np.rint(w.astype(np.float32) / scale), -1, 1).astype(np.int8) + 1
        quarters = np.split(codes.astype(np.uint8), 4)
        tensors[name] = np.bitwise_or.reduce([q << (2 * i) for i, q in enumerate(quarters)])
        divides = quantization.get("linear_class") != "autobitlinear"
        tensors[f"{name}_scale"] = np.array([1 / scale if divides else scale], np.float32)
    _save(folder, config, tensors)
    return Held(config=config)


# -- GGUF


def _gguf(
    path: Path,
    name: str = "llama",
    kind: str = "Q8_0",
    *,
    kinds: Mapping[str, str] | None = None,
    outer: str = "F16",
    edit: Callable[[Tensors], Tensors] | None = None,
    **changes: Any,
) -> Held:
    model = replace(MODELS[name], vocab_size=VOCAB, **changes)
    floats = random_floats(model)
    for each, w in floats.items():
        if _is_linear(each):
            floats[each] = 1.5 * w
    if edit is not None:
        floats = {each: w.astype(np.float32) for each, w in edit(dict(floats)).items()}
    weights = write_gguf(path, model, kind, kinds=kinds, outer=outer, floats=floats)
    return Held(config=_gguf_config(model), weights=dict(weights))


def _gguf_config(model: GgufModel) -> Config:
    """What the metadata say."""
    return {
        "model_type": model.reference.lower(),
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 20000.0,
        "hidden_act": "relu2" if model.relu2 else "silu",
        "tie_word_embeddings": model.tied,
    }


# -- traits


def _head_as_embedding(tensors: Tensors) -> Tensors:
    """The tensor that both share, under the head's name."""
    out = dict(tensors)
    out["lm_head.weight"] = out.pop("model.embed_tokens.weight")
    return out


def _key_bias(size: float) -> Callable[[Tensors], Tensors]:
    """Biases of keys on slow rotary channels, far larger than the keys."""

    def edit(tensors: Tensors) -> Tensors:
        out = dict(tensors)
        for name, values in tensors.items():
            if name.endswith("k_proj.bias"):
                heads = values.astype(np.float32).reshape(-1, 64).copy()
                heads[:, 31], heads[:, 63], heads[:, 30] = size, -0.8 * size, 0.5 * size
                out[name] = heads.reshape(-1)
        return out

    return edit


def _outliers(gain: float) -> Callable[[Tensors], Tensors]:
    """Channels of activations far larger than the others, of which the weights undo most."""

    def edit(tensors: Tensors) -> Tensors:
        out = {name: w.astype(np.float32) for name, w in tensors.items()}
        rng = np.random.default_rng(9)
        for i in range(2):
            channels = rng.permutation(64)[:3]
            for norm, names in (
                ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
            ):
                out[f"model.layers.{i}.{norm}.weight"][channels] *= gain
                for name in names:
                    out[f"model.layers.{i}.{name}.weight"][:, channels] /= gain**0.8
        return {**out}

    return edit


_EXEMPT = ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj")
_BITNET: Config = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head", *_EXEMPT]}
_GPTQ: Config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}
_W4: Config = _scheme(4)
_AUTO: Config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False}
_TERNARY = _on_grid(1, False, 0, binary=False)
_SHARDS = _on_grid(2, True, 0, binary=False)
_TRITS = _on_grid(1, False, 256, binary=False)
_WIDE: Config = {"hidden_size": 128, "intermediate_size": 256}
_INT: Config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
_SCALES: Tensors = {
    f"model.layers.{i}.self_attn.{name}": np.array([0.03], np.float32)
    for i in range(2)
    for name in ("k_scale", "v_scale", "k_proj.output_scale", "v_proj.output_scale")
}


def _ffn_only(bits: int) -> Callable[[str], tuple[int, int] | None]:
    return lambda name: (bits, 32) if "mlp" in name else None


def _unless_exempt(name: str) -> int:
    return 4 * (name.endswith("_proj") and name not in _EXEMPT)


def _mixed(first: tuple[int, int], second: tuple[int, int]) -> Callable[[str], tuple[int, int]]:
    return lambda name: first if ".0." in name else second


_FOLDERS: dict[str, Callable[[Path], Held]] = {
    # ternary checkpoints with layers in floating point
    "bitnet llama, two exempt": partial(
        _packed_ternary, kind="llama", exempt=_EXEMPT, quantization=_BITNET
    ),
    "bitnet, two exempt": partial(
        _packed_ternary,
        kind="bitnet",
        exempt=_EXEMPT,
        quantization=_BITNET | {"linear_class": "autobitlinear"},
    ),
    "bitnet online, by patterns": partial(
        _packed_ternary,
        kind="bitnet",
        exempt=(),
        quantization=_BITNET
        | {"linear_class": "autobitlinear", "quantization_mode": "online"}
        | {"modules_to_not_convert": ["lm_head", "model.layers.0.self_attn", r"model.*up_proj"]},
    ),
    "bitnet in floating point": partial(write_floats, kind="bitnet"),
    # unpacked grids
    "bonsai, unpacked": partial(
        write_floats, kind="qwen3", changes=_WIDE | {"head_dim": 32},
        edit=_on_grid(1, False, 128, binary=True), dtype=np.float16,
    ),
    "ternary in groups of 128": partial(
        write_floats, kind="qwen3", changes=_WIDE | {"head_dim": 32},
        edit=_on_grid(1, False, 128, binary=False), dtype=np.float16,
    ),
    "trilm of two shards": partial(write_floats, edit=_SHARDS, dtype=np.float16),
    "trilm of one shard": partial(write_floats, edit=_TERNARY, dtype=np.float16),
    "falcon-e in bfloat16": partial(write_floats, edit=_TERNARY, dtype=ml_dtypes.bfloat16),
    # heads
    "tied, with a head of its own": partial(
        write_floats, said={"tie_word_embeddings": True}
    ),
    "tied, with the head only": partial(
        write_floats, changes={"tie_word_embeddings": True}, edit=_head_as_embedding
    ),
    # fields that config.json leaves out, or has twice
    "bitnet without base and epsilon": partial(
        write_floats, kind="bitnet", missing=("rope_theta", "rms_norm_eps", "hidden_act")
    ),
    "llama without base and epsilon": partial(
        write_floats, missing=("rope_theta", "rms_norm_eps", "hidden_act", "head_dim")
    ),
    "qwen3 without the size of a head": partial(
        write_floats, kind="qwen3", changes={"head_dim": 128}, missing=("head_dim",)
    ),
    "both rope fields": partial(
        write_floats,
        changes={
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "rope_scaling": {"rope_type": "linear", "factor": 4.0, "rope_theta": 90.0},
        },
    ),
    "yarn with its context at the top": partial(
        write_floats,
        changes={
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
            "original_max_position_embeddings": 16,
        },
    ),
    "tokens beyond the vocabulary": partial(
        write_floats, changes={"bos_token_id": 128000, "eos_token_id": [2, 128001]}
    ),
}  # fmt: skip
_PACKED: dict[str, Callable[[Path], Held]] = {
    # compressed-tensors
    "ct, 4 and 8 bits by layer": partial(
        _layout, packing=_compressed(_mixed((4, 32), (8, 32))), quantization=_ct(_W4, _scheme(8))
    ),
    "ct, groups of two sizes": partial(
        _layout, packing=_compressed(_mixed((4, 64), (4, 32))),
        quantization=_ct(_scheme(4, 64), _W4),
    ),
    "ct, feed-forward only, 8 bits": partial(
        _layout, packing=_compressed(_ffn_only(8)), quantization=_ct(_scheme(8))
    ),
    "ct, feed-forward only, 4 bits": partial(
        _layout, packing=_compressed(_ffn_only(4)), quantization=_ct(_W4)
    ),
    "ct, scales of the cache": partial(
        _layout, packing=_compressed(lambda _: (4, 32)), extra=_SCALES,
        quantization=_ct(_W4, kv_cache_scheme={"num_bits": 8, "type": "float"}),
    ),
    "ct, format by group": partial(
        _layout, packing=_compressed(lambda _: (4, 32)),
        quantization=_ct(
            {"targets": ["Linear"], "weights": _W4, "format": "pack-quantized"},
            format="mixed-precision",
        ),
    ),
    "ct, strategy unsaid": partial(
        _layout, packing=_compressed(lambda _: (4, 32)),
        quantization=_ct({name: x for name, x in _W4.items() if name != "strategy"}),
    ),
    "ct, three bits, a string": partial(
        _layout, packing=_compressed(lambda _: (3, 32)), quantization=_ct(_scheme(3))
    ),
    "ct, three bits, padded": partial(
        _layout, packing=_compressed(lambda _: (3, 32), "padded"), quantization=_ct(_scheme(3))
    ),
    "ct, bytes, a scale per row": partial(
        _layout, packing=_compressed(lambda _: (8, 0), "bytes"),
        quantization=_ct(_scheme(8, 0), format="int-quantized"),
    ),
    # GPTQ
    "gptq, one left out": partial(
        _layout, packing=_gptq(rule=_unless_exempt),
        quantization=_GPTQ | {"dynamic": {r"-:.*0\.mlp\.down_proj": {}, f"-:{_EXEMPT[1]}": {}}},
    ),
    "gptq, the head left out": partial(
        _layout, packing=_gptq(), quantization=_GPTQ | {"dynamic": {"-:lm_head": {}}}
    ),
    "gptq, one of 8 bits": partial(
        _layout,
        packing=_gptq(rule=lambda name: 8 if "down" in name else 4 * name.endswith("_proj")),
        quantization=_GPTQ | {"dynamic": {"+:.*down_proj": {"bits": 8}}},
    ),
    "gptq, act-order": partial(
        _layout, packing=_gptq(shuffled=True), quantization=_GPTQ | {"desc_act": True}
    ),
    "gptq, three bits": partial(_layout, packing=_gptq(bits=3), quantization=_GPTQ | {"bits": 3}),
    "gptq, version 2 by format": partial(
        _layout, packing=_gptq(version=2), quantization=_GPTQ | {"format": "gptq_v2"}
    ),
    "gptq, a head of 4 bits": partial(
        _layout,
        packing=_gptq(rule=lambda name: 4 * (name == "lm_head" or name.endswith("_proj"))),
        quantization=_GPTQ | {"lm_head": True},
    ),
    "gptq, old names": partial(
        _layout, packing=_gptq(), beside="quantize_config.json",
        quantization={"bits": 4, "group_size": 32, "desc_act": False, "sym": False},
        file="gptq_model-4bit-32g.safetensors",
    ),
    # others
    "awq, old names": partial(
        _layout, packing=_awq, beside="quant_config.json",
        quantization={"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"},
    ),
    "auto-round as gptq": partial(
        _layout, packing=_gptq(), quantization=_AUTO | {"packing_format": "auto_round:auto_gptq"}
    ),
    "auto-round as awq": partial(
        _layout, packing=_awq, quantization=_AUTO | {"packing_format": "auto_round:auto_awq"}
    ),
    "auto-round by its old name": partial(
        _layout, packing=_gptq(),
        quantization=_AUTO
        | {"quant_method": "intel/auto-round", "backend": "auto_round:gptq:exllamav2"},
    ),
    "mlx": partial(
        _layout, packing=_mlx, quantization={"group_size": 64, "bits": 4}, field="quantization"
    ),
}  # fmt: skip
_PACKED |= {
    f"awq, outliers of {gain}": partial(
        _layout, packing=_awq, quantization=_INT, edit=_outliers(gain)
    )
    for gain in (8, 30, 100)
}
_SMALL: Config = {
    "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 32,
}  # fmt: skip
_FILES: dict[str, Callable[[Path], Held]] = {
    # the types of 2026
    "Q1_0": partial(_gguf, name="qwen3", kind="Q1_0"),
    "Q1_0 with its head": partial(_gguf, name="qwen3", kind="Q1_0", outer="Q1_0"),
    "Q1_0 as F16": partial(
        _gguf, name="qwen3", kind="F16", edit=_on_grid(1, False, 128, binary=True)
    ),
    "Q2_0": partial(_gguf, name="qwen3", kind="Q2_0"),
    # what llama-quantize leaves where rows are no multiple of 256
    "Q8_0": partial(_gguf, name="qwen2", **_SMALL),
    "Q5_0 with Q8_0": partial(_gguf, name="qwen2", kind="Q5_0", outer="Q8_0", **_SMALL),
    "Q4_0 with Q4_1": partial(
        _gguf, name="qwen2", kind="Q4_0", outer="Q8_0", kinds={"down_proj": "Q4_1"}, **_SMALL
    ),
    "Q5_1": partial(_gguf, name="qwen2", kind="Q5_1", outer="Q8_0", **_SMALL),
    "MXFP4": partial(_gguf, name="llama", kind="MXFP4"),
    "Q4_K with Q6_K": partial(
        _gguf, name="llama", kind="Q4_K", outer="Q6_K", kinds={"v_proj": "Q6_K"}
    ),
    # ternary models of several scales, and with matrices in other types
    "trilm as TQ2_0": partial(_gguf, kind="TQ2_0 by block", edit=_TRITS),
    "TQ2_0 with F16": partial(_gguf, kind="TQ2_0", kinds={"o_proj": "F16"}),
    "TQ2_0 with Q8_0": partial(_gguf, kind="TQ2_0", kinds={"o_proj": "Q8_0"}),
    "Q4_0 with F16": partial(_gguf, kind="Q4_0", kinds={"o_proj": "F16"}),
    "BitNet with F16": partial(_gguf, name="bitnet", kind="TQ2_0", kinds={"down_proj": "F16"}),
}  # fmt: skip
for _arch in ("bitnet", "bitnet-b1.58"):
    for _act in ("relu2", "silu"):
        _FILES[f"{_arch}, {_act} named"] = partial(
            _gguf,
            name="bitnet",
            kind="TQ2_0",
            arch=_arch,
            relu2=_act == "relu2",
            fields={"hidden_activation": _act},
        )
_LARGE_HEADS: Config = {
    "head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 1e6
}  # fmt: skip
CASES: dict[str, Case] = {
    **{name: Case(write=write) for name, write in _FOLDERS.items()},
    **{name: Case(write=write) for name, write in _PACKED.items()},
    **{name: Case(write=write, suffix=".gguf", integers=0.06) for name, write in _FILES.items()},
    **{
        f"key bias of {size}": Case(
            write=partial(write_floats, kind="qwen2", changes=_LARGE_HEADS, edit=_key_bias(size)),
            source=2e-5,  # scores of thousands, in float32 there
            integers=0.04,
        )
        for size in KEY_BIASES
    },
}
"""By names that say the trait."""

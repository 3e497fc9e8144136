"""A second implementation of every architecture, to compare with: one token at a time, in loops.

It is written from the papers and shares nothing with the package. Weights are dense and under
Hugging Face's names; ``config`` is the content of ``config.json``.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["plain_forward"]

Vector = NDArray[np.float64]
Config = Mapping[str, Any]


def plain_forward(config: Config, weights: Mapping[str, Vector], tokens: list[int]) -> Vector:
    """Logits ``[T, V]``."""
    n_layers = config["num_hidden_layers"]
    caches: list[list[tuple[Vector, Vector]]] = [[] for _ in range(n_layers)]
    rows = []
    for position, token in enumerate(tokens):
        x = weights["model.embed_tokens.weight"][token].astype(np.float64)
        for i in range(n_layers):
            layer = _Layer(config, weights, i)
            x = x + layer.attention(layer.norm(x, "input_layernorm"), position, caches[i])
            x = x + layer.feed_forward(layer.norm(x, "post_attention_layernorm"))
        x = _rms(x, weights["model.norm.weight"], config["rms_norm_eps"])
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        rows.append(head.astype(np.float64) @ x)
    return np.array(rows)


class _Layer:
    def __init__(self, config: Config, weights: Mapping[str, Vector], index: int) -> None:
        self.config, self.weights, self.index = config, weights, index
        self.prefix = f"model.layers.{index}."

    def get(self, name: str) -> Vector | None:
        return self.weights.get(self.prefix + name)

    def norm(self, x: Vector, name: str) -> Vector:
        return _rms(x, self.weights[f"{self.prefix}{name}.weight"], self.config["rms_norm_eps"])

    def linear(self, x: Vector, name: str) -> Vector:
        weight, bias = self.weights[f"{self.prefix}{name}.weight"], self.get(f"{name}.bias")
        if _ternary(self.config):
            unit = max(float(np.max(np.abs(x))), 1e-5) / 127
            x = np.array([max(-128.0, min(127.0, float(np.round(v / unit)))) for v in x]) * unit
        out = weight.astype(np.float64) @ x
        return out if bias is None else out + bias

    def attention(self, x: Vector, position: int, cache: list[tuple[Vector, Vector]]) -> Vector:
        c = self.config
        n_heads = c["num_attention_heads"]
        n_kv = c.get("num_key_value_heads") or n_heads
        size = c.get("head_dim") or c["hidden_size"] // n_heads
        q, k, v = (self.linear(x, f"self_attn.{each}_proj") for each in "qkv")
        q, k = q.reshape(n_heads, size), k.reshape(n_kv, size)
        if self.get("self_attn.q_norm.weight") is not None:
            q = np.array([self.norm(head, "self_attn.q_norm") for head in q])
            k = np.array([self.norm(head, "self_attn.k_norm") for head in k])
        q = np.array([_turn(head, position, c) for head in q])
        k = np.array([_turn(head, position, c) for head in k])
        cache.append((k, v.reshape(n_kv, size)))
        seen = cache[-window:] if (window := _window(c, self.index)) else cache
        heads = []
        for h in range(n_heads):
            kv = h * n_kv // n_heads
            scores = [float(q[h] @ keys[kv]) / math.sqrt(size) for keys, _ in seen]
            top = max(scores)
            p = [math.exp(score - top) for score in scores]
            mix = sum(w * values[kv] for w, (_, values) in zip(p, seen, strict=True))
            heads.append(mix / sum(p))
        out = np.concatenate(heads)
        for name in ("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"):
            if self.get(f"{name}.weight") is not None:
                out = self.norm(out, name)
        return self.linear(out, "self_attn.o_proj")

    def feed_forward(self, x: Vector) -> Vector:
        gate, up = self.linear(x, "mlp.gate_proj"), self.linear(x, "mlp.up_proj")
        if self.config["hidden_act"] == "relu2":
            h = np.array([max(g, 0.0) ** 2 * u for g, u in zip(gate, up, strict=True)])
        else:
            h = np.array([g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)])
        for name in ("mlp.ffn_sub_norm", "mlp.ffn_layernorm"):
            if self.get(f"{name}.weight") is not None:
                h = self.norm(h, name)
        return self.linear(h, "mlp.down_proj")


def _rms(x: Vector, weight: Vector, eps: float) -> Vector:
    return x / math.sqrt(sum(float(v) ** 2 for v in x) / len(x) + eps) * weight


def _ternary(config: Config) -> bool:
    quantization = config.get("quantization_config") or {}
    large = config["architectures"] == ["BitnetForCausalLM"]
    return large or quantization.get("quant_method") == "bitnet"


def _window(config: Config, layer: int) -> int:
    if config["architectures"] == ["MistralForCausalLM"]:
        return config.get("sliding_window") or 0
    if not config.get("use_sliding_window"):
        return 0
    kinds = config.get("layer_types")
    if kinds:
        return config["sliding_window"] if kinds[layer] == "sliding_attention" else 0
    return config["sliding_window"] if layer >= config["max_window_layers"] else 0


def _turn(head: Vector, position: int, config: Config) -> Vector:
    """Pair ``i`` is ``head[i]`` and ``head[i + half]``, a complex number that is turned."""
    half = len(head) // 2
    out = np.zeros_like(head)
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for i in range(half):
        angle = position * _frequency(i, half, config, scaling)
        z = complex(head[i], head[i + half]) * complex(math.cos(angle), math.sin(angle))
        z *= _magnitude(scaling)
        out[i], out[i + half] = z.real, z.imag
    return out


def _frequency(i: int, half: int, config: Config, scaling: Config) -> float:
    theta = scaling.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    plain = theta ** (-i / half)
    if kind in ("default", "dynamic"):
        return plain  # within the context that it was trained with
    factor = scaling["factor"]
    if kind == "linear":
        return plain / factor
    trained = scaling["original_max_position_embeddings"]
    turns = trained * plain / (2 * math.pi)  # in the context it was trained with
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        if turns < low:
            return plain / factor
        if turns > high:
            return plain
        share = (turns - low) / (high - low)
        return share * plain + (1 - share) * plain / factor
    assert kind == "yarn"

    def pair_with(n_turns: float) -> float:
        # trained * theta ** (-i / half) / 2 pi = n_turns, solved for i
        return half * math.log(trained / (2 * math.pi * n_turns), theta)

    first = max(math.floor(pair_with(scaling.get("beta_fast", 32))), 0)
    last = min(math.ceil(pair_with(scaling.get("beta_slow", 1))), 2 * half - 1)
    share = min(max((i - first) / (last - first if last != first else 0.001), 0.0), 1.0)
    return share * plain / factor + (1 - share) * plain


def _magnitude(scaling: Config) -> float:
    if scaling.get("rope_type", scaling.get("type")) != "yarn":
        return 1.0
    if scaling.get("attention_factor"):
        return scaling["attention_factor"]

    def scale(m: float) -> float:
        return 0.1 * m * math.log(scaling["factor"]) + 1 if scaling["factor"] > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return scale(scaling["mscale"]) / scale(scaling["mscale_all_dim"])
    return scale(1)

"""BitNet b1.58 as in 2B-4T: the checkpoint as Hugging Face stores it, and its float forward pass.

Source: "BitNet b1.58 2B4T Technical Report", section 2; the packed layout is that of transformers'
``BitNetForCausalLM`` with ``linear_class: autobitlinear``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lutra.host.errors import LutraError
from lutra.host.models.checkpoint import ConfigFile, DecoderConfig, Tensors
from lutra.host.models.layers import (
    Float,
    causal_attention,
    rms_norm,
    rotation,
    round_activations,
    split_heads,
)

__all__ = ["BITNET", "BitLinear", "BitNet", "BitNetLayer", "load_bitnet", "unpack_ternary"]

BITNET = "BitNetForCausalLM"
_ADVICE = f"give a packed {BITNET} model"


@dataclass(frozen=True)
class BitLinear:
    """Ternary weights ``[N, K]`` int8 and the scale that multiplies them."""

    weight: NDArray[np.int8]
    scale: float


@dataclass(frozen=True, kw_only=True)
class BitNetLayer:
    """One decoder layer."""

    q_proj: BitLinear
    k_proj: BitLinear
    v_proj: BitLinear
    o_proj: BitLinear
    gate_proj: BitLinear
    up_proj: BitLinear
    down_proj: BitLinear
    input_layernorm: NDArray[np.float32]
    attn_sub_norm: NDArray[np.float32]
    post_attention_layernorm: NDArray[np.float32]
    ffn_sub_norm: NDArray[np.float32]


def unpack_ternary(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Unpack ``[N / 4, K]`` bytes to ``[N, K]`` in -1, 0, 1.

    Bits ``2 i`` and ``2 i + 1`` of packed row ``r`` are row ``i * N / 4 + r``, with one added.
    """
    fields = [((packed >> (2 * i)) & 3).astype(np.int8) - 1 for i in range(4)]
    return np.concatenate(fields)


@dataclass(frozen=True, kw_only=True)
class BitNet:
    """A whole model; the embedding is also the head."""

    name: str
    config: DecoderConfig
    embed_tokens: NDArray[np.float32]  # [V, D]
    layers: list[BitNetLayer]
    norm: NDArray[np.float32]

    def forward(self, tokens: NDArray[np.int64]) -> Float:
        """Logits ``[T, V]`` of a window of tokens, in float64: the yardstick of the integer path.

        Weights are ternary and activations are rounded to int8 as in training; everything else is
        floating point. Never on the token path.
        """
        return self._forward(tokens)[0]

    def residual_peak(self, tokens: NDArray[np.int64]) -> float:
        """Largest magnitude of the residual stream over a window (calibration)."""
        return self._forward(tokens)[1]

    def _forward(self, tokens: NDArray[np.int64]) -> tuple[Float, float]:
        c = self.config
        x = self.embed_tokens[tokens].astype(np.float64)  # [T, D]
        peak = float(np.abs(x).max())
        rotate = rotation(len(tokens), c.head_dim, c.rope_theta)
        for layer in self.layers:
            h = rms_norm(x, layer.input_layernorm, c.rms_norm_eps)
            q = rotate(split_heads(_bit_linear(h, layer.q_proj), c.head_dim))  # [H, T, Dh]
            k = rotate(split_heads(_bit_linear(h, layer.k_proj), c.head_dim))
            v = split_heads(_bit_linear(h, layer.v_proj), c.head_dim)
            o = rms_norm(causal_attention(q, k, v), layer.attn_sub_norm, c.rms_norm_eps)
            x = x + _bit_linear(o, layer.o_proj)
            peak = max(peak, float(np.abs(x).max()))
            h = rms_norm(x, layer.post_attention_layernorm, c.rms_norm_eps)
            gate = np.maximum(_bit_linear(h, layer.gate_proj), 0)
            h = gate * gate * _bit_linear(h, layer.up_proj)
            h = rms_norm(h, layer.ffn_sub_norm, c.rms_norm_eps)
            x = x + _bit_linear(h, layer.down_proj)
            peak = max(peak, float(np.abs(x).max()))
        x = rms_norm(x, self.norm, c.rms_norm_eps)
        return x @ self.embed_tokens.T.astype(np.float64), peak


def _bit_linear(x: Float, linear: BitLinear) -> Float:
    q, unit = round_activations(x, 8)
    return (q @ linear.weight.T.astype(np.float64)) * linear.scale * unit


def load_bitnet(folder: Path) -> BitNet:
    """Read ``config.json`` and ``model.safetensors`` of a packed BitNet checkpoint."""
    file = ConfigFile(folder / "config.json")
    quantization = "quantization_config"
    for name, value, expected in (
        ("architectures", file.get("architectures"), [BITNET]),
        ("hidden_act", file.get("hidden_act"), "relu2"),
        ("tie_word_embeddings", file.get("tie_word_embeddings"), True),
        ("quant_method", file.get("quant_method", quantization), "bitnet"),
        ("linear_class", file.get("linear_class", quantization), "autobitlinear"),
    ):
        file.require(name, value, expected, _ADVICE)
    c = file.decoder(multiples={"hidden_size": 4, "intermediate_size": 4, "head_dim": 4})
    tensors = Tensors(folder / "model.safetensors", BITNET)
    path, floats = tensors.path, tensors.floats

    def linear(name: str, n: int, k: int) -> BitLinear:
        packed = tensors.take(f"{name}.weight", n // 4, k)
        if packed.dtype != np.uint8:
            raise LutraError(f"{path}: {name}.weight must be packed uint8, not {packed.dtype}")
        weight = unpack_ternary(cast("NDArray[np.uint8]", packed))
        if weight.max(initial=0) > 1:
            raise LutraError(f"{path}: {name}.weight holds codes other than 0, 1 and 2")
        scale = float(floats(f"{name}.weight_scale", 1)[0])
        if scale <= 0:
            raise LutraError(f"{path}: {name}.weight_scale must be positive, not {scale}")
        return BitLinear(weight, scale)

    d, f = c.hidden_size, c.intermediate_size
    layers: list[BitNetLayer] = []
    for i in range(c.num_hidden_layers):
        prefix = f"model.layers.{i}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        layers.append(
            BitNetLayer(
                q_proj=linear(f"{attention}.q_proj", c.q_size, d),
                k_proj=linear(f"{attention}.k_proj", c.kv_size, d),
                v_proj=linear(f"{attention}.v_proj", c.kv_size, d),
                o_proj=linear(f"{attention}.o_proj", d, c.q_size),
                gate_proj=linear(f"{mlp}.gate_proj", f, d),
                up_proj=linear(f"{mlp}.up_proj", f, d),
                down_proj=linear(f"{mlp}.down_proj", d, f),
                input_layernorm=floats(f"{prefix}.input_layernorm.weight", d),
                attn_sub_norm=floats(f"{attention}.attn_sub_norm.weight", c.q_size),
                post_attention_layernorm=floats(f"{prefix}.post_attention_layernorm.weight", d),
                ffn_sub_norm=floats(f"{mlp}.ffn_sub_norm.weight", f),
            )
        )
    return BitNet(
        name=folder.name,
        config=c,
        embed_tokens=floats("model.embed_tokens.weight", c.vocab_size, d),
        layers=layers,
        norm=floats("model.norm.weight", d),
    )

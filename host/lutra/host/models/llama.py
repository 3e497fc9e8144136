"""Llama: the checkpoint as Hugging Face stores it, and its float forward pass.

Source: "Llama 2: Open Foundation and Fine-Tuned Chat Models" (arXiv 2307.09288); names and layout
are those of transformers' ``LlamaForCausalLM``.
"""

from dataclasses import dataclass
from pathlib import Path

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

__all__ = ["LINEARS", "LLAMA", "Llama", "LlamaLayer", "load_llama"]

LLAMA = "LlamaForCausalLM"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""A layer's matrices, under the checkpoint's names."""
_ADVICE = f"give a {LLAMA} model in floating point, with tied embeddings"


@dataclass(frozen=True, kw_only=True)
class LlamaLayer:
    """One decoder layer; matrices are ``[N, K]``."""

    q_proj: NDArray[np.floating]
    k_proj: NDArray[np.floating]
    v_proj: NDArray[np.floating]
    o_proj: NDArray[np.floating]
    gate_proj: NDArray[np.floating]
    up_proj: NDArray[np.floating]
    down_proj: NDArray[np.floating]
    input_layernorm: NDArray[np.float32]
    post_attention_layernorm: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Llama:
    """A whole model; the embedding is also the head.

    With ``activation_bits`` the inputs of the layers' matrices are rounded to so many bits per
    token, as they are on an accelerator.
    """

    name: str
    config: DecoderConfig
    embed_tokens: NDArray[np.float32]  # [V, D]
    layers: list[LlamaLayer]
    norm: NDArray[np.float32]
    activation_bits: int | None = None

    def forward(self, tokens: NDArray[np.int64]) -> Float:
        """Logits ``[T, V]`` of a window of tokens, in float64. Never on the token path."""
        return self._forward(tokens)[0]

    def residual_peak(self, tokens: NDArray[np.int64]) -> float:
        """Largest magnitude of the residual stream over a window (calibration)."""
        return self._forward(tokens)[1]

    def _linear(self, x: Float, weight: NDArray[np.floating]) -> Float:
        unit: Float | float = 1.0
        if self.activation_bits is not None:
            x, unit = round_activations(x, self.activation_bits)
        return x @ weight.T.astype(np.float64) * unit

    def _forward(self, tokens: NDArray[np.int64]) -> tuple[Float, float]:
        c = self.config
        x = self.embed_tokens[tokens].astype(np.float64)  # [T, D]
        peak = float(np.abs(x).max())
        rotate = rotation(len(tokens), c.head_dim, c.rope_theta)
        for layer in self.layers:
            h = rms_norm(x, layer.input_layernorm, c.rms_norm_eps)
            q = rotate(split_heads(self._linear(h, layer.q_proj), c.head_dim))  # [H, T, Dh]
            k = rotate(split_heads(self._linear(h, layer.k_proj), c.head_dim))
            v = split_heads(self._linear(h, layer.v_proj), c.head_dim)
            x = x + self._linear(causal_attention(q, k, v), layer.o_proj)
            peak = max(peak, float(np.abs(x).max()))
            h = rms_norm(x, layer.post_attention_layernorm, c.rms_norm_eps)
            gate = self._linear(h, layer.gate_proj)
            h = gate / (1 + np.exp(-gate)) * self._linear(h, layer.up_proj)
            x = x + self._linear(h, layer.down_proj)
            peak = max(peak, float(np.abs(x).max()))
        x = rms_norm(x, self.norm, c.rms_norm_eps)
        return x @ self.embed_tokens.T.astype(np.float64), peak


def load_llama(folder: Path) -> Llama:
    """Read ``config.json`` and ``model.safetensors`` of a Llama checkpoint."""
    file = ConfigFile(folder / "config.json")
    for name, value, expected in (
        ("architectures", file.get("architectures"), [LLAMA]),
        ("hidden_act", file.get("hidden_act"), "silu"),
        ("tie_word_embeddings", file.get("tie_word_embeddings"), True),
        ("attention_bias", file.get("attention_bias") or False, False),
        ("mlp_bias", file.get("mlp_bias") or False, False),
        ("rope_scaling", file.get("rope_scaling"), None),
        ("quantization_config", file.get("quantization_config"), None),
    ):
        file.require(name, value, expected, _ADVICE)
    c = file.decoder(multiples={"head_dim": 4})
    tensors = Tensors(folder / "model.safetensors", LLAMA)

    def matrix(name: str, n: int, k: int) -> NDArray[np.float32]:
        found = tensors.take(f"{name}.weight", n, k).dtype
        if not np.issubdtype(found, np.floating):
            raise LutraError(f"{tensors.path}: {name}.weight must be floating point, not {found}")
        return tensors.floats(f"{name}.weight", n, k)

    d, f = c.hidden_size, c.intermediate_size
    layers: list[LlamaLayer] = []
    for i in range(c.num_hidden_layers):
        prefix = f"model.layers.{i}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        layers.append(
            LlamaLayer(
                q_proj=matrix(f"{attention}.q_proj", c.q_size, d),
                k_proj=matrix(f"{attention}.k_proj", c.kv_size, d),
                v_proj=matrix(f"{attention}.v_proj", c.kv_size, d),
                o_proj=matrix(f"{attention}.o_proj", d, c.q_size),
                gate_proj=matrix(f"{mlp}.gate_proj", f, d),
                up_proj=matrix(f"{mlp}.up_proj", f, d),
                down_proj=matrix(f"{mlp}.down_proj", d, f),
                input_layernorm=tensors.floats(f"{prefix}.input_layernorm.weight", d),
                post_attention_layernorm=tensors.floats(
                    f"{prefix}.post_attention_layernorm.weight", d
                ),
            )
        )
    return Llama(
        name=folder.name,
        config=c,
        embed_tokens=matrix("model.embed_tokens", c.vocab_size, d),
        layers=layers,
        norm=tensors.floats("model.norm.weight", d),
    )

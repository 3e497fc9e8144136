"""BitNet b1.58 as in 2B-4T: the checkpoint as Hugging Face stores it, and its float forward pass.

Source: "BitNet b1.58 2B4T Technical Report", section 2; the packed layout is that of transformers'
``BitNetForCausalLM`` with ``linear_class: autobitlinear``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lutra.host.errors import LutraError
from lutra.host.formats.safetensors import read_safetensors

__all__ = ["BitLinear", "BitNet", "BitNetConfig", "BitNetLayer", "load_bitnet", "unpack_ternary"]

Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BitNetConfig:
    """The fields of ``config.json`` that matter, under their own names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    bos_token_id: int
    eos_token_id: int


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
    config: BitNetConfig
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
        rotate = _rotation(len(tokens), c.head_dim, c.rope_theta)
        hidden = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
        for layer in self.layers:
            h = _rms_norm(x, layer.input_layernorm, c.rms_norm_eps)
            q = rotate(_heads(_bit_linear(h, layer.q_proj), c.head_dim))  # [H, T, Dh]
            k = rotate(_heads(_bit_linear(h, layer.k_proj), c.head_dim))
            v = _heads(_bit_linear(h, layer.v_proj), c.head_dim)
            share = c.num_attention_heads // c.num_key_value_heads
            k, v = k.repeat(share, axis=0), v.repeat(share, axis=0)
            score = q @ k.transpose(0, 2, 1) / np.sqrt(c.head_dim) + hidden
            p = np.exp(score - score.max(axis=-1, keepdims=True))
            o = (p / p.sum(axis=-1, keepdims=True)) @ v
            o = o.transpose(1, 0, 2).reshape(len(tokens), -1)
            o = _rms_norm(o, layer.attn_sub_norm, c.rms_norm_eps)
            x = x + _bit_linear(o, layer.o_proj)
            peak = max(peak, float(np.abs(x).max()))
            h = _rms_norm(x, layer.post_attention_layernorm, c.rms_norm_eps)
            gate = np.maximum(_bit_linear(h, layer.gate_proj), 0)
            h = gate * gate * _bit_linear(h, layer.up_proj)
            h = _rms_norm(h, layer.ffn_sub_norm, c.rms_norm_eps)
            x = x + _bit_linear(h, layer.down_proj)
            peak = max(peak, float(np.abs(x).max()))
        x = _rms_norm(x, self.norm, c.rms_norm_eps)
        return x @ self.embed_tokens.T.astype(np.float64), peak


def _rms_norm(x: Float, weight: NDArray[np.float32], eps: float) -> Float:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def _bit_linear(x: Float, linear: BitLinear) -> Float:
    scale = 127 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5)
    q = np.clip(np.rint(x * scale), -128, 127)
    return (q @ linear.weight.T.astype(np.float64)) * linear.scale / scale


def _heads(x: Float, head_dim: int) -> Float:
    return x.reshape(len(x), -1, head_dim).transpose(1, 0, 2)


def _rotation(n: int, head_dim: int, theta: float) -> Callable[[Float], Float]:
    angles = np.outer(np.arange(n), theta ** (-np.arange(0, head_dim, 2) / head_dim))
    cos, sin = np.cos(angles), np.sin(angles)

    def rotate(x: Float) -> Float:
        lo, hi = np.split(x, 2, axis=-1)
        return np.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], axis=-1)

    return rotate


_ARCHITECTURE = "BitNetForCausalLM"


def load_bitnet(folder: Path) -> BitNet:
    """Read ``config.json`` and ``model.safetensors`` of a packed BitNet checkpoint."""
    config = _read_config(folder / "config.json")
    path = folder / "model.safetensors"
    tensors = read_safetensors(path)

    def take(name: str, *shape: int) -> NDArray[np.generic]:
        if name not in tensors:
            raise LutraError(
                f"{path} has no tensor {name}: it is not a whole {_ARCHITECTURE} model"
            )
        if tensors[name].shape != shape:
            raise LutraError(
                f"{path}: {name} must be {list(shape)}, not {list(tensors[name].shape)}"
            )
        return tensors[name]

    def floats(name: str, *shape: int) -> NDArray[np.float32]:
        values = take(name, *shape).astype(np.float32)
        if not np.isfinite(values).all():
            raise LutraError(f"{path}: {name} holds infinities or NaNs: export the model again")
        return values

    def linear(name: str, n: int, k: int) -> BitLinear:
        packed = take(f"{name}.weight", n // 4, k)
        if packed.dtype != np.uint8:
            raise LutraError(f"{path}: {name}.weight must be packed uint8, not {packed.dtype}")
        weight = unpack_ternary(cast("NDArray[np.uint8]", packed))
        if weight.max(initial=0) > 1:
            raise LutraError(f"{path}: {name}.weight holds codes other than 0, 1 and 2")
        scale = float(floats(f"{name}.weight_scale", 1)[0])
        if scale <= 0:
            raise LutraError(f"{path}: {name}.weight_scale must be positive, not {scale}")
        return BitLinear(weight, scale)

    c = config
    d, f, q_out = c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim
    kv_out = c.num_key_value_heads * c.head_dim
    layers: list[BitNetLayer] = []
    for i in range(c.num_hidden_layers):
        prefix = f"model.layers.{i}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        layers.append(
            BitNetLayer(
                q_proj=linear(f"{attention}.q_proj", q_out, d),
                k_proj=linear(f"{attention}.k_proj", kv_out, d),
                v_proj=linear(f"{attention}.v_proj", kv_out, d),
                o_proj=linear(f"{attention}.o_proj", d, q_out),
                gate_proj=linear(f"{mlp}.gate_proj", f, d),
                up_proj=linear(f"{mlp}.up_proj", f, d),
                down_proj=linear(f"{mlp}.down_proj", d, f),
                input_layernorm=floats(f"{prefix}.input_layernorm.weight", d),
                attn_sub_norm=floats(f"{attention}.attn_sub_norm.weight", q_out),
                post_attention_layernorm=floats(f"{prefix}.post_attention_layernorm.weight", d),
                ffn_sub_norm=floats(f"{mlp}.ffn_sub_norm.weight", f),
            )
        )
    return BitNet(
        name=folder.name,
        config=config,
        embed_tokens=floats("model.embed_tokens.weight", c.vocab_size, d),
        layers=layers,
        norm=floats("model.norm.weight", d),
    )


def _read_config(path: Path) -> BitNetConfig:
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LutraError(
            f"{path} does not exist: give a model folder or one of the shipped names"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LutraError(f"{path} is not JSON ({error}): copy the model again") from None
    raw = _object(content)
    quantization = _object(raw.get("quantization_config"))
    for name, value, expected in (
        ("architectures", raw.get("architectures"), [_ARCHITECTURE]),
        ("hidden_act", raw.get("hidden_act"), "relu2"),
        ("tie_word_embeddings", raw.get("tie_word_embeddings"), True),
        ("quant_method", quantization.get("quant_method"), "bitnet"),
        ("linear_class", quantization.get("linear_class"), "autobitlinear"),
    ):
        if value != expected:
            raise LutraError(
                f"{path}: {name} {value!r} is not supported; supported is {expected!r}: "
                f"give a packed {_ARCHITECTURE} model"
            )

    def real(name: str) -> float:
        value = raw.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LutraError(f"{path}: {name} must be a number, not {value!r}")
        if not 0 < value < np.inf:
            raise LutraError(f"{path}: {name} must be positive, not {value}")
        return float(value)

    def whole(name: str) -> int:
        value = raw.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LutraError(f"{path}: {name} must be a positive whole number, not {value!r}")
        return value

    def token(name: str) -> int:
        value, size = raw.get(name), whole("vocab_size")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
            raise LutraError(f"{path}: {name} must be a token id in 0..{size - 1}, not {value!r}")
        return value

    hidden_size, n_heads = whole("hidden_size"), whole("num_attention_heads")
    config = BitNetConfig(
        hidden_size=hidden_size,
        intermediate_size=whole("intermediate_size"),
        num_hidden_layers=whole("num_hidden_layers"),
        num_attention_heads=n_heads,
        num_key_value_heads=whole("num_key_value_heads"),
        head_dim=whole("head_dim") if raw.get("head_dim") is not None else hidden_size // n_heads,
        vocab_size=whole("vocab_size"),
        max_position_embeddings=whole("max_position_embeddings"),
        rms_norm_eps=real("rms_norm_eps"),
        rope_theta=real("rope_theta"),
        bos_token_id=token("bos_token_id"),
        eos_token_id=token("eos_token_id"),
    )
    for name, divisor in (
        ("hidden_size", 4),
        ("intermediate_size", 4),
        ("head_dim", 4),
        ("num_attention_heads", config.num_key_value_heads),
    ):
        value = getattr(config, name)
        if value % divisor or not value:
            raise LutraError(f"{path}: {name} must be a multiple of {divisor}, not {value}")
    return config


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}

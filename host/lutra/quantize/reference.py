"""The packed model in floating point: the yardstick of the integer path."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense, Integers
from lutra.models.decoder import Decoder, DecoderConfig, DecoderLayer, LazyLayers
from lutra.models.rope import Rope
from lutra_golden.arith.scale import scale_to_float
from lutra_golden.model.packed import PackedLayer, PackedLinear, PackedModel, PackedNorm
from lutra_golden.model.shapes import LINEARS
from lutra_golden.vector.residual import LOGIT_SHIFT
from lutra_golden.vector.rope import ROPE_FRAC

__all__ = ["reference", "reference_layer"]


def reference_layer(config: DecoderConfig, layer: PackedLayer) -> DecoderLayer:
    """A packed layer in floating point: the same integers, multiplied by their scales."""
    softmax = math.log2(math.e) / math.sqrt(config.head_dim)
    parts: dict[str, Integers] = {}
    for name in LINEARS:
        linear = layer.linear(name)
        scale = _step(linear)
        if name == "q_proj" and layer.head_norms is None:
            scale /= softmax
        parts[name] = Integers(linear.weights, scale)
    extra: dict[str, NDArray[np.float32]] = {}
    if layer.bias is not None:
        q, kv = config.q_size, config.kv_size
        values = (layer.bias.values * 2.0**-layer.bias.frac).astype(np.float32)
        extra["q_bias"], extra["k_bias"], extra["v_bias"] = np.split(values, [q, q + kv])
        if layer.head_norms is None:
            extra["q_bias"] = (extra["q_bias"] / softmax).astype(np.float32)
    if layer.head_norms is not None:
        norms = layer.head_norms
        extra["q_norm"] = (norms.query * (2.0**-norms.frac / softmax)).astype(np.float32)
        extra["k_norm"] = (norms.key * 2.0**-norms.frac).astype(np.float32)
    for name, norm in (("attn_sub_norm", layer.attention_norm), ("ffn_sub_norm", layer.ffn_norm)):
        if norm is not None:
            extra[name] = _gamma(norm)
    extra["input_layernorm"] = _gamma(layer.input_norm)
    extra["post_attention_layernorm"] = _gamma(layer.ffn_input_norm)
    return DecoderLayer.of(parts, extra)


def _gamma(norm: PackedNorm) -> NDArray[np.float32]:
    return (norm.gamma * 2.0**-norm.frac).astype(np.float32)


def _step(linear: PackedLinear) -> float:
    """The step of the matrix that the accumulators of these codes stand for."""
    return float(scale_to_float(linear.scale)) / 2.0 ** (linear.shift - 1)


def _dense(linear: PackedLinear) -> Dense:
    return Dense(Integers(linear.unpacked(), _step(linear)).dequantized())


@dataclass(frozen=True, kw_only=True)
class _TableRope(Rope):
    """Rotary embedding by the packed table instead of by frequencies."""

    packed: NDArray[np.int16]

    def table(
        self, n: int, head_dim: int, context: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cosines and sines of the first ``n`` positions."""
        cos, sin = np.split(self.packed[:n] / (1 << ROPE_FRAC), 2, axis=1)
        return cos, sin


def _vocabulary(model: PackedModel) -> tuple[Dense, Dense]:
    """Embedding and head."""
    if (coded := model.vocabulary) is not None:
        return _dense(coded.embedding), _dense(coded.head)
    rows = model.head_rows.astype(np.float64) * model.head_scale
    rows *= 2.0 ** -(LOGIT_SHIFT + model.head_shift - 1)
    return (
        Dense(model.embedding * np.float32(2.0**-model.embedding_frac)),
        Dense((model.head * rows[:, None]).astype(np.float32)),
    )


def reference(model: PackedModel) -> Decoder:
    """The packed model in floating point, inputs of its matrices rounded as on an accelerator:
    the yardstick of the integer path.

    Keys and values are rounded if they have fewer than eight bits; those of eight are part of what
    the integer path is measured by.
    """
    n_layers = len(model.layers)
    embedding, head = _vocabulary(model)
    config = DecoderConfig(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=n_layers,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.context,
        rms_norm_eps=float(scale_to_float(model.eps)),
        rope=_TableRope(packed=model.rope),
        bos_token_id=model.bos,
        eos_token_id=model.eos,
        gate=model.gate,
        windows=tuple(model.layers[i].window for i in range(n_layers)),
    )
    return Decoder(
        name=model.name,
        architecture=model.architecture,
        config=config,
        layers=LazyLayers(lambda i: reference_layer(config, model.layers[i]), n_layers),
        embed_tokens=embedding,
        norm=_gamma(model.norm),
        lm_head=head,
        activation_bits=model.a_bits,
        head_bits=model.a_bits,
        activation_groups=model.a_groups,
        key_bits=model.key_bits if model.key_bits < 8 else None,
        value_bits=model.value_bits if model.value_bits < 8 else None,
    )

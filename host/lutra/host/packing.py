"""From a checkpoint to integers: every rounding that happens before the token path, once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lutra.host.errors import LutraError
from lutra.host.models import Model
from lutra.host.models.bitnet import BitLinear, BitNet
from lutra.host.models.llama import Llama
from lutra.host.quantize import QuantizedMatrix, quantize_layers, rounded_llama
from lutra.sim.golden.arith.fixed import round_shift
from lutra.sim.golden.arith.scale import Scale, scale_from_float
from lutra.sim.golden.matmul.engine import GroupedWeights
from lutra.sim.golden.matmul.format import W_BITS, Format
from lutra.sim.golden.vector.residual import LOGIT_SHIFT
from lutra.sim.golden.vector.rope import rope_table

__all__ = [
    "ACC_MAX",
    "HEAD_MAX",
    "LOGIT_ACC_MAX",
    "Gate",
    "PackedLayer",
    "PackedLinear",
    "PackedModel",
    "PackedNorm",
    "default_format",
    "pack_bitnet",
    "pack_llama",
    "pack_model",
]

ACC_MAX = (1 << 27) - 1
"""Largest accumulator: the vector unit takes 28 bits."""
LOGIT_ACC_MAX = (1 << 23) - 1
"""Largest accumulator of the head: times an int16 row scale, it still gives an int32 logit."""
HEAD_MAX = 121
"""The head's rows are integers of five balanced trits, so that the ternary engine takes them."""
_SHIFT_MAX = 15
_INT16_MAX = 32767
_MAX_FRAC = 24
_TERNARY = Format(w_bits=2, a_bits=8, ternary=True)
_W4A8 = Format(w_bits=4, a_bits=8)


class Gate(Enum):
    """What the feed-forward part makes of its gate."""

    RELU2 = "relu2"
    SILU = "silu"


@dataclass(frozen=True)
class PackedLinear:
    """A matrix: its product is ``round_shift(doubled @ a, shift)``, times ``scale``.

    ``doubled`` are twice the weights, integers, so that integer weights have a shift of 1.
    """

    weights: GroupedWeights
    scale: Scale
    shift: int

    @cached_property
    def peak(self) -> int:
        """Largest sum of a row's doubled weights, all taken positive."""
        return _peak(self.weights)


@dataclass(frozen=True)
class PackedNorm:
    """RMSNorm weights as int16 with ``frac`` fraction bits."""

    gamma: NDArray[np.int16]
    frac: int


@dataclass(frozen=True, kw_only=True)
class PackedLayer:
    """One decoder layer; ``q_proj``'s scale contains log2(e) / sqrt(head_dim).

    Queries, keys and values share a shift, as do gate and up. A norm of None is none: values are
    only quantised.
    """

    input_norm: PackedNorm
    q_proj: PackedLinear
    k_proj: PackedLinear
    v_proj: PackedLinear
    attention_norm: PackedNorm | None
    o_proj: PackedLinear
    ffn_input_norm: PackedNorm
    gate: Gate
    gate_proj: PackedLinear
    up_proj: PackedLinear
    ffn_norm: PackedNorm | None
    down_proj: PackedLinear


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """A model in integers. A logit is worth ``head_scale`` times its token's activation scale.

    ``group`` is None where weights are integers, without groups.
    """

    name: str
    format: Format
    group: int | None
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    eos: int
    eps: Scale
    residual_frac: int
    embedding: NDArray[np.int16]  # [V, D]
    embedding_frac: int
    rope: NDArray[np.int16]  # [context, head_dim]
    layers: list[PackedLayer]
    norm: PackedNorm
    head: NDArray[np.int8]  # [V, D]
    head_rows: NDArray[np.int16]  # [V]
    head_shift: int
    head_scale: float


def _fraction_bits(peak: float, limit: int) -> int:
    """Most fraction bits with which ``peak`` stays within ``limit``."""
    return min(_MAX_FRAC, math.floor(math.log2(limit / peak))) if peak > 0 else _MAX_FRAC


def _pack_norm(weight: NDArray[np.float32], name: str) -> PackedNorm:
    frac = _fraction_bits(float(np.abs(weight).max()), _INT16_MAX)
    if frac < 0:
        raise LutraError(
            f"{name} reaches {np.abs(weight).max():.0f}, beyond int16: rescale the norm"
        )
    return PackedNorm(np.rint(weight * 2.0**frac).astype(np.int16), frac)


def _pack_head(
    embedding: NDArray[np.float32], q_max: int
) -> tuple[NDArray[np.int8], NDArray[np.int16], int, float]:
    row = np.abs(embedding).max(axis=1).astype(np.float64) / HEAD_MAX
    top = float(row.max())
    if top == 0:
        raise LutraError("the embedding is all zeros: the checkpoint is empty, copy it again")
    rows = np.maximum(np.rint(row / top * _INT16_MAX), 1).astype(np.int16)
    step = rows.astype(np.float64)[:, None] * (top / _INT16_MAX)
    head = np.clip(np.rint(embedding / step), -HEAD_MAX, HEAD_MAX).astype(np.int8)
    peak = 2 * int(np.abs(head.astype(np.int64)).sum(axis=1).max())
    shift = _shift(peak, q_max, LOGIT_ACC_MAX, least=1)
    return head, rows, shift, top / _INT16_MAX * 2.0 ** (LOGIT_SHIFT + shift - 1)


def _peak(weights: GroupedWeights) -> int:
    return int(np.abs(weights.doubled()).sum(axis=1).max(initial=0))


def _shift(peak: int, q_max: int, limit: int, least: int = 0) -> int:
    """Least shift with which no sum of activations up to ``q_max`` passes ``limit``."""
    for shift in range(least, _SHIFT_MAX + 1):
        if int(round_shift(peak * q_max, shift)) <= limit:
            return shift
    raise LutraError(
        f"sums of up to {peak * q_max} do not fit the accumulators even with a shift of "
        f"{_SHIFT_MAX}: the model's rows are too deep"
    )


def _linears(
    parts: Sequence[tuple[QuantizedMatrix, float]], q_max: int, least: int = 0
) -> list[PackedLinear]:
    """Matrices with a factor each that share one shift."""
    peak = max(_peak(matrix.weights) for matrix, _ in parts)
    shift = _shift(peak, q_max, ACC_MAX, least)
    return [
        PackedLinear(m.weights, scale_from_float(m.scale * factor * 2.0 ** (shift - 1)), shift)
        for m, factor in parts
    ]


def _residual_frac(model: Model) -> int:
    """Binary point that leaves a factor of 16 above what a fixed token sequence reaches."""
    n = min(64, model.config.max_position_embeddings)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, n)
    tokens[0] = model.config.bos_token_id
    return min(20, _fraction_bits(16 * model.residual_peak(tokens), (1 << 31) - 1))


def _pack(
    model: Model, layers: list[PackedLayer], format: Format, group: int | None
) -> PackedModel:
    """What all architectures have in common: embedding, rotary table, last norm and head."""
    c = model.config
    residual_frac = _residual_frac(model)
    peak = float(np.abs(model.embed_tokens).max())
    embedding_frac = min(residual_frac, _fraction_bits(peak, _INT16_MAX))
    if embedding_frac < 0:
        raise LutraError(f"the embedding reaches {peak:.0f}, beyond int16: rescale the model")
    head, head_rows, head_shift, head_scale = _pack_head(model.embed_tokens, format.q_max)
    return PackedModel(
        name=model.name,
        format=format,
        group=group,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        n_heads=c.num_attention_heads,
        n_kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        vocab_size=c.vocab_size,
        context=c.max_position_embeddings,
        eos=c.eos_token_id,
        eps=scale_from_float(c.rms_norm_eps),
        residual_frac=residual_frac,
        embedding=np.rint(model.embed_tokens * 2.0**embedding_frac).astype(np.int16),
        embedding_frac=embedding_frac,
        rope=rope_table(c.max_position_embeddings, c.head_dim, c.rope_theta).astype(np.int16),
        layers=layers,
        norm=_pack_norm(model.norm, "norm"),
        head=head,
        head_rows=head_rows,
        head_shift=head_shift,
        head_scale=head_scale,
    )


def default_format(model: Model) -> Format:
    """The format that a model runs in if no other is asked for."""
    return _TERNARY if isinstance(model, BitNet) else _W4A8


def pack_model(model: Model, format: Format | None = None, group: int = 64) -> PackedModel:
    """Round a checkpoint to integers; deterministic."""
    if isinstance(model, BitNet):
        return pack_bitnet(model, format or default_format(model))
    return pack_llama(model, format or default_format(model), group)


def pack_bitnet(model: BitNet, format: Format = _TERNARY) -> PackedModel:
    """Round a BitNet checkpoint, whose weights are integers already."""
    if format != _TERNARY:
        raise LutraError(
            f"the weights of {model.name} are ternary and its gate is squared, which leaves no "
            f"room for wider activations: use --format {_TERNARY}, not {format}"
        )

    def linears(*parts: tuple[BitLinear, float]) -> list[PackedLinear]:
        matrices = [
            (
                QuantizedMatrix(
                    GroupedWeights.from_integers(part.weight.astype(np.int64)), part.scale
                ),
                factor,
            )
            for part, factor in parts
        ]
        return _linears(matrices, format.q_max, least=1)

    softmax = math.log2(math.e) / math.sqrt(model.config.head_dim)
    layers: list[PackedLayer] = []
    for i, layer in enumerate(model.layers):
        q, k, v = linears((layer.q_proj, softmax), (layer.k_proj, 1.0), (layer.v_proj, 1.0))
        gate, up = linears((layer.gate_proj, 1.0), (layer.up_proj, 1.0))
        (o,), (down,) = linears((layer.o_proj, 1.0)), linears((layer.down_proj, 1.0))
        layers.append(
            PackedLayer(
                input_norm=_pack_norm(layer.input_layernorm, f"layer {i} input_layernorm"),
                q_proj=q,
                k_proj=k,
                v_proj=v,
                attention_norm=_pack_norm(layer.attn_sub_norm, f"layer {i} attn_sub_norm"),
                o_proj=o,
                ffn_input_norm=_pack_norm(
                    layer.post_attention_layernorm, f"layer {i} post_attention_layernorm"
                ),
                gate=Gate.RELU2,
                gate_proj=gate,
                up_proj=up,
                ffn_norm=_pack_norm(layer.ffn_sub_norm, f"layer {i} ffn_sub_norm"),
                down_proj=down,
            )
        )
    return _pack(model, layers, format, None)


def pack_llama(model: Llama, format: Format = _W4A8, group: int = 64) -> PackedModel:
    """Round a Llama checkpoint to a format, in groups of ``group`` weights."""
    if format.ternary:
        choice = ", ".join(f"W{w}A{format.a_bits}" for w in W_BITS)
        raise LutraError(
            f"the weights of {model.name} are not ternary, {format} is only for weights that are: "
            f"use --format {choice}"
        )
    softmax = math.log2(math.e) / math.sqrt(model.config.head_dim)
    layers: list[PackedLayer] = []
    quantized = quantize_layers(model, format, group)
    for i, (layer, found) in enumerate(zip(model.layers, quantized, strict=True)):

        def linears(*names: str, found: dict[str, QuantizedMatrix] = found) -> list[PackedLinear]:
            parts = [(found[name], softmax if name == "q_proj" else 1.0) for name in names]
            return _linears(parts, format.q_max)

        q, k, v = linears("q_proj", "k_proj", "v_proj")
        gate, up = linears("gate_proj", "up_proj")
        (o,), (down,) = linears("o_proj"), linears("down_proj")
        layers.append(
            PackedLayer(
                input_norm=_pack_norm(layer.input_layernorm, f"layer {i} input_layernorm"),
                q_proj=q,
                k_proj=k,
                v_proj=v,
                attention_norm=None,
                o_proj=o,
                ffn_input_norm=_pack_norm(
                    layer.post_attention_layernorm, f"layer {i} post_attention_layernorm"
                ),
                gate=Gate.SILU,
                gate_proj=gate,
                up_proj=up,
                ffn_norm=None,
                down_proj=down,
            )
        )
    return _pack(rounded_llama(model, format, quantized), layers, format, group)

"""From a checkpoint to integers: every rounding that happens before the token path, once."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.host.errors import LutraError
from lutra.host.models.bitnet import BitNet
from lutra.sim.golden.arith.scale import Scale, scale_from_float
from lutra.sim.golden.vector.residual import LOGIT_SHIFT
from lutra.sim.golden.vector.rope import rope_table

__all__ = ["HEAD_PLANES", "PackedLayer", "PackedLinear", "PackedModel", "PackedNorm", "pack_bitnet"]

HEAD_PLANES = 5
"""The head's rows are integers of five balanced trits, -121..121."""
_HEAD_MAX = (3**HEAD_PLANES - 1) // 2
_INT16_MAX = 32767
_MAX_FRAC = 24


@dataclass(frozen=True)
class PackedLinear:
    """Integer weights ``[N, K]`` and the scale that multiplies them."""

    weight: NDArray[np.int8]
    scale: Scale


@dataclass(frozen=True)
class PackedNorm:
    """RMSNorm weights as int16 with ``frac`` fraction bits."""

    gamma: NDArray[np.int16]
    frac: int


@dataclass(frozen=True, kw_only=True)
class PackedLayer:
    """One decoder layer; ``q_proj``'s scale contains log2(e) / sqrt(head_dim)."""

    input_norm: PackedNorm
    q_proj: PackedLinear
    k_proj: PackedLinear
    v_proj: PackedLinear
    attention_norm: PackedNorm
    o_proj: PackedLinear
    ffn_input_norm: PackedNorm
    gate_proj: PackedLinear
    up_proj: PackedLinear
    ffn_norm: PackedNorm
    down_proj: PackedLinear


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """A model in integers. A logit is worth ``head_scale`` times its token's activation scale."""

    name: str
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


def _pack_head(embedding: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.int16], float]:
    row = np.abs(embedding).max(axis=1).astype(np.float64) / _HEAD_MAX
    top = float(row.max())
    if top == 0:
        raise LutraError("the embedding is all zeros: the checkpoint is empty, copy it again")
    rows = np.maximum(np.rint(row / top * _INT16_MAX), 1).astype(np.int16)
    step = rows.astype(np.float64)[:, None] * (top / _INT16_MAX)
    head = np.clip(np.rint(embedding / step), -_HEAD_MAX, _HEAD_MAX).astype(np.int8)
    return head, rows, top / _INT16_MAX * (1 << LOGIT_SHIFT)


def _residual_frac(model: BitNet) -> int:
    """Binary point that leaves a factor of 16 above what a fixed token sequence reaches."""
    n = min(64, model.config.max_position_embeddings)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, n)
    tokens[0] = model.config.bos_token_id
    return min(20, _fraction_bits(16 * model.residual_peak(tokens), (1 << 31) - 1))


def pack_bitnet(model: BitNet) -> PackedModel:
    """Round a BitNet checkpoint to integers; deterministic."""
    c = model.config

    def linear(name: str, i: int, factor: float = 1.0) -> PackedLinear:
        source = getattr(model.layers[i], name)
        return PackedLinear(source.weight, scale_from_float(source.scale * factor))

    softmax = math.log2(math.e) / math.sqrt(c.head_dim)
    layers = [
        PackedLayer(
            input_norm=_pack_norm(layer.input_layernorm, f"layer {i} input_layernorm"),
            q_proj=linear("q_proj", i, softmax),
            k_proj=linear("k_proj", i),
            v_proj=linear("v_proj", i),
            attention_norm=_pack_norm(layer.attn_sub_norm, f"layer {i} attn_sub_norm"),
            o_proj=linear("o_proj", i),
            ffn_input_norm=_pack_norm(
                layer.post_attention_layernorm, f"layer {i} post_attention_layernorm"
            ),
            gate_proj=linear("gate_proj", i),
            up_proj=linear("up_proj", i),
            ffn_norm=_pack_norm(layer.ffn_sub_norm, f"layer {i} ffn_sub_norm"),
            down_proj=linear("down_proj", i),
        )
        for i, layer in enumerate(model.layers)
    ]
    residual_frac = _residual_frac(model)
    peak = float(np.abs(model.embed_tokens).max())
    embedding_frac = min(residual_frac, _fraction_bits(peak, _INT16_MAX))
    if embedding_frac < 0:
        raise LutraError(f"the embedding reaches {peak:.0f}, beyond int16: rescale the model")
    head, head_rows, head_scale = _pack_head(model.embed_tokens)
    return PackedModel(
        name=model.name,
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
        head_scale=head_scale,
    )

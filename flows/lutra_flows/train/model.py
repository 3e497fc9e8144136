"""BitNet b1.58 with quantisation-aware training; module names are the checkpoint's names.

Source: "BitNet b1.58 2B4T Technical Report" (arXiv 2504.12285) and its Hugging Face model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "BitNetForCausalLM",
    "BitNetParams",
    "RMSNorm",
    "linear",
    "quantize_activation",
    "rope_tables",
    "rotate",
    "ternarize",
]


@dataclass(frozen=True, kw_only=True)
class BitNetParams:
    """Sizes of a BitNet b1.58 model, named as in ``config.json``."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 256
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads}), not {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, not {self.head_dim}")


def ternarize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Ternary values and the scale they are multiplied by: the absmean of the whole tensor."""
    scale = weight.abs().mean().clamp_min(1e-5)
    return (weight / scale).round().clamp(-1, 1), scale


def quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values (in a float tensor) and the per-token step they are multiplied by."""
    steps_per_unit = 127.0 / x.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    return (x * steps_per_unit).round().clamp(-128, 127), steps_per_unit.reciprocal()


class _BitLinear(torch.autograd.Function):
    """Rows of several weights times one activation; gradients straight through both roundings.

    Activations are small integers and weights are -1, 0, 1: exact in bfloat16 too, so the compute
    type changes only the rounding of the products' sums.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        q, step = quantize_activation(x.float())
        ternary, scales = zip(*map(ternarize, weights), strict=True)
        t = torch.cat([w.to(dtype) for w in ternary])  # [rows, in]
        scale = torch.cat([s.expand(len(w)) for s, w in zip(scales, weights, strict=True)])
        q = q.to(dtype)
        ctx.save_for_backward(q, step, t, scale)
        ctx.rows = [len(w) for w in weights]
        ctx.x_dtype = x.dtype
        return F.linear(q, t) * (step * scale).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        q, step, t, scale = ctx.saved_tensors
        grad_x = (grad * scale.to(grad.dtype)) @ t
        steps = (grad * step.to(grad.dtype)).flatten(0, -2)  # [tokens, rows]
        grad_w = (steps.T @ q.flatten(0, -2)).float()
        return grad_x.to(ctx.x_dtype), None, *grad_w.split(ctx.rows)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last axis, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _rms_norm(x, self.weight, self.eps)


def linear(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer without bias."""
    return nn.Linear(n_in, n_out, bias=False)


def rope_tables(params: BitNetParams) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[position, head_dim]`` of the rotary position embedding."""
    exponents = torch.arange(0, params.head_dim, 2) / params.head_dim
    positions = torch.arange(params.max_position_embeddings)
    angles = torch.outer(positions, params.rope_theta**-exponents)
    return angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads ``[..., tokens, head_dim]``, low half against high half."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


class _Attention(nn.Module):
    def __init__(self, params: BitNetParams, dtype: torch.dtype) -> None:
        super().__init__()
        self.params, self.dtype = params, dtype
        q_size = params.num_attention_heads * params.head_dim
        kv_size = params.num_key_value_heads * params.head_dim
        self.q_proj = linear(params.hidden_size, q_size)
        self.k_proj = linear(params.hidden_size, kv_size)
        self.v_proj = linear(params.hidden_size, kv_size)
        self.o_proj = linear(q_size, params.hidden_size)
        self.attn_sub_norm = RMSNorm(q_size, params.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        p = self.params
        batch, n_tokens, _ = x.shape
        weights = (self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        qkv = _BitLinear.apply(x, self.dtype, *weights)
        heads = qkv.view(batch, n_tokens, -1, p.head_dim).transpose(1, 2)
        n_q, n_kv = p.num_attention_heads, p.num_key_value_heads
        qk, v = heads.split([n_q + n_kv, n_kv], dim=1)
        qk = rotate(qk, cos, sin).to(self.dtype)
        q, k = qk.split([n_q, n_kv], dim=1)
        k, v = (t.repeat_interleave(n_q // n_kv, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = self.attn_sub_norm(out.transpose(1, 2).reshape(batch, n_tokens, -1))
        return _BitLinear.apply(out, self.dtype, self.o_proj.weight)


class _MLP(nn.Module):
    def __init__(self, params: BitNetParams, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.gate_proj = linear(params.hidden_size, params.intermediate_size)
        self.up_proj = linear(params.hidden_size, params.intermediate_size)
        self.down_proj = linear(params.intermediate_size, params.hidden_size)
        self.ffn_sub_norm = RMSNorm(params.intermediate_size, params.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = _BitLinear.apply(x, self.dtype, self.gate_proj.weight, self.up_proj.weight)
        gate, up = gate_up.chunk(2, -1)
        hidden = self.ffn_sub_norm(F.relu(gate).square() * up)
        return _BitLinear.apply(hidden, self.dtype, self.down_proj.weight)


class _DecoderLayer(nn.Module):
    def __init__(self, params: BitNetParams, dtype: torch.dtype, dropout: float) -> None:
        super().__init__()
        self.self_attn = _Attention(params, dtype)
        self.mlp = _MLP(params, dtype)
        self.input_layernorm = RMSNorm(params.hidden_size, params.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(params.hidden_size, params.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class _Decoder(nn.Module):
    def __init__(self, params: BitNetParams, dtype: torch.dtype, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(params.vocab_size, params.hidden_size)
        n_layers = params.num_hidden_layers
        self.layers = nn.ModuleList(_DecoderLayer(params, dtype, dropout) for _ in range(n_layers))
        self.norm = RMSNorm(params.hidden_size, params.rms_norm_eps)


class BitNetForCausalLM(nn.Module):
    """BitNet b1.58: logits ``[batch, tokens, vocab]`` of token ids ``[batch, tokens]``.

    Parameters
    ----------
    params : :class:`BitNetParams`
    dtype : type of the matmuls' operands; float32 to evaluate, bfloat16 to train faster.
    dropout : share of each block's output that is dropped while training.
    """

    def __init__(
        self,
        params: BitNetParams,
        *,
        dtype: torch.dtype = torch.float32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.params, self.dtype = params, dtype
        self.model = _Decoder(params, dtype, dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, 0.02)
        cos, sin = rope_tables(params)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        n_tokens = tokens.shape[-1]
        cos, sin = self.get_buffer("cos")[:n_tokens], self.get_buffer("sin")[:n_tokens]
        embedding = self.model.embed_tokens.weight
        x = F.embedding(tokens, embedding)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        x = self.model.norm(x)
        return F.linear(x.to(self.dtype), embedding.to(self.dtype)).float()

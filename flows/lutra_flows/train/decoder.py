"""A decoder in floating point, around any attention and MLP; module names are the checkpoint's.

Source: "Llama 2: Open Foundation and Fine-Tuned Chat Models" (arXiv 2307.09288), whose residual
blocks BitNet b1.58 has as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "CausalLM",
    "DecoderLayer",
    "DecoderParams",
    "RMSNorm",
    "attend",
    "linear",
    "rope_tables",
    "rotate",
]


@dataclass(frozen=True, kw_only=True)
class DecoderParams:
    """Sizes of a model, named as in ``config.json``."""

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


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last axis, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def linear(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer without bias."""
    return nn.Linear(n_in, n_out, bias=False)


def rope_tables(params: DecoderParams) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[position, head_dim]`` of the rotary position embedding."""
    exponents = torch.arange(0, params.head_dim, 2) / params.head_dim
    positions = torch.arange(params.max_position_embeddings)
    angles = torch.outer(positions, params.rope_theta**-exponents)
    return angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads ``[..., tokens, head_dim]``, low half against high half."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def attend(
    params: DecoderParams, qkv: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> Tensor:
    """Causal attention of rows ``[batch, tokens, (q + k + v) * head_dim]``, in ``dtype``."""
    batch, n_tokens, _ = qkv.shape
    heads = qkv.view(batch, n_tokens, -1, params.head_dim).transpose(1, 2)
    n_q, n_kv = params.num_attention_heads, params.num_key_value_heads
    qk, v = heads.split([n_q + n_kv, n_kv], dim=1)
    q, k = rotate(qk, cos, sin).to(dtype).split([n_q, n_kv], dim=1)
    k, v = (t.repeat_interleave(n_q // n_kv, 1) for t in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(batch, n_tokens, -1)


class DecoderLayer(nn.Module):
    """One layer: attention and MLP, each normalised before and added to the residual stream."""

    def __init__(
        self, params: DecoderParams, self_attn: nn.Module, mlp: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = RMSNorm(params.hidden_size, params.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(params.hidden_size, params.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class _Decoder(nn.Module):
    def __init__(self, params: DecoderParams, layer: Callable[[], DecoderLayer]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(params.vocab_size, params.hidden_size)
        self.layers = nn.ModuleList(layer() for _ in range(params.num_hidden_layers))
        self.norm = RMSNorm(params.hidden_size, params.rms_norm_eps)


class CausalLM(nn.Module):
    """Logits ``[batch, tokens, vocab]`` of token ids ``[batch, tokens]``; the head is tied.

    Parameters
    ----------
    params : :class:`DecoderParams`
    layer : makes one layer; called once for each of them.
    dtype : type of the matmuls' operands; float32 to evaluate, bfloat16 to train faster.
    """

    def __init__(
        self, params: DecoderParams, layer: Callable[[], DecoderLayer], *, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.params, self.dtype = params, dtype
        self.model = _Decoder(params, layer)
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

"""Llama in floating point; module names are the checkpoint's names.

Source: "Llama 2: Open Foundation and Fine-Tuned Chat Models" (arXiv 2307.09288) and the
``LlamaForCausalLM`` of Hugging Face transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lutra_flows.train.model import (
    BitNetForCausalLM,
    BitNetParams,
    RMSNorm,
    linear,
    rope_tables,
    rotate,
)

__all__ = ["CausalLM", "LlamaForCausalLM", "LlamaParams"]


@dataclass(frozen=True, kw_only=True)
class LlamaParams(BitNetParams):
    """Sizes of a Llama model, named as in ``config.json``."""

    intermediate_size: int = 384
    num_hidden_layers: int = 3


class _Attention(nn.Module):
    def __init__(self, params: LlamaParams, dtype: torch.dtype) -> None:
        super().__init__()
        self.params, self.dtype = params, dtype
        q_size = params.num_attention_heads * params.head_dim
        kv_size = params.num_key_value_heads * params.head_dim
        self.q_proj = linear(params.hidden_size, q_size)
        self.k_proj = linear(params.hidden_size, kv_size)
        self.v_proj = linear(params.hidden_size, kv_size)
        self.o_proj = linear(q_size, params.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        p = self.params
        batch, n_tokens, _ = x.shape
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        qkv = F.linear(x.to(self.dtype), weight.to(self.dtype))
        heads = qkv.view(batch, n_tokens, -1, p.head_dim).transpose(1, 2)
        n_q, n_kv = p.num_attention_heads, p.num_key_value_heads
        qk, v = heads.split([n_q + n_kv, n_kv], dim=1)
        q, k = rotate(qk, cos, sin).to(self.dtype).split([n_q, n_kv], dim=1)
        k, v = (t.repeat_interleave(n_q // n_kv, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = out.transpose(1, 2).reshape(batch, n_tokens, -1)
        return F.linear(out, self.o_proj.weight.to(self.dtype))


class _MLP(nn.Module):
    def __init__(self, params: LlamaParams, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.gate_proj = linear(params.hidden_size, params.intermediate_size)
        self.up_proj = linear(params.hidden_size, params.intermediate_size)
        self.down_proj = linear(params.intermediate_size, params.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat([self.gate_proj.weight, self.up_proj.weight])
        gate, up = F.linear(x.to(self.dtype), weight.to(self.dtype)).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down_proj.weight.to(self.dtype))


class _DecoderLayer(nn.Module):
    def __init__(self, params: LlamaParams, dtype: torch.dtype, dropout: float) -> None:
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
    def __init__(self, params: LlamaParams, dtype: torch.dtype, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(params.vocab_size, params.hidden_size)
        n_layers = params.num_hidden_layers
        self.layers = nn.ModuleList(_DecoderLayer(params, dtype, dropout) for _ in range(n_layers))
        self.norm = RMSNorm(params.hidden_size, params.rms_norm_eps)


class LlamaForCausalLM(nn.Module):
    """Llama: logits ``[batch, tokens, vocab]`` of token ids ``[batch, tokens]``.

    Parameters
    ----------
    params : :class:`LlamaParams`
    dtype : type of the matmuls' operands; float32 to evaluate, bfloat16 to train faster.
    dropout : share of each block's output that is dropped while training.
    """

    def __init__(
        self,
        params: LlamaParams,
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


CausalLM = BitNetForCausalLM | LlamaForCausalLM

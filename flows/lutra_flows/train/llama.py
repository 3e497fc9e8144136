"""Llama in floating point; module names are the checkpoint's names.

Source: "Llama 2: Open Foundation and Fine-Tuned Chat Models" (arXiv 2307.09288) and the
``LlamaForCausalLM`` of Hugging Face transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lutra_flows.train.decoder import CausalLM, DecoderLayer, DecoderParams, attend, linear

__all__ = ["LlamaForCausalLM", "LlamaParams"]


@dataclass(frozen=True, kw_only=True)
class LlamaParams(DecoderParams):
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
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        qkv = F.linear(x.to(self.dtype), weight.to(self.dtype))
        out = attend(self.params, qkv, cos, sin, self.dtype)
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


class LlamaForCausalLM(CausalLM):
    """Llama: logits ``[batch, tokens, vocab]`` of token ids ``[batch, tokens]``.

    Parameters
    ----------
    params : :class:`LlamaParams`
    dtype : type of the matmuls' operands; float32 to evaluate, bfloat16 to train faster.
    dropout : share of each block's output that is dropped while training.
    """

    def __init__(
        self, params: LlamaParams, *, dtype: torch.dtype = torch.float32, dropout: float = 0.0
    ) -> None:
        def layer() -> DecoderLayer:
            attention, mlp = _Attention(params, dtype), _MLP(params, dtype)
            return DecoderLayer(params, attention, mlp, dropout)

        super().__init__(params, layer, dtype=dtype)

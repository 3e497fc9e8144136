"""BitNet b1.58 with quantisation-aware training; module names are the checkpoint's names.

Source: "BitNet b1.58 2B4T Technical Report" (arXiv 2504.12285) and its Hugging Face model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lutra_flows.train.decoder import (
    CausalLM,
    DecoderLayer,
    DecoderParams,
    RMSNorm,
    attend,
    linear,
)

__all__ = ["BitNetForCausalLM", "BitNetParams", "quantize_activation", "ternarize"]


@dataclass(frozen=True, kw_only=True)
class BitNetParams(DecoderParams):
    """Sizes of a BitNet b1.58 model, named as in ``config.json``."""


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
        weights = (self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        qkv = _BitLinear.apply(x, self.dtype, *weights)
        out = self.attn_sub_norm(attend(self.params, qkv, cos, sin, self.dtype))
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


class BitNetForCausalLM(CausalLM):
    """BitNet b1.58: logits ``[batch, tokens, vocab]`` of token ids ``[batch, tokens]``.

    Parameters
    ----------
    params : :class:`BitNetParams`
    dtype : type of the matmuls' operands; float32 to evaluate, bfloat16 to train faster.
    dropout : share of each block's output that is dropped while training.
    """

    def __init__(
        self, params: BitNetParams, *, dtype: torch.dtype = torch.float32, dropout: float = 0.0
    ) -> None:
        def layer() -> DecoderLayer:
            attention, mlp = _Attention(params, dtype), _MLP(params, dtype)
            return DecoderLayer(params, attention, mlp, dropout)

        super().__init__(params, layer, dtype=dtype)

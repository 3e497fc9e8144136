"""Scales of a matrix's inputs, folded into what makes the inputs: the layer computes the same.

The input of queries, keys and values, and that of gate and up, come out of a norm, whose weights
are divided. That of the down projection is a product with the rows of ``up_proj``, and that of the
output projection a mean of the rows of ``v_proj``'s outputs, unless a norm stands between.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense
from lutra.models.decoder import DecoderLayer
from lutra.quantize.calibration import STACKS

__all__ = ["fold", "shared"]

_Single = NDArray[np.float32]
# What makes a stack's input: a norm that always is, or a norm that may be.
_NORMS = {
    "q_proj": "input_layernorm",
    "o_proj": "attn_sub_norm",
    "gate_proj": "post_attention_layernorm",
    "down_proj": "ffn_sub_norm",
}


def shared(layer: DecoderLayer, stack: str, values: _Single, head_dim: int) -> _Single:
    """``values`` ``[K]`` of a stack's inputs, made equal (to the largest) where scales must be:
    of the heads of the output projection's input that share a head of values."""
    if stack != "o_proj" or layer.attn_sub_norm is not None:
        return values
    n_kv = layer.v_proj.shape[0] // head_dim
    heads = values.reshape(n_kv, -1, head_dim)
    return np.broadcast_to(heads.max(axis=1, keepdims=True), heads.shape).reshape(-1)


def fold(layer: DecoderLayer, stack: str, scale: _Single, head_dim: int) -> DecoderLayer:
    """A layer whose ``stack`` has its columns multiplied by ``scale``, and its input divided.

    Matrices are dense. ``scale`` is as :func:`shared` gives it.
    """
    changed: dict[str, Dense | _Single] = {
        name: Dense(layer.linear(name).dequantized() * scale) for name in STACKS[stack]
    }
    norm: _Single | None = getattr(layer, _NORMS[stack])
    if norm is not None:
        changed[_NORMS[stack]] = norm / scale
    elif stack == "down_proj":
        changed["up_proj"] = Dense(layer.up_proj.dequantized() / scale[:, None])
    else:
        n_kv = layer.v_proj.shape[0] // head_dim
        rows = scale.reshape(n_kv, -1, head_dim)[:, 0].reshape(-1)
        changed["v_proj"] = Dense(layer.v_proj.dequantized() / rows[:, None])
        if layer.v_bias is not None:
            changed["v_bias"] = layer.v_bias / rows
    return replace(layer, **changed)

"""Facts of a packed model that every device needs beside its arrays, each derived once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.scale import SCALE, Scale, scale_from_float
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedLayer, PackedModel, PackedNorm
from lutra_golden.model.padding import built_head_dim, pad_layer, pad_table
from lutra_golden.vector.norm import ONE_FRAC

__all__ = [
    "STACKS",
    "LoweredNorm",
    "Norms",
    "common_kv_bits",
    "embedding_shift",
    "layer_norms",
    "lower_layer",
    "lower_norm",
    "lower_rope",
    "padded_head_eps",
    "residual_unit",
]

STACKS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Matrices of a layer in the order they are used; those that share an input share a shift."""


def residual_unit(model: PackedModel) -> Scale:
    """Scale of one step of the residual stream, ``2**-residual_frac``."""
    return Scale(
        np.asarray(1 << (SCALE.m_width - 1)), np.asarray(1 - SCALE.m_width - model.residual_frac)
    )


def embedding_shift(model: PackedModel) -> int:
    """Left shift that takes an embedding row to the residual stream."""
    return model.residual_frac - model.embedding_frac


def padded_head_eps(model: PackedModel) -> int:
    """Epsilon of head norms, in ``2**-32``, for the mean over a padded head."""
    return round(model.head_eps * model.head_dim / built_head_dim(model.head_dim))


def common_kv_bits(model: PackedModel, runner: str) -> int:
    """Bits of keys and values where both have one width; LutraError if the model's differ.

    ``runner`` begins the message: ``device cuda``, ``an accelerator``.
    """
    if model.key_bits != model.value_bits:
        raise LutraError(
            f"{runner} caches keys and values with the same number of bits, the model is packed "
            f"for {model.kv}: run it with -dev cpu or golden, or pack it again with --kv 8 or 4"
        )
    return model.key_bits


@dataclass(frozen=True, kw_only=True)
class LoweredNorm:
    """A norm over ``n`` values: int16 ``gamma`` with ``frac`` fraction bits, and ``1 / n``.

    Without ``normalise`` rows are only multiplied by ``gamma``, which is then all ones. Groups of
    its results do not reach from one ``run`` of elements into the next.
    """

    gamma: NDArray[np.int16]
    frac: int
    inv_n: Scale
    normalise: bool
    run: int


def lower_norm(
    norm: PackedNorm | None, n: int, width: int | None = None, runs: int = 1
) -> LoweredNorm:
    """The norm over ``n`` values in rows of ``width`` (``n`` if left out), each of so many
    ``runs``; None only quantises."""
    inv_n = scale_from_float(1 / n)
    run = (n if width is None else width) // runs
    if norm is None:
        ones = np.full(run * runs, 1 << ONE_FRAC, np.int16)
        return LoweredNorm(gamma=ones, frac=ONE_FRAC, inv_n=inv_n, normalise=False, run=run)
    return LoweredNorm(gamma=norm.gamma, frac=norm.frac, inv_n=inv_n, normalise=True, run=run)


@dataclass(frozen=True, kw_only=True)
class Norms:
    """The four norms of a layer, in the order they are applied."""

    input: LoweredNorm
    attention: LoweredNorm
    ffn_input: LoweredNorm
    ffn: LoweredNorm


def layer_norms(model: PackedModel, layer: PackedLayer) -> Norms:
    """The norms of a layer of ``model``, whose heads may be padded already."""
    return Norms(
        input=lower_norm(layer.input_norm, model.hidden_size),
        attention=lower_norm(
            layer.attention_norm,
            model.n_heads * model.head_dim,
            layer.o_proj.depth,
            model.n_heads,
        ),
        ffn_input=lower_norm(layer.ffn_input_norm, model.hidden_size),
        ffn=lower_norm(layer.ffn_norm, model.intermediate_size),
    )


def lower_layer(model: PackedModel, layer: PackedLayer) -> PackedLayer:
    """The layer with heads padded to the size that devices are built for."""
    return pad_layer(layer, model.head_dim, built_head_dim(model.head_dim))


def lower_rope(model: PackedModel) -> NDArray[np.int16]:
    """The rotary table ``[context, built head_dim]`` for padded heads."""
    return pad_table(model.rope, built_head_dim(model.head_dim))

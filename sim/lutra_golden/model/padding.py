"""Heads padded to a size that accelerators are built for: a power of two, 32 or more.

Queries and keys get zeros behind each of the two halves that rotate, values behind the head, so
that scores and sums are those of the heads as they were. What comes out of attention has zeros
too, which the output projection's columns of zeros meet.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lutra_golden.control.isa import INSTRUCTION_BYTES
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.packed import HeadNorms, PackedLayer, PackedLinear, PackedNorm

__all__ = [
    "built_head_dim",
    "head_places",
    "pad_head_gamma",
    "pad_layer",
    "pad_table",
    "padded_group",
]


def built_head_dim(head_dim: int) -> int:
    """The size of heads in hardware: a head is a beat, which also holds an instruction."""
    return max(INSTRUCTION_BYTES, 1 << (head_dim - 1).bit_length())


def padded_group(group: int, head_dim: int) -> int:
    """Size of the output projection's groups once its heads are padded."""
    to = built_head_dim(head_dim)
    return group if to == head_dim else math.gcd(group, head_dim, to)


def pad_layer(layer: PackedLayer, head_dim: int, to: int) -> PackedLayer:
    """A layer with heads of ``to`` instead of ``head_dim``.

    Norms of heads expect an epsilon that is smaller as the mean is, ``head_dim / to`` times.
    """
    if to == head_dim:
        return layer
    norms = layer.head_norms
    if norms is not None:
        # a mean over padded heads is smaller, its root's reciprocal larger
        query, key = (pad_head_gamma(gamma, to) for gamma in (norms.query, norms.key))
        norms = HeadNorms(query, key, norms.frac)
    bias = layer.bias
    if bias is not None:
        rows = [len(part.weights.codes) for part in (layer.q_proj, layer.k_proj, layer.v_proj)]
        parts = np.split(bias.values, np.cumsum(rows)[:-1])
        padded = [
            _pad(part, 0, head_places(len(part) // head_dim, head_dim, to, halves), to, head_dim)
            for part, halves in zip(parts, (True, True, False), strict=True)
        ]
        centre = bias.centre
        if centre is not None:
            places = head_places(len(centre) // head_dim, head_dim, to, True)
            centre = _pad(centre, 0, places, to, head_dim)
        bias = replace(bias, values=np.concatenate(padded), centre=centre)
    norm = layer.attention_norm
    if norm is not None:
        places = head_places(len(norm.gamma) // head_dim, head_dim, to, False)
        norm = PackedNorm(_pad(norm.gamma, 0, places, to, head_dim), norm.frac)
    return replace(
        layer,
        q_proj=_pad_rows(layer.q_proj, head_dim, to, halves=True),
        k_proj=_pad_rows(layer.k_proj, head_dim, to, halves=True),
        v_proj=_pad_rows(layer.v_proj, head_dim, to, halves=False),
        o_proj=_pad_depth(layer.o_proj, head_dim, to),
        bias=bias,
        head_norms=norms,
        attention_norm=norm,
    )


def pad_head_gamma(gamma: NDArray[np.int16], to: int) -> NDArray[np.int16]:
    """Weights of a head norm for heads of ``to``: smaller, as a mean over zeros too is."""
    less = np.rint(gamma * math.sqrt(len(gamma) / to)).astype(np.int16)
    return _pad(less, 0, head_places(1, len(gamma), to, True), to, len(gamma))


def pad_table(rope: NDArray[np.int16], to: int) -> NDArray[np.int16]:
    """The rotary table ``[context, head_dim]``, cosines and sines, for heads of ``to``."""
    context, head_dim = rope.shape
    table = np.zeros((context, to), np.int16)
    table[:, head_places(1, head_dim, to, True)] = rope
    return table


def head_places(n_heads: int, head_dim: int, to: int, halves: bool) -> NDArray[np.int64]:
    """Indices that the elements of heads of ``head_dim`` have in heads of ``to``.

    With ``halves`` the two halves that rotate stay halves, as in queries and keys.
    """
    within = np.arange(head_dim)
    if halves:
        within[head_dim // 2 :] += to // 2 - head_dim // 2
    return (np.arange(n_heads)[:, None] * to + within).reshape(-1)


def _pad(
    values: NDArray[np.int16], fill: int, places: NDArray[np.int64], to: int, head_dim: int
) -> NDArray[np.int16]:
    out = np.full(len(values) // head_dim * to, fill, values.dtype)
    out[places] = values
    return out


def _with_weights(linear: PackedLinear, weights: GroupedWeights) -> PackedLinear:
    # padding with zeros leaves the peak unchanged
    return PackedLinear(weights, linear.scale, linear.shift, linear.peak)


def _pad_rows(linear: PackedLinear, head_dim: int, to: int, *, halves: bool) -> PackedLinear:
    w = linear.weights
    n, n_groups = w.scale.shape
    # rows of zeros: integers keep a scale of one, groups weigh nothing
    scale, zero = (1, int(w.zero[0, 0])) if w.ternary else (0, 0)
    n_heads = n // head_dim
    shape, places = n_heads * to, head_places(n_heads, head_dim, to, halves)
    codes = np.full((shape, w.codes.shape[1]), zero // 2, w.codes.dtype)
    scales = np.full((shape, n_groups), scale, np.int64)
    zeros = np.full((shape, n_groups), zero, np.int64)
    codes[places], scales[places], zeros[places] = w.codes, w.scale, w.zero
    offsets = None
    if w.offset is not None:
        offsets = np.zeros((shape, n_groups), np.int64)
        offsets[places] = w.offset
    weights = replace(w, codes=codes, scale=scales, zero=zeros, offset=offsets)
    return _with_weights(linear, weights)


def _pad_depth(linear: PackedLinear, head_dim: int, to: int) -> PackedLinear:
    w = linear.weights
    n, depth = w.codes.shape
    n_heads = depth // head_dim
    places = head_places(n_heads, head_dim, to, False)
    if w.ternary:
        codes = np.repeat(w.zero // 2, n_heads * to, axis=1).astype(w.codes.dtype)
        codes[:, places] = w.codes
        return _with_weights(linear, replace(w, codes=codes, group=n_heads * to))
    group = padded_group(w.group, head_dim)
    codes = np.zeros((n, n_heads * to), w.codes.dtype)
    codes[:, places] = w.codes

    def spread(values: NDArray[np.int64]) -> NDArray[np.int64]:
        fine = values.repeat(w.group // group, axis=1).reshape(n, n_heads, head_dim // group)
        out = np.zeros((n, n_heads, to // group), np.int64)
        out[:, :, : head_dim // group] = fine
        return out.reshape(n, -1)

    weights = GroupedWeights(
        codes=codes,
        scale=spread(w.scale),
        zero=spread(w.zero),
        bits=w.bits,
        group=group,
        offset=None if w.offset is None else spread(w.offset),
    )
    return _with_weights(linear, weights)

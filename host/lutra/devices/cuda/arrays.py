"""A packed model as the arrays and numbers that the GPU's kernels take."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lutra.packed.layers import layer_arrays
from lutra_golden.model.b128 import from_b128
from lutra_golden.model.lowered import common_kv_bits
from lutra_golden.model.packed import PackedLayer, PackedLinear, PackedModel
from lutra_golden.model.padding import built_head_dim, pad_layer, pad_table
from lutra_golden.model.shapes import Gate
from lutra_golden.model.stacks import alike
from lutra_golden.model.stored import StoredWeights
from lutra_kernels.model import ModelShape, PackedArrays

__all__ = ["lowered_around", "lowered_layer", "lowered_layers", "model_shape"]

_STACKS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def model_shape(model: PackedModel) -> ModelShape:
    """Sizes and formats of a model, its heads padded."""
    return ModelShape(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        head_dim=built_head_dim(model.head_dim),
        head_dim_used=model.head_dim,
        vocab_size=model.vocab_size,
        context=model.context,
        a_bits=model.a_bits,
        kv_bits=common_kv_bits(model, "cuda"),
        relu2=model.gate is Gate.RELU2,
        eps=model.eps,
        head_eps=model.head_eps,
        residual_frac=model.residual_frac,
        embedding_frac=model.embedding_frac,
        head_shift=model.head_shift,
    )


def lowered_around(model: PackedModel) -> PackedArrays:
    """What surrounds the layers."""
    arrays: dict[str, NDArray[np.generic]] = {
        "embedding": model.embedding,
        "rope": pad_table(model.rope, built_head_dim(model.head_dim)),
        "head": model.head,
        "head_rows": model.head_rows,
        "norm": model.norm.gamma,
    }
    return PackedArrays(arrays, {"norm": model.norm.frac})


def lowered_layers(model: PackedModel) -> Iterator[PackedArrays]:
    """The layers, one after another, so that one alone has to be in memory."""
    for i in range(len(model.layers)):
        yield lowered_layer(model, model.layers[i])


def lowered_layer(model: PackedModel, layer: PackedLayer) -> PackedArrays:
    """One layer."""
    layer = pad_layer(layer, model.head_dim, built_head_dim(model.head_dim))
    arrays, numbers = layer_arrays(layer)
    for names in _STACKS:
        linears = [layer.linear(name) for name in names]
        for name, linear, stored in zip(names, linears, alike(linears), strict=True):
            _add(arrays, numbers, name, linear, stored, model.a_bits)
    return PackedArrays(arrays, numbers)


def _add(
    arrays: dict[str, NDArray[np.generic]],
    numbers: dict[str, object],
    name: str,
    linear: PackedLinear,
    stored: StoredWeights,
    a_bits: int,
) -> None:
    """A matrix in the form that it shares with those that are computed with it."""
    arrays[f"{name}.codes"] = stored.codes
    if stored.scale is not None and stored.zero is not None:
        arrays[f"{name}.scale"], arrays[f"{name}.zero"] = stored.scale, stored.zero
    if a_bits == 16:
        codes = from_b128(stored.codes, stored.bits, stored.depth)
        groups = codes.reshape(len(codes), -1, stored.group or stored.depth)
        arrays[f"{name}.code_sums"] = groups.sum(axis=2, dtype=np.int64)
    # an exact peak, which takes long to find, is worth it where sums of 32 bits may do
    bound, q_max = stored.peak_bound, (1 << (a_bits - 1)) - 1
    numbers[name] = {
        "bits": stored.bits,
        "group": stored.group,
        "scale": [int(linear.scale.m), int(linear.scale.e)],
        "shift": linear.shift,
        "peak": bound if bound * q_max < 1 << 31 else linear.peak,
    }

"""Limits of a packed model that no device takes it beyond: sums, shifts and exponents."""

from weakref import WeakValueDictionary

import numpy as np

from lutra_golden.arith.fixed import round_shift
from lutra_golden.errors import LutraError
from lutra_golden.model.exponents import head_exponents, layer_exponents
from lutra_golden.model.limits import (
    ACC_MAX,
    EMBEDDED_SHIFT_MAX,
    EMBEDDING_SHIFT_MAX,
    HEAD_MAX,
    LOGIT_ACC_MAX,
    RESIDUAL_MAX,
)
from lutra_golden.model.lowered import embedding_shift
from lutra_golden.model.packed import CodedVocabulary, PackedLayer, PackedModel
from lutra_golden.model.shapes import LINEARS, Gate
from lutra_golden.vector.heads import FIXED_FRAC, FIXED_WIDTH
from lutra_golden.vector.norm import GATE_WIDTH_MAX

__all__ = ["check_numbers", "pass_numbers", "sum_bits", "sum_limit"]

_ROWS = 4096  # of the head, at a time
_ADVICE = "pack the model again"
# models whose numbers are in range, by their ids
_passed: WeakValueDictionary[int, PackedModel] = WeakValueDictionary()


def sum_bits(model: PackedModel, peak: int, shift: int) -> int:
    """Bits with sign of sums of ``model`` after their shift; ``peak`` as of a packed matrix."""
    return int(round_shift(peak * model.a_peak, shift)).bit_length() + 1


def check_numbers(model: PackedModel) -> None:
    """Refuse a model whose numbers can leave the range of the token path, with the figure.

    A model that has passed is not looked at again.
    """
    if _passed.get(id(model)) is model:
        return
    if model.vocabulary is not None:
        _check_vocabulary(model, model.vocabulary)
    elif not 0 <= (shift := embedding_shift(model)) <= EMBEDDING_SHIFT_MAX:
        raise LutraError(
            f"embeddings are shifted by {shift} bits, 0 to {EMBEDDING_SHIFT_MAX} fit the residual "
            f"stream: {_ADVICE}"
        )
    limit = LOGIT_ACC_MAX.bit_length() + 1
    if (
        model.vocabulary is None
        and sum_bits(model, 2 * HEAD_MAX * model.hidden_size, model.head_shift) > limit
    ):
        needed = sum_bits(model, _head_peak(model), model.head_shift)
        if needed > limit:
            raise LutraError(f"sums of the head need {needed} bits, there are {limit}: {_ADVICE}")
    head_exponents(model)
    for i in range(len(model.layers)):
        layer = model.layers[i]
        _check_sums(model, i, layer)
        _check_centre(i, layer)
        layer_exponents(model, i, layer)
    pass_numbers(model)


def pass_numbers(model: PackedModel) -> PackedModel:
    """Take it that the numbers of this model are in range; returns it."""
    _passed[id(model)] = model
    return model


def _check_vocabulary(model: PackedModel, vocabulary: CodedVocabulary) -> None:
    scale, (head, limit) = vocabulary.embedding.scale, (vocabulary.head, ACC_MAX.bit_length() + 1)
    shift = -(int(scale.e) + model.residual_frac)
    if not 0 <= shift <= EMBEDDED_SHIFT_MAX:
        raise LutraError(
            f"rows of the embedding are shifted by {shift} bits, 0 to {EMBEDDED_SHIFT_MAX} fit the "
            f"residual stream: {_ADVICE}"
        )
    reached = int(round_shift(vocabulary.embedding.stored.weight_bound * int(scale.m), shift))
    if reached > RESIDUAL_MAX:
        raise LutraError(
            f"rows of the embedding need {reached.bit_length() + 1} bits, there are "
            f"{RESIDUAL_MAX.bit_length() + 1}: {_ADVICE}"
        )
    if sum_bits(model, head.peak_bound, head.shift) > limit:
        needed = sum_bits(model, head.peak, head.shift)
        if needed > limit:
            raise LutraError(f"sums of the head need {needed} bits, there are {limit}: {_ADVICE}")


def _check_sums(model: PackedModel, i: int, layer: PackedLayer) -> None:
    for name in LINEARS:
        linear = layer.linear(name)
        limit = sum_limit(model.gate, name).bit_length() + 1
        if sum_bits(model, linear.peak_bound, linear.shift) <= limit:
            continue
        needed = sum_bits(model, linear.peak, linear.shift)
        if needed > limit:
            raise LutraError(
                f"sums of layer {i} {name} need {needed} bits, there are {limit}: {_ADVICE}"
            )


def _check_centre(i: int, layer: PackedLayer) -> None:
    """Refuse a centre of keys that is where no key can be, or of keys that have a norm."""
    bias = layer.bias
    if bias is None or bias.centre is None:
        return
    if layer.head_norms is not None:
        raise LutraError(f"layer {i} has a centre of keys, which keys with a norm have not")
    peak, limit = int(np.abs(bias.centre.astype(np.int64)).max()), FIXED_WIDTH - 1 - FIXED_FRAC
    if peak > 1 << (limit + bias.frac):
        raise LutraError(
            f"the centre of keys of layer {i} reaches {peak / 2.0**bias.frac:.0f}, keys reach "
            f"{1 << limit}: {_ADVICE}"
        )


def sum_limit(gate: Gate, name: str) -> int:
    """Largest sum of a matrix of that name: squared ReLU multiplies three of two."""
    squared = gate is Gate.RELU2 and name in ("gate_proj", "up_proj")
    return (1 << (GATE_WIDTH_MAX - 1)) - 1 if squared else ACC_MAX


def _head_peak(model: PackedModel) -> int:
    """Largest sum of a row of the head's doubled weights, all taken positive."""
    rows = range(0, model.vocab_size, _ROWS)
    parts = (model.head[first : first + _ROWS].astype(np.int16) for first in rows)
    return 2 * max(int(np.abs(part).sum(axis=1, dtype=np.int64).max()) for part in parts)

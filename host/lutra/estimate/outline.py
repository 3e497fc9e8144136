"""Outlines: packed models with the sizes of a model and one row in each matrix, made in no time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.models import RANDOM, find_model, load_model
from lutra.models.decoder import DecoderConfig
from lutra.models.qwen import QWEN2, QWEN3
from lutra.packed.file import is_packed, open_packed
from lutra.packed.random import random_format, random_head_bits, random_numbers
from lutra.packed.store import check_finished
from lutra.quantize import DEFAULT_GROUP, default_format, group_of
from lutra_golden.arith.quantize import q_max_of
from lutra_golden.arith.scale import scale_from_float
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.b128 import row_bytes
from lutra_golden.model.cache import Kv, kv_pair
from lutra_golden.model.checks import sum_limit
from lutra_golden.model.limits import ACC_MAX, HEAD_MAX, least_shift
from lutra_golden.model.packed import (
    CodedVocabulary,
    HeadNorms,
    PackedBias,
    PackedLayer,
    PackedLinear,
    PackedModel,
    PackedNorm,
    format_name,
)
from lutra_golden.model.shapes import LINEARS, linear_shapes
from lutra_golden.model.stored import StoredWeights

__all__ = ["open_outline", "outline"]

_SCALE_MAX = 255
_ONE = scale_from_float(1.0)
_NO_NORM = PackedNorm(np.zeros(0, np.int16), 0)


def open_outline(
    name: str,
    format: str | None = None,
    group: int | None = None,
    kv_bits: Kv | None = None,
    head_bits: int | None = None,
) -> PackedModel:
    """The outline of a model by its name, from the header of its file.

    Names and numbers are those of :func:`~lutra.open_model.open_packed_model`, for a device that
    runs what all of them do, with all positions that the model has; one that is packed already
    keeps its numbers. Of a checkpoint one layer is read if no ``format`` is given, to see which
    one it is in.
    """
    wanted = None if format is None else _format(format)
    if name.startswith(RANDOM):
        architecture, config = random_numbers(name)
        return outline(
            name,
            architecture,
            config,
            wanted or random_format(name),
            group=group_of(wanted, group),
            kv_bits=kv_bits,
            head_bits=random_head_bits(name) if head_bits is None else head_bits,
        )
    path = find_model(name)
    if is_packed(path):
        return _packed(path)
    check_finished(path)
    source = load_model(path)
    return outline(
        source.name,
        source.architecture,
        source.config,
        wanted or default_format(source),
        group=group_of(wanted, group),
        kv_bits=kv_bits,
        head_bits=head_bits,
    )


def outline(
    name: str,
    architecture: str,
    config: DecoderConfig,
    format: Format,
    *,
    group: int = DEFAULT_GROUP,
    kv_bits: Kv | None = None,
    head_bits: int | None = None,
) -> PackedModel:
    """The outline of a model of ``config`` in ``format``.

    Group scales have eight bits, and sums of layers are as large as they can be. A matrix has the
    depth of the model's and a single row; embedding, rotary table and norms have none, as their
    values cost no cycles. Layers are one and the same, with the window of the first.
    """
    c = config
    one_scale = format.ternary and format.group is None
    group = format.group or group
    q_max = q_max_of(format.a_bits)
    middle = 2 if format.ternary else (1 << format.w_bits) - 1
    key_bits, value_bits = kv_pair(8 if kv_bits is None else kv_bits)
    biased, head_normed = architecture == QWEN2, architecture == QWEN3

    def linear(depth: int, limit: int) -> PackedLinear:
        if one_scale:
            codes = np.zeros((1, row_bytes(depth, format.w_bits)), np.uint8)
            return PackedLinear(StoredWeights(codes=codes, depth=depth, bits=2), _ONE, 1)
        shift = least_shift(_SCALE_MAX * middle * depth, q_max, limit)
        return PackedLinear(_row(depth, format.w_bits, group, middle), _ONE, shift)

    shapes = linear_shapes(c.hidden_size, c.intermediate_size, c.q_size, c.kv_size)
    matrices = {each: linear(shapes[each][1], sum_limit(c.gate, each)) for each in LINEARS}
    layer = PackedLayer(
        input_norm=_NO_NORM,
        bias=PackedBias(np.zeros(0, np.int16), 0) if biased else None,
        head_norms=HeadNorms(_NO_NORM.gamma, _NO_NORM.gamma, 0) if head_normed else None,
        window=c.windows[0],
        attention_norm=None,
        ffn_input_norm=_NO_NORM,
        ffn_norm=None,
        **matrices,
    )
    coded = None
    if head_bits:
        levels = (1 << head_bits) - 1
        row = _row(c.hidden_size, head_bits, group, levels)
        shift = least_shift(row.peak_bound, q_max, ACC_MAX, least=1)
        coded = CodedVocabulary(PackedLinear(row, _ONE, 0), PackedLinear(row, _ONE, shift))
    n_rows = 0 if coded else 1
    return PackedModel(
        name=name,
        architecture=architecture,
        format=format_name(
            format.w_bits,
            format.a_bits,
            ternary=format.ternary,
            group=group if not one_scale and (format.ternary or format.w_bits == 1) else None,
        ),
        a_bits=format.a_bits,
        ternary=one_scale,
        w_bits=format.w_bits,
        scale_bits=1 if one_scale else _SCALE_MAX.bit_length(),
        group=None if one_scale else group,
        biased=biased,
        head_normed=head_normed,
        key_bits=key_bits,
        value_bits=value_bits,
        gate=c.gate,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        n_heads=c.num_attention_heads,
        n_kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        vocab_size=c.vocab_size,
        context=c.max_position_embeddings,
        bos=None,
        eos=(),
        eps=_ONE,
        head_eps=0,
        residual_frac=0,
        embedding=np.zeros((0, c.hidden_size), np.int16),
        embedding_frac=0,
        rope=np.zeros((0, c.head_dim), np.int16),
        layers=[layer] * c.num_hidden_layers,
        norm=_NO_NORM,
        head=_head(n_rows, c.hidden_size),
        head_rows=np.zeros(n_rows, np.int16),
        head_shift=0,
        head_scale=1.0,
        vocabulary=coded,
    )


def _head(n_rows: int, depth: int) -> NDArray[np.int8]:
    """Rows of all digits that a head has, with small sums: heads are packed for the engine's."""
    head = np.zeros((n_rows, depth), np.int8)
    head[:, :1] = HEAD_MAX
    return head


def _row(depth: int, bits: int, group: int, middle: int) -> StoredWeights:
    """A row in groups whose sums are as large as they can be."""
    if depth % group:
        raise LutraError(f"groups of {group} do not divide a depth of {depth}: use another --group")
    sides = 1, depth // group
    return StoredWeights(
        codes=np.zeros((1, row_bytes(depth, bits)), np.uint8),
        depth=depth,
        bits=bits,
        group=group,
        scale=np.full(sides, _SCALE_MAX, np.uint8),
        zero=np.full(sides, middle, np.uint16),
    )


def _packed(path: Path) -> PackedModel:
    """A packed model, of whose layers the first, and of whose head one row is kept."""
    model = open_packed(path).model
    coded = model.vocabulary
    n_rows = 0 if coded else 1
    return replace(
        model,
        layers=[model.layers[0]] * len(model.layers),
        head=_head(n_rows, model.hidden_size),
        vocabulary=None if coded is None else coded.first(1),
    )


def _format(name: str) -> Format:
    try:
        return Format.parse(name)
    except ValueError as error:
        raise LutraError(str(error)) from None

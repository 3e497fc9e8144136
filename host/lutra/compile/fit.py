"""Checks that a packed model fits a configuration; refusals name what is missing."""

from dataclasses import replace
from typing import Protocol

import numpy as np

from lutra.arguments import either
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.core.config import ENGINES, AcceleratorConfig
from lutra_golden.core.configs import has_offsets, offset_width
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import LANES, SCALE_WIDTH, EngineParams, GroupedWeights
from lutra_golden.matmul.format import Format
from lutra_golden.model.checks import sum_bits
from lutra_golden.model.lowered import common_kv_bits
from lutra_golden.model.packed import PackedLayer, PackedLinear, PackedModel
from lutra_golden.model.padding import built_head_dim
from lutra_golden.model.shapes import LINEARS, Gate

__all__ = [
    "Precision",
    "check_engine",
    "check_fit",
    "check_layer",
    "check_stream",
    "check_sums",
    "engines_for",
    "head_weights",
    "padded_vocabulary",
    "round_up",
    "row_unit",
    "stream_elements",
]

_POWERS_OF_TWO = ("param_words", "weight_buffer_words")


def round_up(n: int, to: int) -> int:
    """The smallest multiple of ``to`` that is at least ``n``."""
    return -(-n // to) * to


def _need(what: str, needed: int, available: int, change: str, config: AcceleratorConfig) -> None:
    if needed > available:
        enough = 1 << (needed - 1).bit_length() if change in _POWERS_OF_TWO else needed
        raise LutraError(
            f"configuration {config.name} is too small for the model: {what} needs {needed}, has "
            f"{available} ({needed - available} missing): set {change}={enough} or more"
        )


class Precision(Protocol):
    """Precision that an engine must support: of a format, or of a packed model."""

    @property
    def a_bits(self) -> int:
        """Bits of an activation."""
        ...

    @property
    def ternary(self) -> bool:
        """True if all weights are -1, 0 and 1."""
        ...


def engines_for(precision: Precision) -> list[str]:
    """Names of the matmul engines that can run a format, or a packed model."""
    ternary = precision.ternary and precision.a_bits == 8
    if isinstance(precision, PackedModel):
        ternary &= precision.a_groups is None and not has_offsets(precision)
        coded = precision.vocabulary
        ternary &= coded is None or coded.head.stored.group is None
    return [name for name, params in ENGINES.items() if params.grouped or ternary]


def check_engine(kind: str, precision: Format | PackedModel) -> None:
    """Refuse a format, or a packed model, that the engine of this name does not run."""
    if kind in ENGINES and kind not in engines_for(precision):
        what, change = str(precision), ""
        if isinstance(precision, PackedModel):
            what = precision.format
            if precision.vocabulary is not None:
                what += f" with a head of {precision.vocabulary.head.stored.bits} bits"
                if kind in engines_for(replace(precision, vocabulary=None)):
                    change = ", or pack the model with --head 0"
        raise LutraError(
            f"engine {kind} does not run {what}, only ternary weights with one scale per "
            "matrix and 8-bit activations with one scale per token: use engine "
            f"{either(engines_for(precision))}{change}"
        )


def _check_format(model: PackedModel, config: AcceleratorConfig) -> None:
    """Refuse a format that the engine of ``config`` does not support."""
    m = config.matmul
    check_engine(m.kind, model)
    if model.a_bits != m.a_width:
        raise LutraError(
            f"configuration {config.name} is built for activations of {m.a_width} bits, "
            f"{model.format} has {model.a_bits}: use a configuration with a_width={model.a_bits}"
        )
    if model.a_groups != m.a_groups:
        raise LutraError(
            f"configuration {config.name} is built for activations with {_scales_of(m.a_groups)}, "
            f"{model.format} has {_scales_of(model.a_groups)}: use a configuration with "
            f"a_groups={model.a_groups!r}"
        )
    if has_offsets(model) and not m.offset_width:
        raise LutraError(
            f"configuration {config.name} is built for zero points, the model's groups of weights "
            f"have offsets: use a configuration with offset_width={offset_width(model, m.kind)}, "
            "or pack the model again with --no-offsets"
        )
    if not m.grouped:
        return
    _check_scales(config, model.scale_bits)
    for name, depth in _depths(model).items():
        if depth % m.depth_tile:
            raise LutraError(
                f"{name} is {depth}, not a multiple of depth_tile ({m.depth_tile}), which "
                f"engine {m.kind} of configuration {config.name} needs: use a smaller depth_tile"
            )


def _scales_of(groups: ActivationGroups | None) -> str:
    """What activations have, in words."""
    if groups is None:
        return "one scale per token"
    return f"exponents of 0 to {groups.shift_max} per group of {groups.size}"


def _check_scales(config: AcceleratorConfig, bits: int) -> None:
    built = config.matmul.scale_width
    if bits > built:
        raise LutraError(
            f"configuration {config.name} is built for group scales of {built} bits, the model "
            f"has scales of {bits}: use a configuration with scale_width={bits}"
        )


def _depths(model: PackedModel) -> dict[str, int]:
    return {
        "hidden_size": model.hidden_size,
        "n_heads * head_dim": model.n_heads * built_head_dim(model.head_dim),
        "intermediate_size": model.intermediate_size,
    }


def check_fit(model: PackedModel, config: AcceleratorConfig) -> None:
    """Refuse a model that ``config`` cannot hold; the error says what is missing and what to do."""
    c, m = config, config.matmul
    head_dim = built_head_dim(model.head_dim)
    for name, value, fixed in (
        ("head_dim", head_dim, c.head_dim),
        ("n_heads", model.n_heads, c.n_heads),
        ("n_kv_heads", model.n_kv_heads, c.n_kv_heads),
    ):
        if value != fixed:
            padded = name == "head_dim" and value != model.head_dim
            has = f"{model.head_dim}, padded to {value}" if padded else value
            raise LutraError(
                f"configuration {c.name} is built for {name} {fixed}, the model has {has}: "
                f"use a configuration with {name}={value}"
            )
    kv_bits, width = common_kv_bits(model, "an accelerator"), c.attention.key_width
    if kv_bits != width:
        raise LutraError(
            f"configuration {c.name} is built for a KV cache of {width} bits, the model is "
            f"packed for {kv_bits}: give --kv {width} to lutra pack or lutra quantize, "
            f"or use a configuration with key_width={kv_bits} and value_width={kv_bits}"
        )
    if model.hidden_size % 32 or model.intermediate_size % 16:
        raise LutraError(
            "hidden_size must be a multiple of 32 and intermediate_size of 16, not "
            f"{model.hidden_size} and {model.intermediate_size}: pad the model"
        )
    _check_format(model, config)
    q_out, kv_out = model.n_heads * head_dim, model.n_kv_heads * head_dim
    depth = max(_depths(model).values())
    rows = max(q_out + 2 * kv_out, 2 * model.intermediate_size, model.hidden_size)
    blocks = round_up(rows // LANES, row_unit(m))
    _need("the residual buffer", model.hidden_size, c.vector.hidden_max, "hidden_max", c)
    _need(
        "the activation buffer (depth tiles)",
        -(-depth // m.depth_tile),
        m.act_tiles,
        "act_tiles",
        c,
    )
    _need("the accumulator buffer (row blocks)", blocks, m.acc_blocks, "acc_blocks", c)
    params = 4 * depth // LANES
    _need("the parameter buffer (words)", params, c.vector.param_words, "param_words", c)
    if model.vocabulary is not None:
        coded = model.vocabulary.head
        # all rows have the format of the first
        first = coded.stored.rows(slice(1)).unpack()
        _check_matrix(config, first, coded.source.scale_bits, coded.shift)
        _check_linear(model, config, coded, gated=False)
        return
    _check_words(config, head_weights(model)[0])
    head = 2 * int(np.abs(model.head.astype(np.int16)).sum(axis=1, dtype=np.int64).max())
    _check_sum(model, config, head, model.head_shift)


def check_layer(model: PackedModel, layer: PackedLayer, config: AcceleratorConfig) -> None:
    """Refuse a layer that ``config`` cannot hold."""
    for name, has, needs in (
        ("qkv_bias", config.vector.qkv_bias, layer.bias is not None),
        ("qk_norm", config.vector.qk_norm, layer.head_norms is not None),
    ):
        if needs and not has:
            raise LutraError(
                f"configuration {config.name} is built without {name}, which the model needs: use "
                f"a configuration with {name}=True"
            )
    for name in LINEARS:
        linear = layer.linear(name)
        _check_matrix(config, linear.weights, linear.weights.scale_bits, linear.shift)
    check_sums(model, layer, config)


def _check_matrix(
    config: AcceleratorConfig, weights: GroupedWeights, scale_bits: int, shift: int
) -> None:
    """Refuse groups, scales of ``scale_bits`` or codes that ``config`` is not built for."""
    m = config.matmul
    if m.grouped and weights.group % m.depth_tile:
        raise LutraError(
            f"groups of {weights.group} are not whole depth tiles of configuration "
            f"{config.name}: use groups that are a multiple of depth_tile ({m.depth_tile})"
        )
    if m.grouped:
        _check_scales(config, scale_bits + max(0, m.shift_min - shift))
    _check_words(config, weights)


def check_sums(model: PackedModel, layer: PackedLayer, config: AcceleratorConfig) -> None:
    """Refuse a layer whose sums can leave the adders of ``config``."""
    for name in LINEARS:
        linear = layer.linear(name)
        gated = model.gate is Gate.RELU2 and name in ("gate_proj", "up_proj")
        _check_linear(model, config, linear, gated=gated)


def _check_linear(
    model: PackedModel, config: AcceleratorConfig, linear: PackedLinear, *, gated: bool
) -> None:
    try:
        _check_peak(model, config, linear, linear.peak_bound, gated)
    except LutraError:
        # the bound may be too high, the peak takes a look at every code
        _check_peak(model, config, linear, linear.peak, gated)


def _check_peak(
    model: PackedModel, config: AcceleratorConfig, linear: PackedLinear, peak: int, gated: bool
) -> None:
    _check_sum(model, config, peak, linear.shift)
    if gated:
        needed, built = sum_bits(model, peak, linear.shift), config.vector.gate_width
        _need("a gate accumulator (bits)", needed, built, "gate_width", config)


def _check_words(config: AcceleratorConfig, weights: GroupedWeights) -> None:
    m = config.matmul
    words = m.pass_words(row_unit(m), m.planes(weights))
    _need(
        "the weight buffer (words)",
        words if m.replays else 0,
        config.matmul.weight_buffer_words,
        "weight_buffer_words",
        config,
    )


def _check_sum(model: PackedModel, config: AcceleratorConfig, peak: int, shift: int) -> None:
    """Refuse sums that can leave the engine's adders or the accumulators, or shift too far."""
    m = config.matmul
    if not m.grouped and shift > 1:
        raise LutraError(
            f"engine {m.kind} does not shift sums, and the model's have {shift - 1} too many bits: "
            f"use engine {either([e for e in engines_for(model) if ENGINES[e].grouped])}"
        )
    if m.grouped and shift > m.shift_max:
        mend = (
            f"use a configuration with scale_width={SCALE_WIDTH + 1} or more"
            if m.scale_width == SCALE_WIDTH
            else "the model's rows are too deep"
        )
        raise LutraError(
            f"configuration {config.name} shifts sums by up to {m.shift_max} bits, the model "
            f"needs {shift}: {mend}"
        )
    # an engine without groups adds up the weights themselves, not twice the weights; the others
    # add half of the result's last place, and have weights that are shifted by enough
    more = max(0, m.shift_min - shift)
    highest = (peak * model.a_peak << more) + ((1 << shift << more) >> 1)
    inner = highest.bit_length() + 1 if m.grouped else sum_bits(model, peak, 1)
    _need("a sum of the engine (bits)", inner, config.matmul.sum_width, "sum_width", config)
    outer = sum_bits(model, peak, shift)
    _need("the accumulator (bits)", outer, config.matmul.acc_width, "acc_width", config)


def padded_vocabulary(model: PackedModel, config: AcceleratorConfig) -> int:
    """Rows of the head with those that fill up its last pair of blocks and word of logits."""
    return round_up(model.vocab_size, LANES * max(2, config.logits_blocks))


def stream_elements(hidden_size: int, config: AcceleratorConfig) -> int:
    """Elements of a token's residual stream with those that fill up its last word in memory."""
    return round_up(hidden_size, LANES * config.logits_blocks)


def check_stream(hidden_size: int, config: AcceleratorConfig) -> None:
    """Refuse a range of layers whose residual stream ``config`` cannot store by whole words."""
    elements = stream_elements(hidden_size, config)
    _need("the residual buffer", elements, config.vector.hidden_max, "hidden_max", config)


def head_weights(model: PackedModel) -> tuple[GroupedWeights, int]:
    """The head's rows as weights of an engine, and the shift of their sums."""
    if model.vocabulary is not None:
        return model.vocabulary.head.unpacked(), model.vocabulary.head.shift
    return GroupedWeights.from_integers(model.head), model.head_shift


def row_unit(params: EngineParams) -> int:
    """Blocks of eight rows that a matrix product covers at least: pairs, and whole tiles."""
    return max(2, params.block_rows)

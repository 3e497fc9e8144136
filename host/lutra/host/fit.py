"""Whether a packed model fits a configuration: refusals that name what is missing."""

from collections.abc import Sequence

import numpy as np

from lutra.host.errors import LutraError
from lutra.host.packing import Gate, PackedLayer, PackedLinear, PackedModel
from lutra.sim.golden.arith.fixed import round_shift
from lutra.sim.golden.core.config import ENGINES, AcceleratorConfig
from lutra.sim.golden.matmul.engine import EngineParams, GroupedWeights
from lutra.sim.golden.matmul.format import Format

__all__ = ["check_fit", "engines_for", "head_weights", "round_up", "row_unit"]

_POWERS_OF_TWO = ("param_words", "weight_buffer_words")


def round_up(n: int, to: int) -> int:
    """The least multiple of ``to`` that is not below ``n``."""
    return -(-n // to) * to


def _need(what: str, needed: int, available: int, change: str, config: AcceleratorConfig) -> None:
    if needed > available:
        enough = 1 << (needed - 1).bit_length() if change in _POWERS_OF_TWO else needed
        raise LutraError(
            f"configuration {config.name} is too small for the model: {what} needs {needed}, has "
            f"{available} ({needed - available} missing): set {change}={enough} or more"
        )


def engines_for(format: Format) -> list[str]:
    """Names of the matmul engines that can run a format."""
    ternary = format.ternary and format.a_bits == 8
    return [name for name, params in ENGINES.items() if params.grouped or ternary]


def _check_format(model: PackedModel, config: AcceleratorConfig) -> None:
    """Refuse a format or grouping that the engine of ``config`` does not take."""
    m, format = config.matmul, model.format
    if m.kind not in engines_for(format):
        raise LutraError(
            f"engine {m.kind} does not run {format}, only ternary weights with 8-bit activations: "
            f"use --engine {' or '.join(engines_for(format))}"
        )
    if format.a_bits != m.a_width:
        raise LutraError(
            f"configuration {config.name} is built for activations of {m.a_width} bits, {format} "
            f"has {format.a_bits}: use a configuration with a_width={format.a_bits}"
        )
    if not m.grouped:
        return
    if model.group is not None and model.group % m.k_tile:
        raise LutraError(
            f"groups of {model.group} are not whole depth tiles of configuration {config.name}: "
            f"use groups that are a multiple of k_tile ({m.k_tile})"
        )
    for name, depth in _depths(model).items():
        if depth % m.k_tile:
            raise LutraError(
                f"{name} is {depth}, not a multiple of k_tile ({m.k_tile}), which engine {m.kind} "
                f"of configuration {config.name} needs: use a smaller k_tile"
            )


def _depths(model: PackedModel) -> dict[str, int]:
    return {
        "hidden_size": model.hidden_size,
        "n_heads * head_dim": model.n_heads * model.head_dim,
        "intermediate_size": model.intermediate_size,
    }


def check_fit(model: PackedModel, config: AcceleratorConfig) -> None:
    """Refuse, naming what is missing and what mends it, a model that ``config`` can not hold."""
    c, m = config, config.matmul
    for name, value, fixed in (
        ("head_dim", model.head_dim, c.head_dim),
        ("n_heads", model.n_heads, c.n_heads),
        ("n_kv_heads", model.n_kv_heads, c.n_kv_heads),
    ):
        if value != fixed:
            raise LutraError(
                f"configuration {c.name} is built for {name} {fixed}, the model has {value}: "
                f"use a configuration with {name}={value}"
            )
    if model.hidden_size % 32 or model.intermediate_size % 16 or model.vocab_size % 16:
        raise LutraError(
            "hidden_size must be a multiple of 32, intermediate_size and vocab_size of 16, not "
            f"{model.hidden_size}, {model.intermediate_size} and {model.vocab_size}: pad the model"
        )
    _check_format(model, config)
    q_out = model.n_heads * model.head_dim
    kv_out = model.n_kv_heads * model.head_dim
    depth = max(_depths(model).values())
    rows = max(q_out + 2 * kv_out, 2 * model.intermediate_size, model.hidden_size)
    blocks = round_up(rows // c.lanes, row_unit(m))
    _need("the residual buffer", model.hidden_size, c.hidden_max, "hidden_max", c)
    _need("the activation buffer (depth tiles)", -(-depth // m.k_tile), c.act_tiles, "act_tiles", c)
    _need("the accumulator buffer (row blocks)", blocks, c.row_blocks_max, "row_blocks_max", c)
    linears = [linear for layer in model.layers for linear in _linears(layer)]
    weights = [linear.weights for linear in linears]
    planes = max(m.planes(each) for each in (*weights, head_weights(model)))
    words = m.n_words(1, row_unit(m), planes)
    _need("the weight buffer (words)", words, c.weight_buffer_words, "weight_buffer_words", c)
    params = 4 * depth // c.lanes
    _need("the parameter buffer (words)", params, c.param_words, "param_words", c)
    _check_sums(model, config, linears)


def _check_sums(
    model: PackedModel, config: AcceleratorConfig, linears: Sequence[PackedLinear]
) -> None:
    """Refuse sums that can leave the engine's adders, the accumulators or the gate's multiplier."""
    c, q_max = config, model.format.q_max

    def bits(peak: int, shift: int) -> int:
        return int(round_shift(peak * q_max, shift)).bit_length() + 1

    head = 2 * int(np.abs(model.head.astype(np.int64)).sum(axis=1).max())
    sums = [(linear.peak, linear.shift) for linear in linears] + [(head, model.head_shift)]
    # an engine without groups adds up the weights themselves, not twice the weights
    inner = max(bits(peak, 0 if c.matmul.grouped else 1) for peak, _ in sums)
    _need("a sum of the engine (bits)", inner, c.sum_width, "sum_width", c)
    outer = max(bits(peak, shift) for peak, shift in sums)
    _need("the accumulator (bits)", outer, c.acc_width, "acc_width", c)
    gates = [
        bits(part.peak, part.shift)
        for layer in model.layers
        if layer.gate is Gate.RELU2
        for part in (layer.gate_proj, layer.up_proj)
    ]
    _need("a gate accumulator (bits)", max(gates, default=0), c.gate_width, "gate_width", c)


def _linears(layer: PackedLayer) -> tuple[PackedLinear, ...]:
    return (
        layer.q_proj,
        layer.k_proj,
        layer.v_proj,
        layer.o_proj,
        layer.gate_proj,
        layer.up_proj,
        layer.down_proj,
    )


def head_weights(model: PackedModel) -> GroupedWeights:
    """The head's rows as weights of an engine."""
    return GroupedWeights.from_integers(model.head.astype(np.int64))


def row_unit(params: EngineParams) -> int:
    """Blocks of eight rows that a matrix product covers at least: pairs, and whole tiles."""
    return max(2, params.block_rows)

"""Named configurations, and those made from others: another engine, or made to measure."""

import math
from collections.abc import Iterator

import numpy as np

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.attention.attention import AttentionParams
from lutra_golden.core.config import ENGINES, AcceleratorConfig
from lutra_golden.core.ports import PortParams, Purpose, striped_ports, two_ports
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import LANES, OFFSET_WIDTHS, SCALE_WIDTH
from lutra_golden.matmul.grouped import GroupedParams, bits_signed
from lutra_golden.matmul.ternary import TernaryParams
from lutra_golden.model.checks import sum_bits
from lutra_golden.model.limits import HEAD_MAX
from lutra_golden.model.packed import PackedLinear, PackedModel
from lutra_golden.model.padding import built_head_dim, padded_group
from lutra_golden.model.shapes import LINEARS, Gate
from lutra_golden.model.stored import StoredWeights
from lutra_golden.vector.norm import GATE_WIDTH_MAX
from lutra_golden.vector.unit import VectorParams

__all__ = [
    "CONFIGS",
    "KV260",
    "NANO",
    "PYNQ_Z2",
    "U50",
    "U55C",
    "activation_tile",
    "common_group",
    "has_offsets",
    "measured",
    "offset_width",
    "scale_bits",
    "with_engine",
]

NANO = AcceleratorConfig(
    name="nano",
    matmul=TernaryParams(),
    attention=AttentionParams(),
    vector=VectorParams(),
    ports=two_ports(weights=1024, data=512),
)
"""Simulates fast; holds the tales model; 576 ternary MAC per cycle."""

# weights in flight cover a latency of 128 cycles; what shares the port would wait for more
KV260 = NANO.with_(
    name="kv260",
    ports=striped_ports(4, 128, max_outstanding=4, burst_bytes=512),
    clock_hz=187_500_000,
)
"""The units of ``nano`` on the Kria KV260 and KR260, with weights over all four memory ports of 128
bits.

The clock is the I/O PLL's 1.5 GHz by 8."""

PYNQ_Z2 = NANO.with_(
    name="pynq_z2",
    # a word of 640 bits takes five beats of both ports, longer than it is multiplied with a token
    step_depth=48,
    depth_tile=48,
    act_tiles=16,
    gate_width=18,
    pair_cycles=8,
    # two carry 1.6 GB/s of the 2.1 that the memory gives; of four, a word would fill 80 bytes of 96
    ports=striped_ports(2, 64, max_outstanding=4, burst_bytes=256),
    clock_hz=100_000_000,
)
"""``nano`` with fewer multipliers, for the Zynq-7020: an eighth of attention's, and one for the
square of a gate; 384 ternary MAC per cycle."""

# XRT places what an argument of the kernel points to, and the kernel has one argument
_ONE_PORT = (PortParams(width=512, purposes=tuple(Purpose)),)
U50 = NANO.with_(name="u50", ports=_ONE_PORT)
"""The units of ``nano`` on the Alveo U50, behind one port to all of its HBM."""
U55C = NANO.with_(name="u55c", ports=_ONE_PORT)
"""The same on the Alveo U55C."""

CONFIGS = {config.name: config for config in (NANO, PYNQ_Z2, KV260, U50, U55C)}

# step_depth, w_width: what a weight word of 1024 bits holds for eight rows
_STEPS = {"lut": (64, 1), "mixpe": (16, 4), "mac": (16, 4)}
_LOOKUP_TILE = (8, 16, 24)
_WORD_BITS = 1024
_DEPTH_TILE = 64
_DEPTH_TILES = (64, 32, 16)
_OFFSET_WIDTHS = (18, 27, OFFSET_WIDTHS[-1])

Tile = tuple[int, int, int]
"""``step_tokens``, ``step_rows``, ``step_depth``."""


def with_engine(
    config: AcceleratorConfig,
    engine: str,
    *,
    a_width: int = 8,
    scale_width: int = SCALE_WIDTH,
    depth_tile: int = _DEPTH_TILE,
    tile: Tile | None = None,
    a_groups: ActivationGroups | None = None,
    offset_width: int = 0,
) -> AcceleratorConfig:
    """``config`` with another matmul engine, width of activations and of group scales.

    ``depth_tile`` is the least group; depths are as large with a smaller one. The engines ternary
    and lookup have activations of 8 bits only, and no groups. ``tile`` is the work of a step, if it
    is to be another than the engine's usual one; groups are then at least as deep as a step.
    ``a_groups`` and ``offset_width`` build groups of activations and offsets of weights.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if config.engine != "ternary":
        raise ValueError(f"config must have the ternary engine, not {config.engine!r}")
    if depth_tile not in _DEPTH_TILES:
        raise ValueError(
            f"depth_tile must be one of {', '.join(map(str, sorted(_DEPTH_TILES)))}, "
            f"not {depth_tile}"
        )
    if not ENGINES[engine].grouped:
        for name, value, only in (
            ("a_width", a_width, 8),
            ("scale_width", scale_width, SCALE_WIDTH),
            ("depth_tile", depth_tile, _DEPTH_TILE),
            ("a_groups", a_groups, None),
            ("offset_width", offset_width, 0),
        ):
            if value != only:
                raise ValueError(f"{name} of the {engine} engine must be {only}, not {value}")
        if engine == "lookup":
            return _with_lookup(config, tile or _LOOKUP_TILE)
        return config if tile is None else _with_tile(config, tile, tile[2])
    step_depth, w_width = _STEPS[engine]
    name = f"{config.name}-{engine}"
    for letter, value, usual in (
        ("a", a_width, 8),
        ("s", scale_width, SCALE_WIDTH),
        ("k", depth_tile, _DEPTH_TILE),
        ("o", offset_width, 0),
    ):
        name += "" if value == usual else f"-{letter}{value}"
    a_shift_max = 0
    if a_groups is not None:
        name += f"-g{a_groups.size}"
        a_shift_max = a_groups.shift_max
    built = config.with_(
        name=name,
        engine=engine,
        step_depth=min(step_depth, depth_tile),
        depth_tile=depth_tile,
        a_width=a_width,
        w_width=w_width,
        scale_width=scale_width,
        acc_width=28,
        sum_width=28 + a_width + (scale_width - SCALE_WIDTH) + a_shift_max,
        act_tiles=12 * _DEPTH_TILE // depth_tile,
        a_groups=a_groups,
        offset_width=offset_width,
    )
    if tile is not None:
        return _with_tile(built, tile, depth_tile if a_groups else max(_DEPTH_TILE, tile[2]))
    # a step that a group makes less deep has as many more rows as a word holds
    rows = LANES * step_depth // built.matmul.step_depth
    while built.with_(step_rows=rows).matmul.word_bits > _WORD_BITS:
        rows //= 2
    return built.with_(step_rows=rows)


def _with_lookup(config: AcceleratorConfig, tile: Tile) -> AcceleratorConfig:
    step_tokens, step_rows, step_depth = tile
    depth, unit = config.matmul.depth_max, max(2, step_rows // LANES)
    return config.with_(
        name=f"{config.name}-lookup",
        engine="lookup",
        step_tokens=min(step_tokens, config.pass_tokens),
        step_rows=step_rows,
        step_depth=step_depth,
        depth_tile=step_depth,
        act_tiles=-(-depth // step_depth),
        acc_blocks=_round_up(config.matmul.acc_blocks, unit),
    )


def _with_tile(config: AcceleratorConfig, tile: Tile, depth_tile: int) -> AcceleratorConfig:
    step_tokens, step_rows, step_depth = tile
    return config.with_(
        step_tokens=step_tokens,
        step_rows=step_rows,
        step_depth=step_depth,
        depth_tile=depth_tile,
    )


def measured(model: PackedModel, base: AcceleratorConfig, engine: str) -> AcceleratorConfig:
    """``base`` with ``engine``, and buffers and adders of the sizes that ``model`` needs.

    LutraError if there is no such configuration.
    """
    head_dim = built_head_dim(model.head_dim)
    q_out, kv_out = model.n_heads * head_dim, model.n_kv_heads * head_dim
    depths = (model.hidden_size, q_out, model.intermediate_size)
    rows = max(q_out + 2 * kv_out, 2 * model.intermediate_size, model.hidden_size)
    try:
        sized = base.with_(
            name=f"{base.name}-fit",
            hidden_max=_round_up(model.hidden_size, 32),
            head_dim=head_dim,
            n_heads=model.n_heads,
            n_kv_heads=model.n_kv_heads,
            pair_cycles=min(base.attention.pair_cycles, head_dim // LANES),
            max_context=_power_of_two(model.context),
            acc_blocks=_round_up(rows // LANES, 16),
            param_words=_power_of_two(4 * max(*depths, rows * model.biased) // LANES),
            qkv_bias=model.biased,
            qk_norm=model.head_normed,
        )
        sized = sized.with_(ports=two_ports(weights=1024, data=min(1024, sized.word_width)))
        depth_tile = math.gcd(*depths, common_group(model), activation_tile(model))
        if ENGINES[engine].grouped and depth_tile not in _DEPTH_TILES:
            raise ValueError(
                f"depth_tile must be one of {', '.join(map(str, _DEPTH_TILES))} and divide "
                f"groups and depths {', '.join(map(str, depths))}"
            )
        if not ENGINES[engine].grouped:
            # sums are of the weights themselves
            sums = ((1 << (model.a_bits - 1)) * max(depths)).bit_length() + 1
            sized = with_engine(sized, engine)
            built = sized.with_(
                acc_width=max(sized.matmul.acc_width, sums),
                sum_width=max(sized.matmul.sum_width, sums),
            )
        else:
            a_shift_max = 0 if model.a_groups is None else model.a_groups.shift_max
            # a shift of more bits comes with wider scales
            wide = max(_shifts(model)) > ENGINES[engine]().shift_max + a_shift_max
            scale_width = max(SCALE_WIDTH + wide, scale_bits(model, a_shift_max))
            built = with_engine(
                sized,
                engine,
                a_width=model.a_bits,
                scale_width=scale_width,
                depth_tile=depth_tile,
                a_groups=model.a_groups,
                offset_width=offset_width(model, engine),
            )
            built = built.with_(sum_width=max(built.matmul.sum_width, _sum_width(model)))
        if model.gate is Gate.RELU2:
            built = built.with_(gate_width=max(built.vector.gate_width, _gate_width(model)))
        return built.with_(act_tiles=-(-max(depths) // built.matmul.depth_tile))
    except ValueError as error:
        raise LutraError(f"no configuration holds {model.name}: {error}") from None


def activation_tile(model: PackedModel) -> int:
    """The usual depth tile, or a smaller one that groups of activations are multiples of."""
    if model.a_groups is None:
        return _DEPTH_TILE
    return min(_DEPTH_TILE, model.a_groups.size, built_head_dim(model.head_dim))


def common_group(model: PackedModel) -> int:
    """The largest size that divides all groups of weights, 0 if there are none."""
    sizes = [padded_group(model.group, model.head_dim)] if model.group else []
    if model.vocabulary is not None:
        sizes.append(model.vocabulary.head.stored.group or 0)
    return math.gcd(*sizes)


def has_offsets(model: PackedModel) -> bool:
    """True if groups of weights of a layer or of the head have offsets."""
    coded = model.vocabulary
    return model.offsets or (coded is not None and coded.head.stored.has_offsets)


def _linears(model: PackedModel) -> Iterator[PackedLinear]:
    """All matrices that are multiplied by and are made of codes."""
    if model.vocabulary is not None:
        yield model.vocabulary.head
    for i in range(len(model.layers)):
        layer = model.layers[i]
        yield from map(layer.linear, LINEARS)


def _shifts(model: PackedModel) -> Iterator[int]:
    """Final shifts of the sums of all matrices."""
    if model.vocabulary is None:
        yield model.head_shift
    yield from (linear.shift for linear in _linears(model))


def scale_bits(model: PackedModel, shift_min: int) -> int:
    """Bits of the widest group scale where no matrix shifts its sums by less than ``shift_min``:
    the scales of one that does are as many bits larger."""
    needed = model.scale_bits
    if model.vocabulary is None:
        needed = max(needed, 1 + max(0, shift_min - model.head_shift))
    elif not shift_min:
        needed = max(needed, model.vocabulary.head.source.scale_bits)
    if not shift_min:
        return needed
    for linear in _linears(model):
        needed = max(needed, linear.source.scale_bits + max(0, shift_min - linear.shift))
    return needed


def offset_width(model: PackedModel, engine: str) -> int:
    """Bits that ``engine`` needs for the offsets of all groups: those of a port of a DSP slice, or
    all; 0 if the model has none."""
    params = ENGINES[engine]()
    if not has_offsets(model) or not isinstance(params, GroupedParams):
        return 0
    shift_min = 0 if model.a_groups is None else model.a_groups.shift_max
    needed = 0
    for linear in _linears(model):
        source = linear.source
        if isinstance(source, StoredWeights):
            source = source.one_level()
        if source.scale is None or source.zero is None:
            continue  # ternary: a scale of 1
        scale, zero = source.scale.astype(np.int64), source.zero.astype(np.int64)
        offset = None if source.offset is None else source.offset.astype(np.int64)
        if offset is not None and isinstance(source, StoredWeights):
            offset <<= source.offset_shift
        # as they are, or stacked with matrices of more bits
        for bits in (source.bits, model.w_bits):
            offsets = params.offsets(scale, zero, offset, -(-bits // params.w_width))
            needed = max(needed, bits_signed(offsets) + max(0, shift_min - linear.shift))
    return next(width for width in _OFFSET_WIDTHS if width >= needed)


def _sum_width(model: PackedModel) -> int:
    """Bits of the sums of doubled weights before their shift, with half of the last place."""
    least = 0 if model.a_groups is None else model.a_groups.shift_max
    needed = 0

    def add(peak: int, shift: int) -> None:
        nonlocal needed
        most = (peak * model.a_peak << max(0, least - shift)) + (1 << max(shift, least) >> 1)
        needed = max(needed, most.bit_length() + 1)

    if model.vocabulary is None:
        add(2 * HEAD_MAX * model.hidden_size, model.head_shift)
    for linear in _linears(model):
        add(linear.peak_bound, linear.shift)
    return needed


def _gate_width(model: PackedModel) -> int:
    """Bits of the accumulators that squared ReLU multiplies."""
    needed = 0
    for i in range(len(model.layers)):
        layer = model.layers[i]
        for linear in (layer.gate_proj, layer.up_proj):
            needed = max(needed, sum_bits(model, linear.peak_bound, linear.shift))
    return min(needed, GATE_WIDTH_MAX)


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()

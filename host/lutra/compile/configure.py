"""A configuration that holds a packed model: the named one if it does, else one made to measure."""

import math
from dataclasses import replace

from lutra.compile.fit import check_fit, engines_for, round_up
from lutra_golden.core.config import CONFIGS, ENGINES, AcceleratorConfig, with_engine
from lutra_golden.errors import LutraError
from lutra_golden.model.lowered import common_kv_bits
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.padding import built_head_dim, padded_group
from lutra_golden.vector.norm import GATE_WIDTH_MAX

__all__ = ["configure"]

_DEPTH_TILES = (64, 32, 16)


def configure(
    model: PackedModel,
    config: str | AcceleratorConfig = "nano",
    engine: str | None = None,
    *,
    made_to_measure: bool = True,
) -> AcceleratorConfig:
    """The configuration with the engine that ``engine`` names, or the first that runs the model.

    A named configuration gets the model's bits of keys and values (its name then has ``-kv4``); one
    that is too small for the model is enlarged (``-fit``) unless ``made_to_measure`` is false. An
    object is taken as it is.
    """
    if engine is not None and engine not in ENGINES:
        raise LutraError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if isinstance(config, AcceleratorConfig):
        if engine not in (None, config.engine):
            raise LutraError(
                f"configuration {config.name} is built with engine {config.engine}, not {engine}: "
                "leave the engine out, or give another configuration"
            )
        return config
    if config not in CONFIGS:
        raise LutraError(f"configuration must be one of {', '.join(CONFIGS)}, not {config!r}")
    base = CONFIGS[config]
    kv_bits = common_kv_bits(model, "rtl")
    if kv_bits != base.kv_width:
        base = replace(base, name=f"{base.name}-kv{kv_bits}", kv_width=kv_bits)
    choice = engines_for(model)
    if engine is not None and engine not in choice:
        # refused when the model is compiled
        return with_engine(base, engine)
    candidates = choice if engine is None else [engine]
    for kind in candidates:
        built = with_engine(base, kind, a_width=model.a_bits)
        if not made_to_measure or _fits(model, built):
            return built
        built = _measured(model, base, kind)
        # the last one is taken in any case: compiling says what it lacks
        if _fits(model, built) or kind == candidates[-1]:
            return built
    raise AssertionError("there is an engine for every model")


def _fits(model: PackedModel, config: AcceleratorConfig) -> bool:
    if model.context > config.max_context:
        return False
    if (model.biased and not config.qkv_bias) or (model.head_normed and not config.qk_norm):
        return False
    group = padded_group(model.group, model.head_dim) if model.group else 0
    if config.matmul.grouped and group % config.matmul.depth_tile:
        return False
    try:
        check_fit(model, config)
    except LutraError:
        return False
    return True


def _measured(model: PackedModel, base: AcceleratorConfig, engine: str) -> AcceleratorConfig:
    head_dim = built_head_dim(model.head_dim)
    q_out, kv_out = model.n_heads * head_dim, model.n_kv_heads * head_dim
    depths = (model.hidden_size, q_out, model.intermediate_size)
    rows = max(q_out + 2 * kv_out, 2 * model.intermediate_size, model.hidden_size)
    try:
        sized = replace(
            base,
            name=f"{base.name}-fit",
            hidden_max=round_up(model.hidden_size, 32),
            head_dim=head_dim,
            n_heads=model.n_heads,
            n_kv_heads=model.n_kv_heads,
            data_axi_width=8 * head_dim,
            max_context=_power_of_two(model.context),
            row_blocks_max=round_up(rows // base.lanes, 16),
            param_words=_power_of_two(4 * max(*depths, rows * model.biased) // base.lanes),
            qkv_bias=model.biased,
            qk_norm=model.head_normed,
        )
        group = padded_group(model.group, model.head_dim) if model.group else _DEPTH_TILES[0]
        depth_tile = math.gcd(*depths, group, _DEPTH_TILES[0])
        if engine != "ternary" and depth_tile not in _DEPTH_TILES:
            raise ValueError(
                f"depth_tile must be one of {', '.join(map(str, _DEPTH_TILES))} and divide "
                f"groups and depths {', '.join(map(str, depths))}"
            )
        if engine == "ternary":
            # sums are of the weights themselves; squared ReLU multiplies three of them
            sums = ((1 << (model.a_bits - 1)) * max(depths)).bit_length() + 1
            built = with_engine(sized, engine)
            built = replace(
                built,
                acc_width=max(built.acc_width, sums),
                sum_width=max(built.sum_width, sums),
                gate_width=max(built.gate_width, min(sums, GATE_WIDTH_MAX)),
            )
        else:
            built = with_engine(
                sized,
                engine,
                a_width=model.a_bits,
                scale_width=max(8, model.scale_bits),
                depth_tile=depth_tile,
            )
        return replace(built, act_tiles=-(-max(depths) // built.depth_tile))
    except ValueError as error:
        raise LutraError(f"no configuration holds {model.name}: {error}") from None


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()

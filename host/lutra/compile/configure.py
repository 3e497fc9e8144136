"""A configuration that holds a packed model: the named one if it does, else one made to measure."""

from lutra.compile.fit import check_fit, check_sums, engines_for
from lutra_golden.core.config import ENGINES, AcceleratorConfig
from lutra_golden.core.configs import (
    CONFIGS,
    activation_tile,
    common_group,
    measured,
    offset_width,
    scale_bits,
    with_engine,
)
from lutra_golden.errors import LutraError
from lutra_golden.model.lowered import common_kv_bits
from lutra_golden.model.packed import PackedModel

__all__ = ["configure"]


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
    kv_bits = common_kv_bits(model, "an accelerator")
    if kv_bits != base.attention.key_width:
        name = f"{base.name}-kv{kv_bits}"
        base = base.with_(name=name, key_width=kv_bits, value_width=kv_bits)
    choice = engines_for(model)
    if engine is not None and engine not in choice:
        # refused when the model is compiled
        return with_engine(base, engine)
    candidates = choice if engine is None else [engine]
    for kind in candidates:
        built = with_engine(
            base,
            kind,
            a_width=model.a_bits,
            depth_tile=activation_tile(model),
            a_groups=model.a_groups,
            offset_width=offset_width(model, kind),
        )
        if not made_to_measure or _fits(model, built):
            return built
        built = measured(model, base, kind)
        # the last one is taken in any case: compiling says what it lacks
        if _fits(model, built) or kind == candidates[-1]:
            return built
    raise AssertionError("there is an engine for every model")


def _fits(model: PackedModel, config: AcceleratorConfig) -> bool:
    if model.context > config.max_context:
        return False
    vector = config.vector
    if (model.biased and not vector.qkv_bias) or (model.head_normed and not vector.qk_norm):
        return False
    m = config.matmul
    if m.grouped and scale_bits(model, m.shift_min) > m.scale_width:
        return False
    if config.matmul.grouped and common_group(model) % config.matmul.depth_tile:
        return False
    try:
        check_fit(model, config)
        for i in range(len(model.layers)):
            check_sums(model, model.layers[i], config)
    except LutraError:
        return False
    return True

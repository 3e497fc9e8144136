"""Shapes of released models: configurations for them, and logits of random weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.host.tiles import compiled, on_transport

from lutra.compile.configure import configure
from lutra.compile.fit import check_fit
from lutra.models import load_model
from lutra.models.random import RANDOM_SHAPES, write_random
from lutra.quantize.pack import pack_model
from lutra.quantize.reference import reference
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.padding import built_head_dim


def number(shape: str, name: str, default: int = 0) -> int:
    value = RANDOM_SHAPES[shape].get(name, default)
    assert isinstance(value, int)
    return value


@pytest.mark.parametrize("shape", RANDOM_SHAPES)
def test_sizes_of_released_models(
    shape: str,
    packed: Callable[[str], PackedModel],
    packed_llama: Callable[[str, str], PackedModel],
) -> None:
    ternary = shape.startswith("bitnet")
    small = packed("grouped") if ternary else packed_llama("llama-grouped", "W4A8")
    hidden, heads = number(shape, "hidden_size"), number(shape, "num_attention_heads")
    model = replace(
        small,
        hidden_size=hidden,
        intermediate_size=number(shape, "intermediate_size"),
        n_heads=heads,
        n_kv_heads=number(shape, "num_key_value_heads"),
        head_dim=number(shape, "head_dim", hidden // heads),
        context=4096,
        group=small.group and 64,
        biased=shape.startswith("qwen2"),
        head_normed=shape.startswith(("qwen3", "bonsai")),
    )
    config = configure(model)
    check_fit(model, config)
    assert config.engine == ("ternary" if ternary else "lut")
    assert (config.head_dim, config.max_context) == (built_head_dim(model.head_dim), 4096)
    assert (config.n_heads, config.n_kv_heads) == (model.n_heads, model.n_kv_heads)
    assert (config.vector.qkv_bias, config.vector.qk_norm) == (model.biased, model.head_normed)
    for engine in ("mixpe", "mac"):
        check_fit(model, configure(model, engine=engine))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "layers"), [("smollm-135m", 2), ("qwen2.5-0.5b", 1), ("qwen3-0.6b", 1)]
)
def test_a_released_shape_decodes(shape: str, layers: int, tmp_path: Path) -> None:
    folder = write_random(shape, tmp_path / shape, n_layers=layers)
    model = pack_model(load_model(folder).limited(64))
    device = on_transport(compiled(model, configure(model)))
    tokens = [1, 200, 300, 45, 260]
    first = device.run_tile(tokens[:4], 0, 3)
    second = device.run_tile(tokens[4:], 4, 0)
    actual = np.concatenate([x.logits * x.scale[:, None] for x in (first, second)])
    expected = reference(model).forward(np.array(tokens))[3:]
    error = np.sqrt(((actual - expected) ** 2).mean()) / expected.std()
    assert error < 0.03

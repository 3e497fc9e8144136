"""Activations in groups and groups of weights with offsets: engines give the golden logits."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tests.host.models.small_models import write_variant
from tests.host.tiles import compiled, golden, on_transport, run_tiles
from tests.system.small_architectures import GROUP, SHAPE, config_of_engine
from tests.system.test_architectures import SIZES, assert_the_rtl_gives_the_same, tokens_for

from lutra.checkpoints.weights import Dense, Grouped
from lutra.compile.configure import configure
from lutra.models import load_model
from lutra.models.decoder import Decoder
from lutra.quantize.pack import pack_model
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shapes import LINEARS
from lutra_golden.timing.memory import IDEAL_MEMORY, random_timing

pytestmark = pytest.mark.usefixtures("no_coverage")

Packed = Callable[[str], PackedModel]
ENGINES = ("lut", "mixpe", "mac")


def _read(folder: Path, variant: str, head_dim: int = 32) -> Decoder:
    changes = {
        "hidden_size": SHAPE.hidden_size,
        "intermediate_size": SHAPE.intermediate_size,
        "num_attention_heads": SHAPE.num_attention_heads,
        "num_key_value_heads": SHAPE.num_key_value_heads,
        "vocab_size": SHAPE.vocab_size,
        "max_position_embeddings": SHAPE.max_position_embeddings,
        "head_dim": head_dim,
    }
    return load_model(write_variant(folder, variant, changes=changes))


def _affine(weight: Dense, group: int) -> Grouped:
    """Codes of four bits over each group's range, which begins at no multiple of its step."""
    groups = weight.dequantized().reshape(len(weight.values), -1, group)
    low = groups.min(axis=2)
    scale = ((groups.max(axis=2) - low) / 15).astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint((groups - low[..., None]) / scale[..., None]), 0, 15)
    return Grouped(
        codes=codes.astype(np.uint8).reshape(weight.shape),
        scale=scale,
        zero=np.zeros_like(scale),
        offset=low.astype(np.float32),
        bits=4,
        group=group,
    )


def _with_offsets(model: Decoder) -> Decoder:
    """Every other matrix has offsets, the rest zero points."""
    layers = list(model.layers)
    for i, layer in enumerate(layers):
        parts = dict[str, Grouped]()
        for name in LINEARS[i % 2 :: 2]:
            weight = layer.linear(name)
            assert isinstance(weight, Dense)
            # heads of 16 begin a group of activations each, and so do their groups of weights
            parts[name] = _affine(weight, 16)
        layers[i] = replace(layer, **parts)
    return replace(model, layers=layers)


def _groups(folder: Path) -> PackedModel:
    model = _read(folder, "llama-untied")
    return pack_model(model, Format(w_bits=4, a_bits=8), GROUP, a_groups=ActivationGroups(size=32))


def _short_groups(folder: Path) -> PackedModel:
    """Groups that are longer than heads, of which half are a quarter as large as the others, with
    exponents of two bits; biases."""
    model = _read(folder, "qwen2")
    sizes = np.repeat([1, 0.25], SHAPE.num_key_value_heads * SHAPE.head_dim // 2)
    layers = [
        replace(
            layer,
            v_proj=Dense(layer.v_proj.dequantized() * sizes[:, None]),
            v_bias=None if layer.v_bias is None else layer.v_bias * sizes,
        )
        for layer in model.layers
    ]
    groups = ActivationGroups(size=128, shift_max=3)
    model = replace(model, layers=layers)
    return pack_model(model, Format(w_bits=3, a_bits=8), GROUP, a_groups=groups)


def _offsets(folder: Path) -> PackedModel:
    return pack_model(_with_offsets(_read(folder, "qwen3")), None, GROUP, offsets=True)


def _both(folder: Path) -> PackedModel:
    model = _with_offsets(_read(folder, "qwen2", head_dim=16))
    groups = ActivationGroups(size=32)
    return pack_model(model, None, GROUP, a_groups=groups, offsets=True)


MAKERS = {"groups": _groups, "short-groups": _short_groups, "offsets": _offsets, "both": _both}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    root = tmp_path_factory.mktemp("models")
    return cache(lambda name: MAKERS[name](root / name))


def config_of(engine: str, model: PackedModel) -> AcceleratorConfig:
    """A small configuration with the hardware that the model needs."""
    return config_of_engine(engine).with_(
        name="small-groups",
        a_groups=model.a_groups,
        offset_width=27 if model.offsets else 0,
        sum_width=51,
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MAKERS)
def test_programs_are_the_golden_device(name: str, engine: str, packed: Packed) -> None:
    model, tokens = packed(name), tokens_for(packed(name))
    assert (model.a_groups is not None, model.offsets) == (
        name != "offsets",
        name in ("offsets", "both"),
    )
    expected = run_tiles(golden(model), tokens)
    for config in (config_of(engine, model), configure(model, engine=engine)):
        found = run_tiles(on_transport(compiled(model, config)), tokens, SIZES)
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.scale, expected.scale)
    # groups matter
    plain = replace(model, a_groups=None)
    if model.a_groups is not None:
        assert (run_tiles(golden(plain), tokens).logits != expected.logits).any()


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("both", "mixpe"),
        pytest.param("groups", "lut", marks=pytest.mark.slow),
        pytest.param("short-groups", "mac", marks=pytest.mark.slow),
        pytest.param("offsets", "lut", marks=pytest.mark.slow),
        pytest.param("both", "lut", marks=pytest.mark.slow),
    ],
)
def test_the_rtl_gives_the_logits_of_the_golden_device(
    name: str, engine: str, packed: Packed
) -> None:
    timing = random_timing(2) if name == "both" else IDEAL_MEMORY
    model = packed(name)
    assert_the_rtl_gives_the_same(model, config_of(engine, model), timing)

"""Whole models: every method packs, resumes with the same numbers, refuses bad settings."""

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.quantize.random_decoder import GROUP, VARIANTS, random_decoder, random_tokens

from lutra.checkpoints.weights import Integers, Ternary
from lutra.models.decoder import Decoder, DecoderLayer, LazyLayers
from lutra.quantize.budget import BitPlan
from lutra.quantize.calibration import States, in_float
from lutra.quantize.driver import METHODS, Recipe, quantize_layers, quantize_model
from lutra.quantize.gptq import gptq
from lutra.quantize.pack import Packer, pack_model
from lutra.quantize.reference import reference, reference_layer
from lutra.quantize.target import Target
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import PackedLayer, PackedModel
from lutra_golden.model.shapes import LINEARS

Tokens = NDArray[np.int64]
W3A8, W4A8 = Format(w_bits=3, a_bits=8), Format(w_bits=4, a_bits=8)


class Store:
    """Layers in memory; an interrupt before the save of layer ``stop``."""

    def __init__(self, stop: int | None = None) -> None:
        self.layers: dict[int, PackedLayer] = {}
        self.plan: BitPlan | None = None
        self.stop = stop

    def load(self, i: int) -> PackedLayer | None:
        return self.layers.get(i)

    def save(self, i: int, layer: PackedLayer) -> None:
        if i == self.stop:
            raise KeyboardInterrupt
        self.layers[i] = layer

    def load_plan(self) -> BitPlan | None:
        return self.plan

    def save_plan(self, plan: BitPlan) -> None:
        self.plan = plan


def assert_equal(a: object, b: object, where: str = "model") -> None:
    """Every array, number and name of two packed models is the same, whatever it is part of."""
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray)
        assert a.dtype == b.dtype, where
        np.testing.assert_array_equal(a, b, err_msg=where)
    elif is_dataclass(a) and not isinstance(a, type):
        assert type(a) is type(b), where
        for field in fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name), f"{where}.{field.name}")
    elif isinstance(a, list):
        assert isinstance(b, list)
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def calibration(model: Decoder) -> Tokens:
    return random_tokens(model, 4, 32)


RECIPES = {
    "rtn": Recipe(format=W3A8, group=GROUP),
    "gptq": Recipe(format=W3A8, group=GROUP, method="gptq"),
    "act-order": Recipe(format=W3A8, group=GROUP, method="gptq", act_order=True),
    "awq": Recipe(format=W3A8, group=GROUP, method="awq"),
    "smoothquant": Recipe(format=W3A8, group=GROUP, method="smoothquant"),
    "budget": Recipe(format=W3A8, group=GROUP, method="gptq", bits_budget=3.5),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_interrupted_run_ends_as_one_that_was_not(recipe: str) -> None:
    model = random_decoder(**VARIANTS["biases"], n_layers=3)
    tokens = calibration(model)
    whole = quantize_model(model, RECIPES[recipe], tokens)
    store = Store(stop=1)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(model, RECIPES[recipe], tokens, store=store)
    assert list(store.layers) == [0]
    store.stop, read = None, list[int]()

    def counted(i: int) -> DecoderLayer:
        read.append(i)
        return model.layers[i]

    resumed = quantize_model(
        replace(model, layers=LazyLayers(counted, 3)), RECIPES[recipe], tokens, store=store
    )
    assert_equal(whole, resumed)
    assert sorted(store.layers) == [0, 1, 2]
    if recipe in ("gptq", "awq"):
        assert read.count(2) == 1
    again = quantize_model(model, RECIPES[recipe], tokens, store=store)
    assert_equal(whole, again)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_packs_every_variant(method: str, variant: str) -> None:
    """With eight bits a model is close to its source: nothing is lost from folding to packing."""
    model = random_decoder(**VARIANTS[variant])
    recipe = Recipe(format=Format(w_bits=8, a_bits=16), group=GROUP, method=method)
    packed = quantize_model(model, recipe, calibration(model))
    assert (packed.format, packed.group) == ("W8A16", GROUP)
    tokens = random_tokens(model, 1, 20)[0]
    expected, found = model.forward(tokens), reference(packed).forward(tokens)
    assert np.abs(found - expected).mean() < 0.02 * np.abs(expected).mean()


def test_a_layer_is_fitted_to_what_those_in_front_make() -> None:
    """Of the packed layers, inputs of their matrices rounded."""
    model = random_decoder(n_layers=2)
    tokens, recipe = calibration(model), RECIPES["gptq"]
    packed = quantize_model(model, recipe, tokens)
    states = States(model, tokens)
    before = reference_layer(model.config, packed.layers[0])
    states.x = states.after(0, before, a_bits=recipe.format.a_bits)
    target = Target(
        bits=dict.fromkeys(LINEARS, 3), group=GROUP, a_bits=8, head_dim=model.config.head_dim
    )
    layer = in_float(model.layers[1])
    found = gptq(layer, states.inputs(1, layer), target)
    for name in LINEARS:
        linear = found.linear(name)
        assert isinstance(linear, Integers)
        assert_equal(linear.weights, packed.layers[1].linear(name).weights)


def test_rounding_is_what_pack_model_does() -> None:
    model = random_decoder()
    assert_equal(
        quantize_model(model, Recipe(format=W4A8, group=GROUP)), pack_model(model, W4A8, GROUP)
    )


def test_layers_come_one_at_a_time() -> None:
    """No layer is read before the one in front of it is out."""
    model, read = random_decoder(n_layers=3), list[int]()

    def counted(i: int) -> DecoderLayer:
        read.append(i)
        return model.layers[i]

    lazy = replace(model, layers=LazyLayers(counted, 3))
    packer = Packer(lazy.replaced(lazy.layers, 8))
    layers = quantize_layers(lazy, RECIPES["gptq"], calibration(model), packer=packer)
    next(layers)
    assert max(read) == 0
    next(layers)
    assert max(read) == 1


@pytest.mark.parametrize("budget", [2.0, 2.7, 3.5, 4.0])
def test_a_budget_is_kept_in_what_is_packed(budget: float) -> None:
    model, plans = random_decoder(), list[BitPlan]()
    recipe = Recipe(format=W4A8, group=GROUP, bits_budget=budget)
    packed = quantize_model(
        model, recipe, calibration(model), on_plan=lambda _, plan: plans.append(plan)
    )
    bits = [
        (layer.linear(name).weights.bits, layer.linear(name).weights.codes.size)
        for layer in packed.layers
        for name in LINEARS
    ]
    assert sum(b * n for b, n in bits) <= budget * sum(n for _, n in bits)
    for i, layer in enumerate(packed.layers):
        assert {name: layer.linear(name).weights.bits for name in LINEARS} == plans[0].of(i)
    if budget == 2:
        assert packed.format == "W2A8"


def ternary_model() -> Decoder:
    model = random_decoder(**VARIANTS["sub-norms"])
    rng = np.random.default_rng(0)
    layers = [
        replace(
            layer,
            **{
                name: Ternary(rng.integers(-1, 2, layer.linear(name).shape).astype(np.int8), 0.1)
                for name in LINEARS
            },
        )
        for layer in model.layers
    ]
    return replace(model, layers=layers)


@pytest.mark.parametrize("method", METHODS)
def test_integers_of_a_checkpoint_pass_as_they_are(method: str) -> None:
    model, format = ternary_model(), Format(w_bits=2, a_bits=8, ternary=True)
    packed: PackedModel = quantize_model(model, Recipe(format=format, method=method))
    assert packed.ternary
    for layer, source in zip(packed.layers, model.layers, strict=True):
        for name in LINEARS:
            codes = source.linear(name)
            assert isinstance(codes, Ternary)
            np.testing.assert_array_equal(layer.linear(name).weights.doubled() // 2, codes.codes)


def test_progress_goes_from_start_to_end() -> None:
    model, said = random_decoder(), list[tuple[str, float]]()
    recipe = Recipe(format=W4A8, group=GROUP, method="gptq", bits_budget=3)
    quantize_model(
        model, recipe, calibration(model), progress=lambda stage, part: said.append((stage, part))
    )
    assert [stage for stage, _ in said] == ["measuring sensitivity"] * 2 + ["quantising"] * 3
    for stage in ("measuring sensitivity", "quantising"):
        parts = [part for name, part in said if name == stage]
        assert parts == sorted(parts)
        assert parts[-1] == 1


def test_settings_tell_runs_apart() -> None:
    model = random_decoder()
    tokens = calibration(model)
    found = [recipe.settings(tokens) for recipe in RECIPES.values()]
    found.append(RECIPES["gptq"].settings(tokens[:2]))
    found.append(replace(RECIPES["gptq"], group=GROUP // 2).settings(tokens))
    found.append(replace(RECIPES["gptq"], format=W4A8).settings(tokens))
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert RECIPES["gptq"].settings(tokens) == RECIPES["gptq"].settings(tokens.copy())
    # a text that is not looked at makes no difference
    assert RECIPES["rtn"].settings(tokens) == RECIPES["rtn"].settings(None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "best"}, "method must be one of rtn, gptq, awq, smoothquant, not 'best'"),
        ({"group": 0}, "group must be 1 or more, not 0"),
        (
            {"act_order": True},
            "--act-order is an option of gptq, not of rtn: leave it out or use gptq",
        ),
        ({"bits_budget": 1.5}, "--bits-budget must be 2 to 8, not 1.5"),
        ({"bits_budget": float("nan")}, "--bits-budget must be 2 to 8, not nan"),
        (
            {"bits_budget": 3, "format": Format(w_bits=2, a_bits=8, ternary=True)},
            ("--bits-budget is for weights in floating point, not for ternary ones: leave it out"),
        ),
    ],
)
def test_recipes_that_can_not_be(arguments: dict[str, Any], message: str) -> None:
    arguments = {"format": W4A8, **arguments}
    with pytest.raises(LutraError, match=f"^{re.escape(message)}$"):
        Recipe(**arguments)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [({"method": "awq"}, "--method awq"), ({"bits_budget": 3.0}, "--bits-budget")],
)
def test_a_text_that_is_missing(arguments: dict[str, Any], what: str) -> None:
    message = f"^{what} needs a calibration text: give one with --calib FILE$"
    with pytest.raises(LutraError, match=message):
        quantize_model(random_decoder(), Recipe(format=W4A8, group=GROUP, **arguments))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            np.zeros((2, 49), np.int64),
            "calibration windows have 49 tokens, the model's context 48: cut them shorter",
        ),
        (
            np.full((2, 8), 96),
            (
                "calibration tokens must be in 0..95, not 96..96: tokenise the text with the "
                "model's own tokenizer"
            ),
        ),
        (
            np.zeros((0, 8), np.int64),
            "calibration must be windows of tokens [n, length], not [0, 8]",
        ),
    ],
)
def test_calibration_that_can_not_be(tokens: Tokens, message: str) -> None:
    with pytest.raises(LutraError, match=f"^{re.escape(message)}$"):
        quantize_model(random_decoder(), RECIPES["gptq"], tokens)


def test_formats_of_another_kind_of_weights() -> None:
    with pytest.raises(LutraError, match=r"^the weights of random are not ternary, "):
        quantize_model(random_decoder(), Recipe(format=Format(w_bits=2, a_bits=8, ternary=True)))
    with pytest.raises(LutraError, match=r"^the weights of random are ternary and would gain "):
        quantize_model(ternary_model(), Recipe(format=W4A8))

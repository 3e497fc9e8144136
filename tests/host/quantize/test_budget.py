"""A budget of bits: exact, kept to, and never worse than the same bits everywhere."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from tests.host.quantize.random_decoder import GROUP, VARIANTS, random_decoder, random_tokens

from lutra.checkpoints.weights import Dense
from lutra.quantize.budget import CHOICES, PROBE, BitPlan, Sensitivity, allot, measure
from lutra.quantize.calibration import STACKS, States
from lutra.quantize.rtn import round_to_nearest
from lutra_golden.errors import LutraError
from lutra_golden.model.shapes import LINEARS


def random_sensitivity(seed: int, n_layers: int = 1) -> Sensitivity:
    """Losses that fall with the bits, by factors that differ; stacks of different sizes."""
    rng = np.random.default_rng(seed)
    shape = (n_layers, len(STACKS))
    loss = rng.lognormal(0, 2, (*shape, 1)) * np.exp(
        -np.cumsum(rng.uniform(0.2, 2, (*shape, len(CHOICES))), axis=2)
    )
    return Sensitivity(loss, rng.integers(1, 9, shape) * 1024)


def uniform(sensitivity: Sensitivity, bits: int) -> BitPlan:
    n_layers, n_stacks = sensitivity.weights.shape
    return BitPlan(((bits,) * n_stacks,) * n_layers)


@pytest.mark.parametrize("budget", [2, 2.5, 3, 3.7, 4, 6, 7.99, 8])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_plan_of_all(seed: int, budget: float) -> None:
    """Against all 625 plans of a layer."""
    sensitivity = random_sensitivity(seed)
    found = allot(sensitivity, budget)
    assert sensitivity.mean_bits(found) <= budget
    plans = [BitPlan((bits,)) for bits in itertools.product(CHOICES, repeat=len(STACKS))]
    best = min(sensitivity.total(p) for p in plans if sensitivity.mean_bits(p) <= budget)
    assert sensitivity.total(found) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("budget", [2, 3, 3.5, 4, 5, 8])
def test_many_layers_of_odd_sizes(budget: float) -> None:
    """Sizes without a common unit are rounded up: still within the budget, and not worse."""
    sensitivity = random_sensitivity(7, 30)
    odd = sensitivity.weights * 1009 + np.arange(4)
    sensitivity = replace(sensitivity, weights=odd)
    found = allot(sensitivity, budget)
    assert sensitivity.mean_bits(found) <= budget
    least = min(sensitivity.total(uniform(sensitivity, b)) for b in CHOICES if b <= budget)
    assert sensitivity.total(found) <= least
    if 2 < budget < 8:
        assert sensitivity.total(found) < 0.9 * least


@pytest.mark.parametrize("budget", [1.99, 8.01, float("nan")])
def test_budgets_that_can_not_be(budget: float) -> None:
    message = f"^bits-budget must be in 2..8, the bits there are to choose from, not {budget:g}$"
    with pytest.raises(LutraError, match=message):
        allot(random_sensitivity(0), budget)


def test_a_plan_names_the_bits_of_matrices() -> None:
    plan = BitPlan(((2, 3, 4, 6), (8, 2, 3, 4)))
    assert plan.of(0) == {
        "q_proj": 2,
        "k_proj": 2,
        "v_proj": 2,
        "o_proj": 3,
        "gate_proj": 4,
        "up_proj": 4,
        "down_proj": 6,
    }
    assert set(plan.of(1)) == set(LINEARS)
    assert plan.of(1)["v_proj"] == 8


def test_the_table_says_bits_and_losses() -> None:
    sensitivity = replace(random_sensitivity(1), loss=np.full((1, 4, 5), 0.0125))
    rows = sensitivity.rows(BitPlan(((2, 3, 4, 8),)))
    assert rows == [
        ("layer", "q, k, v", "o", "gate, up", "down"),
        ("0", "2 (12.50)", "3 (12.50)", "4 (12.50)", "8 (12.50)"),
    ]


def test_the_divergence_is_that_of_the_whole_model() -> None:
    """By hand, in float64, for one stack of the first layer at the width it is measured at."""
    model = random_decoder(**VARIANTS["biases"])
    windows = random_tokens(model, 2, 24)
    found = measure(model, windows, GROUP)
    assert found.loss.shape == (2, 4, 5)
    sizes = [sum(np.prod(model.config.shape_of(n)) for n in names) for names in STACKS.values()]
    np.testing.assert_array_equal(found.weights, [sizes, sizes])
    layer = model.layers[0]
    power = States(model, windows).inputs(0, layer)["gate_proj"].power
    parts = {
        name: Dense(
            round_to_nearest(layer.linear(name).dequantized(), PROBE, GROUP, power).dequantized()
        )
        for name in STACKS["gate_proj"]
    }
    changed = replace(model, layers=[replace(layer, **parts), *model.layers[1:]])
    divergence: list[float] = []
    for window in windows:
        p, q = (
            x - np.log(np.exp(x).sum(axis=1, keepdims=True))
            for x in (model.forward(window), changed.forward(window))
        )
        divergence += list((np.exp(p) * (p - q)).sum(axis=1))
    at = list(STACKS).index("gate_proj")
    expected = np.mean(divergence)
    assert found.loss[0, at, CHOICES.index(PROBE)] == pytest.approx(expected, rel=0.01)


def test_more_bits_cost_less() -> None:
    model = random_decoder()
    said: list[float] = []
    found = measure(model, random_tokens(model, 2, 24), GROUP, lambda _, part: said.append(part))
    assert (np.diff(found.loss, axis=2) < 0).all()
    assert said == sorted(said)
    assert said[-1] == 1

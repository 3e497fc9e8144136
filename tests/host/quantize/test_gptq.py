"""GPTQ: the codes of its definition, less error at the outputs than rounding to nearest."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.quantize.random_decoder import GROUP, VARIANTS, random_decoder, random_tokens

from lutra.checkpoints.weights import Integers
from lutra.quantize.calibration import STACKS, States, output_error
from lutra.quantize.gptq import DAMPING, compensate, gptq, inverse_factor
from lutra.quantize.rtn import Grid, choose_grid
from lutra.quantize.target import Target
from lutra_golden.model.shapes import LINEARS

Float = NDArray[np.float64]


def correlated(seed: int, n: int, k: int, tokens: int = 400) -> tuple[Float, Float]:
    """Weights, and the Gram matrix of inputs with a few strong common directions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, k)) + rng.normal(size=(tokens, 3)) @ rng.normal(0, 2, (3, k))
    return rng.standard_t(5, (n, k)), x.T @ x / tokens


def damped(gram: Float) -> Float:
    return gram + np.eye(len(gram)) * DAMPING * np.diag(gram).mean()


def values(grid: Grid, codes: NDArray[np.integer]) -> Float:
    scale, zero = (x.repeat(grid.group, axis=1) for x in (grid.scale, grid.zero))
    return grid.unit * scale * (codes - zero / 2)


def cost(w: Float, other: Float, h: Float) -> float:
    return float(np.einsum("nk,kl,nl->", other - w, h, other - w))


def by_definition(w: Float, gram: Float, grid: Grid, order: list[int]) -> NDArray[np.int64]:
    """Round a column; move all columns that are left to where the error is least; and so on.

    Where that is follows from the normal equations, anew for each column: no factor, no blocks.
    """
    h, target, rest = damped(gram), w.copy(), w.copy()
    codes = np.zeros(w.shape, np.int64)
    for done in range(len(order)):
        i = order[done]
        scale, zero = grid.scale[:, i // grid.group], grid.zero[:, i // grid.group]
        code = np.clip(np.rint(rest[:, i] / (grid.unit * scale) + zero / 2), 0, 2**grid.bits - 1)
        codes[:, i] = code
        rest[:, i] = grid.unit * scale * (code - zero / 2)
        fixed, left = order[: done + 1], order[done + 1 :]
        if left:
            # d/dR of (target - [F, R]) h (target - [F, R])^T is zero
            pull = (target[:, fixed] - rest[:, fixed]) @ h[np.ix_(fixed, left)]
            rest[:, left] = target[:, left] + pull @ np.linalg.inv(h[np.ix_(left, left)])
    return codes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "group", "bits"), [(5, 8, 8, 2), (3, 24, 8, 4), (4, 160, 32, 3)]
)
def test_the_codes_are_those_of_the_definition(
    n: int, k: int, group: int, bits: int, act_order: bool
) -> None:
    w, gram = correlated(k, n, k)
    grid = choose_grid(w, bits, group)
    order = np.argsort(-np.diag(gram), kind="stable") if act_order else None
    found = compensate(w, inverse_factor(gram, order), grid, order)
    expected = by_definition(w, gram, grid, list(range(k)) if order is None else order.tolist())
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", range(4))
def test_against_all_codes_that_there_are(seed: int) -> None:
    """Three weights of two bits: between rounding to nearest and the best of 64."""
    w, gram = correlated(seed, 60, 3)
    grid, h = choose_grid(w, 2, 3), damped(gram)
    every = np.array(list(itertools.product(range(4), repeat=3)))
    best = 0.0
    for i in range(len(w)):
        row = Grid(
            scale=grid.scale[i : i + 1], zero=grid.zero[i : i + 1], unit=grid.unit, bits=2, group=3
        )
        best += min(cost(w[i : i + 1], values(row, code[None]), h) for code in every)
    found = cost(w, values(grid, compensate(w, inverse_factor(gram), grid)), h)
    nearest = cost(w, values(grid, grid.codes(w)), h)
    assert best <= found < nearest


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    w, _ = correlated(1, 8, 64)
    grid = choose_grid(w, 3, 32)
    gram = np.diag(np.random.default_rng(1).uniform(0.1, 5, 64))
    np.testing.assert_array_equal(compensate(w, inverse_factor(gram), grid), grid.codes(w))


def test_inputs_that_are_never_there() -> None:
    """Dead channels have no say, and their weights are rounded to nearest; so with no input."""
    w, gram = correlated(2, 8, 64)
    dead = [3, 40]
    gram[dead], gram[:, dead] = 0, 0
    grid = choose_grid(w, 3, 32)
    found = compensate(w, inverse_factor(gram), grid)
    np.testing.assert_array_equal(found[:, dead], grid.codes(w)[:, dead])
    none = compensate(w, inverse_factor(0 * gram), grid)
    np.testing.assert_array_equal(none, grid.codes(w))


def test_the_factor_is_that_of_the_inverse() -> None:
    _, gram = correlated(5, 1, 20)
    factor = inverse_factor(gram)
    assert not np.tril(factor, -1).any()
    np.testing.assert_allclose(factor.T @ factor @ damped(gram), np.eye(20), atol=1e-8)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_outputs_of_a_layer_have_less_error(bits: int, act_order: bool) -> None:
    model = random_decoder(**VARIANTS["grouped"])
    states = States(model, random_tokens(model, 12, 40))
    layer = model.layers[1]
    inputs = states.inputs(1, layer)
    target = Target(
        bits=dict.fromkeys(LINEARS, bits),
        group=GROUP,
        a_bits=8,
        head_dim=model.config.head_dim,
        act_order=act_order,
    )
    found = gptq(layer, inputs, target)
    for stack, names in STACKS.items():
        for name in names:
            w, weight = layer.linear(name).dequantized(), found.linear(name)
            assert isinstance(weight, Integers)
            assert (weight.weights.bits, weight.weights.group) == (bits, GROUP)
            gram = inputs[stack].gram
            grid = choose_grid(w, bits, GROUP, inputs[stack].power)
            power = inputs[stack].power
            order = np.argsort(-power, kind="stable") if act_order else None
            codes = compensate(w, inverse_factor(gram, order), grid, order)
            np.testing.assert_array_equal(weight.weights.codes, codes)
            # the layout is the grid's, whatever the order
            np.testing.assert_array_equal(weight.weights.scale, grid.scale)
            np.testing.assert_array_equal(weight.weights.zero, grid.zero)
            nearest = grid.integers(grid.codes(w))
            assert output_error(w, weight, gram) < 0.97 * output_error(w, nearest, gram)

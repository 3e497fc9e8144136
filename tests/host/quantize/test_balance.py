"""Balanced rotary pairs and centres: the same model in floating point, and keys that keep their
eight bits."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.quantize.random_decoder import GROUP, VARIANTS, random_decoder, random_tokens

from lutra.checkpoints.weights import Dense, Grouped, Ternary
from lutra.models.decoder import Decoder, DecoderLayer
from lutra.models.rope import Rope
from lutra.quantize import quantize_layer
from lutra.quantize.balance import balance, key_centre, pair_exponents
from lutra.quantize.pack import Packer, pack_decoder, pack_model
from lutra.quantize.reference import reference
from lutra_golden.matmul.format import Format
from lutra_golden.model.decoder import Decoder as GoldenDecoder
from lutra_golden.model.decoder import Rows
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shapes import LINEARS

Single = NDArray[np.float32]
W8A16 = Format(w_bits=8, a_bits=16)
HALF = 8  # rotary pairs of a head


def with_key_bias(model: Decoder, size: float) -> Decoder:
    """Biases that make one slow pair of every head of keys far larger than the rest."""
    assert model.layers[0].k_bias is not None
    bias = np.zeros((model.config.num_key_value_heads, 2 * HALF), np.float32)
    bias[:, HALF - 1], bias[:, -1] = size, -0.8 * size
    layers = [
        replace(layer, k_bias=layer.k_bias + bias.reshape(-1))
        for layer in model.layers
        if layer.k_bias is not None
    ]
    return replace(model, layers=layers)


def balanced(model: Decoder, tokens: NDArray[np.int64]) -> Decoder:
    """Every layer balanced on its own input for some tokens."""
    x, layers = model.embed(tokens), list[DecoderLayer]()
    for layer in model.layers:
        layers.append(balance(layer, x, model.config))
        x = model.layer(layer, x)
    return replace(model, layers=layers)


def integer_logits(model: PackedModel, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """The integer path's, as floats."""
    decoder = GoldenDecoder(model)
    rows = [Rows(decoder.caches(), slice(0, len(tokens)), 0)]
    x = decoder.embed(list(tokens))
    for i in range(len(model.layers)):
        x = decoder.layer(i, x, rows)
    found, scale = decoder.head(x)
    return found * (scale.m * 2.0**scale.e)[:, None] * model.head_scale


def divergence(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Mean divergence of the next token's probabilities, in nats."""
    p, q = (x - x.max(axis=1, keepdims=True) for x in (expected, found))
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_changes_in_floating_point(variant: str) -> None:
    """Factors are powers of two, and cancel in every score: the logits are the same bits."""
    model = random_decoder(**VARIANTS[variant], seed=5)
    rng = np.random.default_rng(0)
    layers = list[DecoderLayer]()
    for layer in model.layers:
        if layer.k_norm is not None:
            by = np.ldexp(np.float32(1), rng.integers(-6, 7, HALF))
            layers.append(replace(layer, k_norm=layer.k_norm * np.tile(by, 2)))
        else:
            rows = layer.k_proj.shape[0]
            by = np.ldexp(np.float32(1), rng.integers(-6, 7, (rows // 2 // HALF, HALF)))
            by = np.tile(by, 2).reshape(rows, 1)
            bias = None if layer.k_bias is None else layer.k_bias * by[:, 0]
            scaled = Dense(layer.k_proj.dequantized() * by)
            layers.append(replace(layer, k_proj=scaled, k_bias=bias))
    model = replace(model, layers=layers)
    tokens = random_tokens(model, 1, 20)[0]
    found = balanced(model, tokens)
    for before, after in zip(model.layers, found.layers, strict=True):
        if before.k_norm is not None and after.k_norm is not None:
            assert (before.k_norm != after.k_norm).any()
        else:
            assert (before.k_proj.dequantized() != after.k_proj.dequantized()).any()
    np.testing.assert_array_equal(found.forward(tokens), model.forward(tokens))


def sized(exponents: list[list[int]]) -> NDArray[np.float64]:
    """Heads ``[H, 3, 2 * pairs]`` whose pairs have the sizes ``2**exponents``."""
    size = np.ldexp(1.0, np.array(exponents))
    angles = np.random.default_rng(2).uniform(0, 2 * np.pi, (len(size), 3, size.shape[1]))
    return np.concatenate([size[:, None] * np.cos(angles), size[:, None] * np.sin(angles)], -1)


def test_factors_are_the_square_roots_of_ratios() -> None:
    q, k = sized([[0, 0, 0, 0, 0]]), sized([[6, -4, 0, 0, 0]])
    assert pair_exponents(q, k).tolist() == [[3, -2, 0, 0, 0] * 2]


def test_a_factor_common_to_a_head_is_left_out() -> None:
    q, k = sized([[-3, 2, 2, 2, 2]]), sized([[12, 7, 7, 7, 7]])
    assert pair_exponents(q, k).tolist() == [[5, 0, 0, 0, 0] * 2]


def test_the_largest_of_the_queries_that_share_keys_counts() -> None:
    q, k = sized([[0, 0, 0], [-8, 4, 0], [0, 0, 0], [0, 0, 0]]), sized([[8, 8, 0], [0, 0, -6]])
    assert pair_exponents(q, k).tolist() == [[2, 0, -2] * 2, [0, 0, -3] * 2]
    q, k = sized([[4, 0, 0], [-8, 0, 0], [-8, 0, 0], [-8, 0, 0]]), sized([[8, 0, 0]])
    assert pair_exponents(q, k).tolist() == [[2, 0, 0] * 2]


def test_pairs_of_nothing_have_a_finite_factor() -> None:
    silent = np.zeros((1, 3, 6))
    assert pair_exponents(silent, silent).tolist() == [[0] * 6]
    q, k = sized([[0, 0, 0]]), sized([[0, 0, 0]])
    k[..., [0, 3]] = 0
    assert pair_exponents(q, k).tolist() == [[-5, 0, 0] * 2]
    k[..., [0, 3]] = 1e12
    assert pair_exponents(q, k).tolist() == [[5, 0, 0] * 2]  # half of ten bits


def test_the_centre_is_in_the_middle_of_an_arc() -> None:
    """Of a quarter turn: no position is further away than half a chord; of more than half a turn
    there is none."""
    n, turns = 101, np.array([0.0, 0.25, 0.4999, 0.51, 7.0])
    angles = np.outer(np.arange(n), turns * 2 * np.pi / (n - 1))
    cos, sin = 1.5 * np.cos(angles), 1.5 * np.sin(angles)
    rng = np.random.default_rng(1)
    mean = rng.normal(size=(2, 10))
    lo, hi = np.split(mean, 2, axis=1)
    at = (lo + 1j * hi)[:, None] * (cos + 1j * sin)  # [heads, positions, pairs]
    found = key_centre(mean, cos, sin)
    centre = found[:, None, :5] + 1j * found[:, None, 5:]
    radius = np.abs(at - centre).max(axis=1) / np.abs(at).max(axis=1)
    expected = [0, np.sin(np.pi / 4), np.sin(0.4999 * np.pi), 1, 1]
    np.testing.assert_allclose(radius, [expected] * 2, atol=1e-12)
    assert not found.reshape(2, 2, 5)[..., 3:].any()
    # one position is its own centre
    np.testing.assert_allclose(key_centre(mean, cos[:1], sin[:1]), 1.5 * mean)


def test_a_bias_has_no_part_in_the_size_of_a_pair() -> None:
    """So neither keys nor queries are spoilt by it, whatever it is."""
    model = random_decoder(**VARIANTS["biases"])
    slow = replace(model, config=replace(model.config, rope=Rope(theta=1e30)))
    x = slow.embed(random_tokens(model, 1, 20)[0])
    relative: list[list[float]] = []
    for size in (0, 300):
        layer = with_key_bias(slow, size).layers[0]
        found = balance(layer, x, slow.config)
        assert found.k_centre is not None
        by = layer.k_proj.dequantized()[:, 0] / found.k_proj.dequantized()[:, 0]
        relative.append((by / np.median(by)).tolist())
        # what is left of the bias is the mean of what it is added to
        moved = found.k_centre.reshape(-1, 2 * HALF)[0] * by
        assert np.abs(moved[[HALF - 1, -1]] - np.array([size, -0.8 * size])).max() < 3
    assert relative[0] == relative[1]


def test_queries_and_keys_with_biases_are_of_one_size() -> None:
    """The largest bias decides on the fraction bits of all."""
    model = with_key_bias(random_decoder(**VARIANTS["biases"]), 300)
    x = model.embed(random_tokens(model, 1, 20)[0])
    layer = balance(model.layers[0], x, model.config)
    assert layer.q_bias is not None
    assert layer.k_bias is not None
    assert np.abs(layer.k_bias).max() < 30
    packed = pack_model(model, W8A16, GROUP).layers[0].bias
    assert packed is not None
    assert packed.frac >= 10
    none = replace(model.layers[0], q_proj=Dense(np.zeros_like(layer.q_proj.dequantized())))
    none = replace(none, q_bias=np.zeros_like(layer.q_bias))
    assert balance(none, x, model.config).k_bias is not None


def test_a_centre_that_keys_do_not_reach_is_limited() -> None:
    model = with_key_bias(random_decoder(**VARIANTS["biases"]), 1e7)
    x = model.embed(random_tokens(model, 1, 20)[0])
    found = balance(model.layers[0], x, replace(model.config, rope=Rope(theta=1e30)))
    assert found.k_centre is not None
    assert np.abs(found.k_centre).max() == 2047


def test_only_keys_with_biases_have_a_centre() -> None:
    for variant in VARIANTS:
        model = random_decoder(**VARIANTS[variant])
        x = model.embed(random_tokens(model, 1, 20)[0])
        found = balance(model.layers[0], x, model.config).k_centre
        assert (found is not None) == (variant == "biases")


def test_keys_are_rounded_without_their_centre() -> None:
    """Of fewer bits in floating point, too; exact ones need none."""
    model = with_key_bias(random_decoder(**VARIANTS["biases"]), 300)
    tokens = random_tokens(model, 1, 40)[0]
    slow = replace(model, config=replace(model.config, rope=Rope(theta=1e30)))
    centred = balanced(slow, tokens)
    bare = replace(centred, layers=[replace(x, k_centre=None) for x in centred.layers])
    exact = slow.forward(tokens)
    np.testing.assert_array_equal(centred.forward(tokens), bare.forward(tokens))
    with_centre, without = (
        divergence(exact, replace(each, key_bits=8).forward(tokens)) for each in (centred, bare)
    )
    assert with_centre < without / 100


def test_codes_stay_and_scales_take_the_factors() -> None:
    model = with_key_bias(random_decoder(**VARIANTS["biases"]), 64)
    layer, rng = model.layers[0], np.random.default_rng(3)
    n, k = layer.k_proj.shape
    grouped = Grouped(
        codes=rng.integers(0, 16, (n, k)).astype(np.uint8),
        scale=rng.uniform(0.01, 0.02, (n, k // GROUP)).astype(np.float32),
        zero=np.full((n, k // GROUP), 8, np.float32),
        bits=4,
        group=GROUP,
        offset=rng.uniform(-0.1, 0.1, (n, k // GROUP)).astype(np.float32),
    )
    layer = replace(layer, k_proj=grouped)
    found = balance(layer, model.embed(random_tokens(model, 1, 20)[0]), model.config).k_proj
    assert isinstance(found, Grouped)
    np.testing.assert_array_equal(found.codes, grouped.codes)
    ratio = grouped.scale / found.scale
    assert ratio.max() >= 4
    np.testing.assert_array_equal(ratio, np.exp2(np.rint(np.log2(ratio))))
    assert grouped.offset is not None
    assert found.offset is not None
    np.testing.assert_array_equal(found.offset * ratio, grouped.offset)


def test_ternary_matrices_stay_as_they_are() -> None:
    model = random_decoder()
    layer = model.layers[0]
    codes = np.ones(layer.k_proj.shape, np.int8)
    layer = replace(layer, k_proj=Ternary(codes, 0.1))
    assert balance(layer, model.embed(np.arange(9)), model.config) is layer


@pytest.mark.parametrize(("size", "least"), [(30, 3), (100, 20), (300, 50)])
def test_keys_with_large_biases_keep_their_bits(size: float, least: float) -> None:
    """Qwen2's trait: integers diverge ``least`` times less than as they are, and no more for a
    large bias than for a small one."""
    model = with_key_bias(random_decoder(**VARIANTS["biases"]), size)
    tokens = random_tokens(model, 1, 40)[0]
    expected = model.forward(tokens)
    layers = [quantize_layer(x, dict.fromkeys(LINEARS, 8), GROUP) for x in model.layers]
    plain = divergence(expected, integer_logits(pack_decoder(model.replaced(layers, 16)), tokens))
    found = divergence(expected, integer_logits(pack_model(model, W8A16, GROUP), tokens))
    assert found < 1e-4
    assert found < plain / least


def test_what_is_packed_is_the_balanced_model() -> None:
    model = with_key_bias(random_decoder(**VARIANTS["biases"]), 30)
    packer = Packer(model.replaced(model.layers, 16))
    first = packer.balanced(model.layers[0])
    bits: dict[str, int] = dict.fromkeys(LINEARS, 8)
    expected = quantize_layer(first, bits, GROUP).k_proj.dequantized()
    found = reference(pack_model(model, W8A16, GROUP)).layers[0].k_proj.dequantized()
    np.testing.assert_allclose(found, expected, rtol=2**-15)
    assert first.k_bias is not None
    assert np.abs(first.k_bias).max() < 16

"""Padded heads: every element in its place, zeros between, and nothing else changes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.quantize.random_decoder import GROUP, VARIANTS, random_decoder

from lutra.compile.compiler import compile_model
from lutra.compile.configure import configure
from lutra.quantize.pack import pack_model
from lutra_golden.arith.scale import pack_scale, scale_from_float
from lutra_golden.control.isa import INSTRUCTION_BYTES, NormSource, Opcode, decode
from lutra_golden.core.configs import NANO
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import HeadNorms, PackedBias, PackedLayer, PackedModel
from lutra_golden.model.padding import built_head_dim, pad_layer, pad_table, padded_group
from lutra_golden.model.shapes import LINEARS


@pytest.mark.parametrize(
    ("head_dim", "built"), [(4, 32), (32, 32), (36, 64), (64, 64), (96, 128), (128, 128)]
)
def test_heads_are_powers_of_two(head_dim: int, built: int) -> None:
    assert built_head_dim(head_dim) == built


@pytest.mark.parametrize(
    ("group", "head_dim", "padded"), [(128, 128, 128), (128, 96, 32), (32, 24, 8), (64, 80, 16)]
)
def test_groups_end_where_heads_do(group: int, head_dim: int, padded: int) -> None:
    assert padded_group(group, head_dim) == padded


def narrow(layer: PackedLayer) -> PackedLayer:
    """The layer of heads of 32, taken as one of heads of 8, with biases."""
    rows = sum(len(layer.linear(name).weights.codes) for name in ("q_proj", "k_proj", "v_proj"))
    keys = len(layer.k_proj.weights.codes)
    centre = np.arange(-1, -keys - 1, -1).astype(np.int16)
    bias = PackedBias(np.arange(1, rows + 1).astype(np.int16), 3, centre)
    return replace(layer, bias=bias)


def of_heads(values: NDArray[np.generic], axis: int, size: int) -> NDArray[np.generic]:
    """``values`` with the axis split in heads, which come first: ``[heads, size, ...]``."""
    moved = np.moveaxis(values, axis, 0)
    return moved.reshape(-1, size, *moved.shape[1:])


@pytest.mark.parametrize("kind", ["ternary", "groups"])
def test_elements_keep_their_order(
    kind: str,
    packed: Callable[[str], PackedModel],
    packed_llama: Callable[[str, str], PackedModel],
) -> None:
    model = packed("grouped") if kind == "ternary" else packed_llama("llama-grouped", "W4A8")
    layer = narrow(model.layers[0])
    wide = pad_layer(layer, 8, 32)
    for name in LINEARS:
        before, after = layer.linear(name), wide.linear(name)
        assert after.weights.ternary == before.weights.ternary == (kind == "ternary")
        assert after.peak == before.peak == after.weights.peak
        assert (after.scale, after.shift) == (before.scale, before.shift)
        old, new = before.weights.doubled(), after.weights.doubled()
        if name in ("gate_proj", "up_proj", "down_proj"):
            np.testing.assert_array_equal(new, old)
            continue
        axis = 1 if name == "o_proj" else 0
        old, new = of_heads(old, axis, 8), of_heads(new, axis, 32)
        kept = np.arange(8) + (12 * (np.arange(8) >= 4) if name in ("q_proj", "k_proj") else 0)
        np.testing.assert_array_equal(new[:, kept], old)
        assert not np.delete(new, kept, axis=1).any()
    assert wide.bias is not None
    q, k, v = np.split(wide.bias.values.reshape(-1, 32), [len(wide.q_proj.weights.codes) // 32,
        (len(wide.q_proj.weights.codes) + len(wide.k_proj.weights.codes)) // 32])  # fmt: skip
    assert layer.bias is not None
    turned = np.concatenate([np.concatenate([x[:, :4], x[:, 16:20]], axis=1) for x in (q, k)])
    found = np.concatenate([turned.ravel(), v[:, :8].ravel()])
    np.testing.assert_array_equal(found, layer.bias.values)
    assert layer.bias.centre is not None
    assert wide.bias.centre is not None
    centre = wide.bias.centre.reshape(-1, 32)
    kept = np.concatenate([centre[:, :4], centre[:, 16:20]], axis=1)
    np.testing.assert_array_equal(kept.ravel(), layer.bias.centre)
    assert np.count_nonzero(centre) == len(layer.bias.centre)
    assert np.count_nonzero(wide.bias.values) == len(found)
    if kind == "ternary":
        assert layer.attention_norm is not None
        assert wide.attention_norm is not None
        gamma = wide.attention_norm.gamma.reshape(-1, 32)
        np.testing.assert_array_equal(gamma[:, :8].ravel(), layer.attention_norm.gamma)
        assert not gamma[:, 8:].any()


def test_the_rotary_table() -> None:
    table = np.arange(1, 25).reshape(3, 8).astype(np.int16)
    wide = pad_table(table, 32)
    np.testing.assert_array_equal(wide[:, :4], table[:, :4])
    np.testing.assert_array_equal(wide[:, 16:20], table[:, 4:])
    assert np.count_nonzero(wide) == table.size


def test_whole_heads_are_left_alone(packed: Callable[[str], PackedModel]) -> None:
    layer, table = packed("grouped").layers[0], packed("grouped").rope
    assert pad_layer(layer, 32, 32) is layer
    np.testing.assert_array_equal(pad_table(table, 32), table)


def test_norms_of_heads_are_over_what_there_was(packed: Callable[[str], PackedModel]) -> None:
    rng = np.random.default_rng(2)
    query, key = rng.integers(-30000, 30000, (2, 8)).astype(np.int16)
    layer = replace(packed("grouped").layers[0], head_norms=HeadNorms(query, key, 14))
    norms = pad_layer(layer, 8, 32).head_norms
    assert norms is not None
    x, wide, eps = rng.normal(size=8), np.zeros(32), 0.01
    wide[:4], wide[16:20] = x[:4], x[4:]
    for before, after in ((query, norms.query), (key, norms.key)):
        expected = x / np.sqrt((x * x).mean() + eps) * before
        actual = wide / np.sqrt((wide * wide).mean() + eps * 8 / 32) * after
        np.testing.assert_allclose(actual[[*range(4), *range(16, 20)]], expected, atol=3)
        assert not np.delete(after, [*range(4), *range(16, 20)]).any()


def test_a_configuration_for_padded_heads(packed: Callable[[str], PackedModel]) -> None:
    """Sizes of ``bitnet_b1_58-large``'s heads."""
    model = replace(packed("grouped"), head_dim=96, n_heads=16, n_kv_heads=16)
    narrow = configure(replace(model, head_dim=24))
    assert (narrow.head_dim, narrow.kv_scale_bytes, narrow.word_bytes) == (32, 128, 128)
    config = configure(model)
    assert (config.head_dim, config.word_width, config.n_heads) == (128, 1024, 16)
    message = "is built for head_dim 64, the model has 96, padded to 128: use .* head_dim=128$"
    with pytest.raises(LutraError, match=message):
        compile_model(model, NANO)


def test_epsilon_is_of_the_mean_over_padded_heads() -> None:
    model = pack_model(random_decoder(**VARIANTS["qk-norm"]), Format.parse("W4A8"), GROUP)
    assert model.head_dim == 16
    code = compile_model(model, configure(model)).code
    words = [code[i : i + INSTRUCTION_BYTES] for i in range(0, len(code), INSTRUCTION_BYTES)]
    rotations = [x for x in map(decode, words) if x.opcode is Opcode.ROPEQ]
    assert rotations
    assert {x.args["eps"] for x in rotations} == {round(model.head_eps / 2)}


def test_the_attention_norm_is_over_the_elements_that_there_are() -> None:
    model = pack_model(random_decoder(**VARIANTS["sub-norms"]), Format.parse("W4A8"), GROUP)
    code = compile_model(model, configure(model)).code
    words = [code[i : i + INSTRUCTION_BYTES] for i in range(0, len(code), INSTRUCTION_BYTES)]
    norms = [
        x.args
        for x in map(decode, words)
        if x.opcode is Opcode.NORMQ and x.args["source"] == NormSource.ATTENTION
    ]
    elements = model.n_heads * model.head_dim
    assert len(norms) == len(model.layers)
    assert {8 * args["n_words"] for args in norms} == {2 * elements}
    assert {args["inv_n"] for args in norms} == {int(pack_scale(scale_from_float(1 / elements)))}

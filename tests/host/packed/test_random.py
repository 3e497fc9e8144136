"""Packed models of real shapes with random weights."""

import numpy as np
import pytest
from tests.host.tiles import golden

from lutra.compile.compiler import compile_model
from lutra.compile.configure import configure
from lutra.packed.random import random_packed
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.b128 import row_bytes
from lutra_golden.model.shapes import LINEARS, Gate


def test_a_ternary_shape() -> None:
    model = random_packed("random:bitnet-2b-4t", n_layers=1)
    assert (model.format, model.group, model.context) == ("W1.58A8", None, 4096)
    assert (model.hidden_size, model.n_heads, model.n_kv_heads) == (2560, 20, 5)
    assert model.head.shape == model.embedding.shape == (128256, 2560)
    layer = model.layers[0]
    trits = layer.q_proj.weights.doubled()
    assert {-2, 0, 2} == set(np.unique(trits[:8]).tolist())
    # the ternary engine holds all sums of the head without a shift
    assert model.head_shift == 1 and np.abs(model.head).max() <= 121
    down = layer.down_proj.stored.codes
    assert not np.array_equal(down[:100], layer.up_proj.stored.codes[:100, : down.shape[1]])


def test_equal_seeds_give_equal_models() -> None:
    models = [random_packed("random:smollm-135m", group=64, n_layers=1) for _ in range(2)]
    for name in LINEARS:
        a, b = (model.layers[0].linear(name).stored for model in models)
        np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(models[0].head, models[1].head)


@pytest.mark.parametrize("format", ["W1.58g64A8", "W1g32A8"])
def test_few_bits_in_groups(format: str) -> None:
    wanted = Format.parse(format)
    model = random_packed("random:smollm-135m", wanted, 64, context=64, n_layers=1)
    assert (model.format, model.ternary, model.group) == (format, False, wanted.group)
    weights = model.layers[0].down_proj.weights
    assert (weights.bits, weights.group, weights.trits) == (
        wanted.w_bits, wanted.group, wanted.ternary,
    )  # fmt: skip
    assert set(np.unique(weights.codes)) == set(range(3 if wanted.ternary else 2))
    assert golden(model).run_tile([5, 7], 0, 0).logits.std() > 1000


@pytest.mark.parametrize(("shape", "tied"), [("smollm-135m", True), ("qwen3-8b", False)])
def test_embedding_and_head_in_codes(shape: str, tied: bool) -> None:
    model = random_packed(
        f"random:{shape}", group=64, context=64, n_layers=1, head_bits=4,
        a_groups=ActivationGroups(),
    )  # fmt: skip
    coded = model.vocabulary
    assert model.format == "W4A8g32"
    assert coded is not None and coded.tied is tied and coded.head.stored.bits == 4
    row = row_bytes(model.hidden_size, 4) + model.hidden_size // 64
    assert coded.n_bytes == (1 if tied else 2) * model.vocab_size * row
    if tied:
        result = golden(model).run_tile([5, 7, 49151], 0, 0)
        assert result.logits.std() > 1000 and not result.saturated


@pytest.mark.parametrize("format", ["W2A8", "W4A16"])
def test_it_runs(format: str) -> None:
    model = random_packed(
        "random:smollm-135m", Format.parse(format), group=64, context=64, n_layers=1
    )
    compile_model(model, configure(model, engine="mac"))
    result = golden(model).run_tile([5, 7, 49151], 0, 0)
    assert result.logits.shape == (3, 49152) and not result.saturated
    # the tokens differ, and so do their logits, which are spread over their range
    assert len({tuple(row[:16]) for row in result.logits.tolist()}) == 3
    assert result.logits.std() > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("random:gpt-2",), "a random model must be one of random:bitnet-2b-4t, .* not 'random:"),
        (("random:bitnet-2b-4t", Format.parse("W4A8")), "has ternary weights, which are not round"),
        (("random:smollm-135m", Format.parse("W1.58A8")), "has no ternary weights of one scale: "),
        (("random:bitnet-2b-4t", Format.parse("W1.58g64A8")), "has ternary weights, which are not"),
        (
            ("random:smollm-135m", None, 128),
            "groups of 128 do not divide a depth of 576: use anoth",
        ),
        (("random:smollm-135m", None, 64, 4096), "the context must be in 1..2048, not 4096"),
    ],
)
def test_refusals(arguments: tuple[str, Format | None, int, int], message: str) -> None:
    with pytest.raises(LutraError, match=message):
        random_packed(*arguments, n_layers=1)


def test_one_bit_of_bonsai() -> None:
    """Weights, embedding and head of one bit in groups of 128, unless said otherwise."""
    model = random_packed("random:bonsai-1.7b", context=64, n_layers=1, vocab_size=512)
    assert (model.format, model.group, model.vocab_size) == ("W1g128A8", 128, 512)
    assert model.vocabulary is not None and model.vocabulary.head.stored.bits == 1
    assert golden(model).run_tile([5, 7], 0, 0).logits.std() > 1000
    plain = random_packed(
        "random:bonsai-1.7b", Format.parse("W4A8"), context=64, n_layers=1, vocab_size=512,
        head_bits=0,
    )  # fmt: skip
    assert (plain.format, plain.vocabulary) == ("W4A8", None)
    assert plain.head.shape == (512, 2048)


def test_bitnet_large_has_silu_and_sub_norms() -> None:
    model = random_packed("random:bitnet-large", context=64, n_layers=1, vocab_size=512)
    layer = model.layers[0]
    assert (model.format, model.gate, model.head_dim) == ("W1.58A8", Gate.SILU, 96)
    assert layer.attention_norm is not None and layer.ffn_norm is not None
    assert golden(model).run_tile([5, 7], 0, 0).logits.std() > 1000

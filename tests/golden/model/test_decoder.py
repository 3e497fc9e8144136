"""The integer decoder beside the program of the same model, and beside itself in other pieces."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.models.small_models import VARIANTS, write_variant
from tests.host.packed_models import loud_models, program_tiles

from lutra.checkpoints.weights import Ternary
from lutra.models import find_model, load_model
from lutra.quantize.pack import pack_model
from lutra_golden.arith.fixed import Int
from lutra_golden.arith.scale import scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.format import Format
from lutra_golden.model import decoder as module
from lutra_golden.model.decoder import Decoder, Rows
from lutra_golden.model.packed import PackedLinear, PackedModel

# heads that no power of two holds in groups of 16 are more than any configuration takes
NO_CONFIGURATION = ("qwen3-wide-heads",)


def run(
    decoder: Decoder, tokens: list[int], pieces: tuple[int, ...] = ()
) -> tuple[Int, NDArray[np.float64]]:
    """Logits and what they are worth, in pieces of these sizes and then the rest."""
    caches, position = decoder.caches(), 0
    logits, worth = list[Int](), list[NDArray[np.float64]]()
    for size in (*pieces, len(tokens) - sum(pieces)):
        x = decoder.embed(tokens[position : position + size])
        for i in range(len(caches)):
            x = decoder.layer(i, x, [Rows(caches, slice(0, size), position)])
        found, scale = decoder.head(x)
        logits.append(found)
        worth.append(scale_to_float(scale) * decoder.model.head_scale)
        position += size
    return np.concatenate(logits), np.concatenate(worth)


def small(folder: Path, variant: str) -> PackedModel:
    changes = {"hidden_size": 64, "num_hidden_layers": 2}
    model = load_model(write_variant(folder, variant, changes=changes))
    ternary = isinstance(model.layers[0].q_proj, Ternary)
    return pack_model(model, None if ternary else Format.parse("W4A8"), 16)


def check(model: PackedModel, n: int = 20) -> None:
    tokens = np.random.default_rng(1).integers(0, model.vocab_size, n).tolist()
    expected = program_tiles(model, tokens)
    logits, worth = run(Decoder(model), tokens, (7, 1))
    np.testing.assert_array_equal(logits, expected.logits)
    np.testing.assert_array_equal(worth, expected.scale)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in NO_CONFIGURATION])
def test_every_architecture(variant: str, tmp_path: Path) -> None:
    """Logits and scales are those of the compiled program, which the interpreter runs."""
    check(small(tmp_path, variant))


@pytest.mark.parametrize(
    ("name", "format", "kv"),
    [
        ("tales", None, 8),
        ("tales", None, 4),
        ("tales-llama", "W4A8", 8),
        pytest.param("tales-llama", "W4A16", 8, marks=pytest.mark.slow),
        pytest.param("tales-llama", "W2A8", 4, marks=pytest.mark.slow),
    ],
)
def test_the_shipped_models(name: str, format: str | None, kv: int) -> None:
    wanted = None if format is None else Format.parse(format)
    check(pack_model(load_model(find_model(name)), wanted, kv_bits=kv), 12)


def test_a_model_that_no_configuration_holds(tmp_path: Path) -> None:
    model = small(tmp_path, NO_CONFIGURATION[0])
    tokens = list(range(9))
    whole, pieces = run(Decoder(model), tokens), run(Decoder(model), tokens, (2, 3))
    np.testing.assert_array_equal(whole[0], pieces[0])
    np.testing.assert_array_equal(whole[1], pieces[1])


def test_keys_and_values_of_different_bits(packed: Callable[[str], PackedModel]) -> None:
    """Values in four bits change the logits, keys in four bits as well change them again."""
    model, tokens = packed("odd"), list(range(8))
    found = [
        run(Decoder(replace(model, key_bits=k, value_bits=v)), tokens)[0]
        for k, v in ((8, 8), (8, 4), (4, 4))
    ]
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2])


def test_rows_of_several_sequences(packed: Callable[[str], PackedModel]) -> None:
    """Sequences side by side, each at a position of its own, are what each is alone."""
    decoder = Decoder(packed("odd"))
    texts = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    alone = [run(decoder, text)[0] for text in texts]
    caches = [decoder.caches() for _ in texts]
    begun = [1, 3, 0]
    for each, text, n in zip(caches, texts, begun, strict=True):
        if n:
            x = decoder.embed(text[:n])
            for i in range(len(each)):
                x = decoder.layer(i, x, [Rows(each, slice(0, n), 0)])
    rows, tokens = list[Rows](), list[int]()
    for each, text, n in zip(caches, texts, begun, strict=True):
        rows.append(Rows(each, slice(len(tokens), len(tokens) + len(text) - n), n))
        tokens += text[n:]
    x = decoder.embed(tokens)
    for i in range(len(caches[0])):
        x = decoder.layer(i, x, rows)
    logits = decoder.head(x)[0]
    for each, expected, n in zip(rows, alone, begun, strict=True):
        np.testing.assert_array_equal(logits[each.rows], expected[n:])


def test_large_models_keep_no_floats(
    packed: Callable[[str], PackedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = run(Decoder(packed("odd")), [1, 2, 3])
    monkeypatch.setattr(module, "_KEPT", 0)
    monkeypatch.setattr(module, "_ROWS", 24)
    decoder = Decoder(packed("odd"))
    again = run(decoder, [1, 2, 3])
    np.testing.assert_array_equal(kept[0], again[0])
    assert not decoder._kept  # pyright: ignore[reportPrivateUsage]


def test_sums_that_float32_does_not_hold_are_exact(packed: Callable[[str], PackedModel]) -> None:
    model, rng = packed("odd"), np.random.default_rng(4)
    layer = model.layers[0]
    shape = layer.o_proj.weights.codes.shape
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    codes[0] = 255
    side = np.full((shape[0], 1), 15), np.ones((shape[0], 1), np.int64)
    weights = GroupedWeights(codes=codes, scale=side[0], zero=side[1], bits=8, group=shape[1])
    loud = replace(layer, o_proj=PackedLinear(weights, layer.o_proj.scale, 0))
    decoder = Decoder(replace(model, layers=[loud, *model.layers[1:]]))
    a = rng.integers(-127, 128, (5, shape[1]))
    a[0] = 127
    found = decoder.product(0, "o_proj", a)
    expected = a @ weights.doubled().T
    assert np.abs(expected).max() > 1 << 24
    np.testing.assert_array_equal(found, expected)


def test_the_flag_of_saturation(packed: Callable[[str], PackedModel]) -> None:
    """Every place that can saturate sets it; a model with scales of its own reaches each."""
    model = packed("odd")
    decoder = Decoder(model)
    run(decoder, [1, 2])
    assert not decoder.saturation.seen
    for name, loud in loud_models(model).items():
        decoder = Decoder(loud)
        run(decoder, [1, 2])
        assert decoder.saturation.seen, name


def test_refuses_numbers_beyond_the_path(packed: Callable[[str], PackedModel]) -> None:
    model = replace(packed("odd"), residual_frac=packed("odd").embedding_frac + 17)
    with pytest.raises(LutraError, match=r"^embeddings are shifted by 17 bits, 0 to 16 fit "):
        Decoder(model)


def test_no_rows_have_no_logits(packed: Callable[[str], PackedModel]) -> None:
    decoder = Decoder(packed("odd"))
    logits, scale = decoder.head(np.zeros((0, packed("odd").hidden_size), np.int64))
    assert logits.shape == (0, packed("odd").vocab_size)
    assert scale.m.shape == (0,)

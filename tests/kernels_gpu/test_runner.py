"""Whole models under the interpreter: the logits are the golden device's."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")

from tests.host.models.small_models import write_variant
from tests.host.packed_models import golden_tiles
from triton.runtime import interpreter

from lutra.devices.cuda.arrays import lowered_around, lowered_layers, model_shape
from lutra.models import find_model, load_model
from lutra.quantize.pack import pack_model
from lutra_golden.matmul.format import FORMATS, TERNARY_NAME, Format
from lutra_golden.model.packed import PackedModel
from lutra_kernels import launch
from lutra_kernels.model import upload_model
from lutra_kernels.runner import Runner, TileOutput

pytestmark = pytest.mark.interpreted


def runner_of(model: PackedModel, **options: int) -> Runner:
    shape = model_shape(model)
    uploaded = upload_model(shape, lowered_around(model), lowered_layers(model))
    return Runner(uploaded, page=32, **options)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in as few programs as possible, which the interpreter runs one after another, and
    without its watch over 32 bits, which the tests of single kernels are under."""
    monkeypatch.setattr(launch, "_SMS", 1)
    options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)


def small_model(
    folder: Path, variant: str, format: str | None, kv_bits: int = 8, **changes: object
) -> PackedModel:
    """A random model with one layer less than tests of models need."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    changes = sizes | changes
    checkpoint = load_model(write_variant(folder, variant, changes=changes))
    return pack_model(checkpoint, Format.parse(format) if format else None, 16, kv_bits=kv_bits)


def check(model: PackedModel, runner: Runner, sizes: Sequence[int], seed: int = 0) -> None:
    """Run tokens in tiles of these sizes, all with logits, and compare with golden."""
    tokens = np.random.default_rng(seed).integers(0, model.vocab_size, sum(sizes)).tolist()
    expected = golden_tiles(model, tokens)
    position = 0
    for size in sizes:
        tile = slice(position, position + size)
        found: TileOutput = runner.run(tokens[tile], position, 0)
        assert np.array_equal(found.logits, expected.logits[tile])
        assert np.array_equal(found.argmax, expected.argmax[tile])
        assert np.array_equal(
            np.ldexp(found.scale.m.astype(float), found.scale.e) * model.head_scale,
            expected.scale[tile],
        )
        position += size


@pytest.mark.parametrize(
    ("variant", "format", "kv_bits"),
    [
        ("bitnet", None, 8),
        ("llama", "W4A8", 4),
        ("qwen2-window", "W2A8", 8),
        ("qwen3", "W2A16", 4),
    ],
)
def test_kinds_of_models(variant: str, format: str | None, kv_bits: int, tmp_path: Path) -> None:
    model = small_model(tmp_path, variant, format, kv_bits)
    check(model, runner_of(model, split_from=8), [6, 1, 1, 1])


def test_refusals(tmp_path: Path) -> None:
    model = small_model(tmp_path, "bitnet", None, num_hidden_layers=1)
    runner = runner_of(model, m_max=4)
    for tokens, position, logits_from, message in (
        ([], 0, 0, "a tile has 1 to 4 tokens, not 0"),
        ([1] * 5, 0, 0, "a tile has 1 to 4 tokens, not 5"),
        ([1] * 3, 62, 0, "positions must be in 0..63, not 62..64"),
        ([1], 0, 2, "logits_from must be in 0..1, not 2"),
        ([1, 112], 0, 0, "tokens must be in 0..111, not [1, 112]"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            runner.run(tokens, position, logits_from)


def test_matrices_of_a_stack_are_alike(tmp_path: Path) -> None:
    model = small_model(tmp_path, "llama", "W4A8", num_hidden_layers=1)
    layer = next(lowered_layers(model))
    fields = dict(layer.numbers["k_proj"]) | {"shift": 23}
    numbers = {**layer.numbers, "k_proj": fields}
    shift = layer.numbers["q_proj"]["shift"]
    expected = f"q_proj, k_proj, v_proj must have one shift, not [{shift}, 23, {shift}]"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        changed = layer._replace(numbers=numbers)
        upload_model(model_shape(model), lowered_around(model), [changed])


def test_only_the_logits_that_are_wanted(tmp_path: Path) -> None:
    model = small_model(tmp_path, "bitnet", None, num_hidden_layers=1)
    runner = runner_of(model)
    whole = runner.run([5, 6, 7], 0, 0)
    part = runner.run([5, 6, 7], 0, 2)
    assert np.array_equal(part.logits, whole.logits[2:])
    assert np.array_equal(part.scale.m, whole.scale.m[2:])
    none = runner.run([5, 6, 7], 0, 3)
    assert none.logits.shape == (0, 112) and not none.argmax.size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format"),
    [("tales", None), *(("tales-llama", each) for each in FORMATS if TERNARY_NAME not in each)],
)
def test_shipped_models(name: str, format: str | None) -> None:
    checkpoint = load_model(find_model(name))
    model = pack_model(checkpoint, Format.parse(format) if format else None)
    check(model, runner_of(model, split_from=12), [11, 1, 1])

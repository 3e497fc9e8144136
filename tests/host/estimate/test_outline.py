"""Outlines are configured, and take the cycles, like the models that they are of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lutra.compile.configure import configure
from lutra.compile.fit import head_weights
from lutra.estimate.outline import open_outline
from lutra.open_model import open_packed_model
from lutra.packed.random import random_packed
from lutra.quantize import pack
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.decode import pass_parts


def same(outline: PackedModel, packed: PackedModel, config: str) -> None:
    """Both get one configuration, and every part of a pass costs the same."""
    outline = replace(outline, context=packed.context)
    built = configure(outline, config)
    assert built == configure(packed, config)
    assert outline.format == packed.format
    # what is refused for its digits is refused of both
    digits = [built.matmul.planes(head_weights(model)[0]) for model in (outline, packed)]
    assert digits[0] == digits[1]
    layers = range(len(packed.layers))
    outline = replace(outline, layers=[outline.layers[0]] * len(layers))
    found, expected = (
        pass_parts(model, built, 30, 3, 3, layers=layers) for model in (outline, packed)
    )
    assert found == expected


@pytest.mark.parametrize("config", ["nano", "pynq_z2"])
@pytest.mark.parametrize(
    ("name", "format"), [("tales", None), ("tales-llama", None), ("tales-llama", "W4A8")]
)
def test_of_a_checkpoint(name: str, format: str | None, config: str) -> None:
    same(open_outline(name, format), open_packed_model(name, format), config)


def test_of_a_packed_model(tmp_path: Path) -> None:
    from lutra.commands.cli import main

    out = tmp_path / "packed"
    assert main(["pack", "tales", "-o", str(out)]) == 0
    same(open_outline(str(out)), open_packed_model(str(out)), "kv260")


@pytest.mark.parametrize("head_bits", [None, 4])
def test_of_a_random_shape(head_bits: int | None) -> None:
    name = "random:smollm-135m"
    packed = random_packed(name, group=64, n_layers=1, head_bits=head_bits, kv_bits=4)
    same(open_outline(name, group=64, head_bits=head_bits, kv_bits=4), packed, "u50")


@pytest.mark.parametrize("shape", ["bonsai-1.7b", "bitnet-large"])
def test_formats_of_released_shapes(shape: str) -> None:
    """Heads of one bit, and heads that are built wider than the model's."""
    name = f"random:{shape}"
    packed = random_packed(name, n_layers=1, vocab_size=512)
    same(replace(open_outline(name), vocab_size=512), packed, "kv260")


@pytest.mark.parametrize(
    ("name", "engine", "parts"),
    [
        ("random:bitnet-2b-4t", "ternary", (False, False)),
        ("random:qwen2.5-0.5b", "lut", (True, False)),
        ("random:qwen3-8b", "lut", (False, True)),
        ("random:llama-3-8b", "lut", (False, False)),
        ("random:llama-2-7b", "lut", (False, False)),
        ("random:bonsai-8b", "lut", (False, True)),
        ("random:bitnet-large", "ternary", (False, False)),
    ],
)
def test_of_large_shapes(name: str, engine: str, parts: tuple[bool, bool]) -> None:
    """They take no memory of note, whatever the size of the model."""
    found = open_outline(name)
    layer = found.layers[0]
    assert (found.biased, found.head_normed) == parts
    assert (layer.bias is not None, layer.head_norms is not None) == parts
    assert configure(replace(found, layers=[layer], context=1024), "u55c").engine == engine
    arrays = [found.head, found.embedding, found.rope, layer.gate_proj.stored.codes]
    assert sum(array.nbytes for array in arrays) < 1 << 16


def test_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint in a given format nothing but the header is read."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("packed")

    monkeypatch.setattr(pack, "quantize_layer", refuse)
    monkeypatch.setattr(np.random, "default_rng", refuse)
    for name in ("tales-llama", "random:llama-3-8b"):
        assert open_outline(name, "W4A8").format == "W4A8"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "random:x"}, "a random model must be one of "),
        ({"name": "tales-llama", "format": "W9A8"}, "W9A8"),
        ({"name": "random:smollm-135m", "group": 128}, "groups of 128 do not divide"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(LutraError, match=message):
        open_outline(**arguments)  # type: ignore[arg-type]

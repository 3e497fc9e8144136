"""Checkpoints that runtimes misread, beside what transformers computed of the same weights.

The references are recorded (:mod:`tests.host.cases.record`), so the tests need no other runtime.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("gguf")

from tests.host.cases.checkpoints import CASES, KEY_BIASES, TOKENS, write_floats
from tests.host.cases.references import DEFAULTS, LOGITS, digest

from lutra.models import bitnet, llama, load_model, mistral, qwen
from lutra.open_model import open_model
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import Kv
from lutra_golden.model.capabilities import EVERY_PART
from lutra_golden.model.decoder import Decoder, Rows
from lutra_golden.model.packed import PackedModel

Logits = NDArray[np.floating]


@pytest.fixture(scope="module")
def references() -> dict[str, np.ndarray]:
    with np.load(LOGITS) as file:
        return dict(file)


def packed(path: Path, format: str | None = None, kv: Kv | None = None) -> PackedModel:
    """As it runs by default on a processor."""
    return open_model(path, format, None, kv, None, None, capabilities=EVERY_PART)[1]


def integer_logits(model: PackedModel) -> NDArray[np.float64]:
    """The integer path's, as floats."""
    decoder = Decoder(model)
    rows = [Rows(decoder.caches(), slice(0, len(TOKENS)), 0)]
    x = decoder.embed(TOKENS.tolist())
    for i in range(len(model.layers)):
        x = decoder.layer(i, x, rows)
    found, scale = decoder.head(x)
    return found * (scale.m * 2.0**scale.e)[:, None] * model.head_scale


def relative(found: Logits, expected: Logits) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_every_case_has_a_reference(references: dict[str, np.ndarray]) -> None:
    assert {name.split(": ")[0] for name in references} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_means_what_it_means_to_others(
    name: str, tmp_path: Path, references: dict[str, np.ndarray]
) -> None:
    case = CASES[name]
    path = tmp_path / f"model{case.suffix}"
    held = case.write(path)
    assert digest(path, held) == str(references[f"{name}: digest"]), "the generator has changed"
    expected = references[f"{name}: logits"].astype(np.float64)
    source = load_model(path)
    if held.weights is not None:
        # weights are judged without rounding of activations
        source = replace(source, activation_bits=None)
    assert relative(source.forward(TOKENS), expected) < case.source
    assert relative(integer_logits(packed(path)), expected) < case.integers


# -- what is kept of each


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("Q1_0", "W1g128A8g32"),
        ("Q1_0 as F16", "W1g128A8g32"),
        ("bonsai, unpacked", "W1g128A8g32"),
        ("ternary in groups of 128", "W1.58g128A8g32"),
        ("trilm of two shards", "W1.58g32A8g32"),
        ("trilm of one shard", "W1.58A8g32"),
        ("falcon-e in bfloat16", "W1.58A8g32"),
        ("awq, outliers of 8", "W4A16"),
        ("mlx", "W4A16"),
    ],
)
def test_formats_that_checkpoints_run_in(name: str, format: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{CASES[name].suffix}"
    CASES[name].write(path)
    assert packed(path).format == format


@pytest.mark.parametrize("size", KEY_BIASES)
def test_keys_of_4_bits_are_refused_where_they_do_not_hold(size: int, tmp_path: Path) -> None:
    CASES[f"key bias of {size}"].write(tmp_path / "model")
    message = r"^keys of 4 bits diverge by [\d.]+ nats .*: give --kv 8/4, or --kv 8$"
    with pytest.raises(LutraError, match=message):
        packed(tmp_path / "model", kv=4)


# -- defaults


def test_fields_that_a_config_leaves_out() -> None:
    """As transformers' classes have them."""
    recorded = json.loads(DEFAULTS.read_text(encoding="utf-8"))
    assert recorded.pop("transformers")["version"] >= "5"
    readers = {
        bitnet.BITNET: bitnet.DEFAULTS,
        llama.LLAMA: llama.DEFAULTS,
        mistral.MISTRAL: mistral.DEFAULTS,
        qwen.QWEN2: qwen.QWEN2_DEFAULTS,
        qwen.QWEN3: qwen.QWEN3_DEFAULTS,
    }
    assert set(recorded) == set(readers)
    for architecture, fields in recorded.items():
        # the tensors in the file say if the head is the embedding
        assert fields.pop("tie_word_embeddings") is False
        assert readers[architecture] == fields, architecture


def test_fields_that_are_null_are_said(tmp_path: Path) -> None:
    """A window of null is none; one that is left out is the class's."""
    kind = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    write_floats(tmp_path / "null", changes=kind | {"sliding_window": None})
    write_floats(tmp_path / "unsaid", changes=kind)
    assert load_model(tmp_path / "null").config.windows == (0, 0)
    assert load_model(tmp_path / "unsaid").config.windows == (4096, 4096)

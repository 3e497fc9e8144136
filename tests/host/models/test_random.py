"""Random checkpoints of real shapes: they open, hold what their shape says, and run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from lutra import LLM
from lutra.checkpoints.weights import Dense, Ternary
from lutra.models import load_model, random
from lutra.models.random import RANDOM_SHAPES, write_random
from lutra_golden.errors import LutraError
from lutra_golden.model.shapes import LINEARS

SMALL = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 5, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
    "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes with small sizes: everything else about them is as it is."""
    shapes = {
        name: {k: v for k, v in shape.items() if k not in SMALL} | SMALL
        for name, shape in RANDOM_SHAPES.items()
    }
    monkeypatch.setattr(random, "RANDOM_SHAPES", shapes)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", RANDOM_SHAPES)
def test_every_shape_opens_and_runs(name: str, tmp_path: Path) -> None:
    said: list[float] = []
    folder = write_random(name, tmp_path / name, progress=lambda _, part: said.append(part))
    assert said == sorted(said)
    model = load_model(folder)
    assert [model.architecture] == RANDOM_SHAPES[name]["architectures"]
    kind = Ternary if name.startswith("bitnet") else Dense
    layers = list(model.layers)
    assert len(layers) == 5
    for layer in layers:
        assert all(isinstance(layer.linear(each), kind) for each in LINEARS)
    assert (layers[0].q_bias is not None) == name.startswith("qwen2")
    assert (layers[0].q_norm is not None) == name.startswith(("qwen3", "bonsai"))
    assert (model.lm_head is None) == RANDOM_SHAPES[name]["tie_word_embeddings"]
    # several files, bfloat16
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) == 3
    with safe_open(shards[0], framework="numpy") as file:
        norm = file.get_slice("model.layers.0.input_layernorm.weight")
        assert norm.get_dtype() == "BF16"
    logits = model.forward(np.array([0, 70, 80, 90]))
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 100
    assert np.abs(model.embed(np.arange(8))).max() < 100
    llm = LLM(write_random(name, tmp_path / "shallow", n_layers=1), "golden")
    assert len(llm.generate("Ab", max_tokens=3).tokens) <= 3


@pytest.mark.usefixtures("small")
def test_the_same_seed_is_the_same_model(tmp_path: Path) -> None:
    folders = [
        write_random("qwen3-0.6b", tmp_path / str(i), seed=seed, n_layers=1)
        for i, seed in enumerate((3, 3, 4))
    ]
    a, b, c = ((each / "model-00000.safetensors").read_bytes() for each in folders)
    assert a == b != c
    assert len(load_model(folders[0]).layers) == 1


def test_real_shapes() -> None:
    """Weights of the layers, of the published models: in millions."""
    millions = {"bitnet-2b-4t": 2084, "llama-3-8b": 6979, "smollm-135m": 106}
    millions |= {"bitnet-large": 679, "llama-2-7b": 6476}
    millions |= {"bonsai-1.7b": 1409, "bonsai-4b": 3633, "bonsai-8b": 6946}
    millions |= {"qwen2.5-0.5b": 358, "qwen2.5-1.5b": 1310, "qwen3-0.6b": 440, "qwen3-8b": 6946}
    for name, shape in RANDOM_SHAPES.items():
        size: dict[str, int] = {k: v for k, v in shape.items() if isinstance(v, int)}
        d, f, heads = size["hidden_size"], size["intermediate_size"], size["num_attention_heads"]
        dh = size.get("head_dim", d // heads)
        q, kv = heads * dh, size["num_key_value_heads"] * dh
        n = size["num_hidden_layers"] * (2 * d * q + 2 * d * kv + 3 * d * f)
        assert round(n / 1e6) == millions[name], name


def test_an_unknown_shape(tmp_path: Path) -> None:
    with pytest.raises(LutraError, match=r"^shape must be one of bitnet-2b-4t, .*, not 'otter'$"):
        write_random("otter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    arguments = ["random", "smollm-135m", str(out), "--layers", "2", "--seed", "7"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert random._main() == 0
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 2
    expected = write_random("smollm-135m", tmp_path / "other", seed=7, n_layers=2)
    name = "model-00000.safetensors"
    assert (out / name).read_bytes() == (expected / name).read_bytes()

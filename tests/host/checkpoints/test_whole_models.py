"""Whole models of quantised layers, compared with a second implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tests.host.checkpoints import test_awq, test_compressed_tensors, test_gptq
from tests.host.checkpoints.quantized import Matrix
from tests.host.models.plain_forward import plain_forward
from tests.host.models.small_models import TOKENS, config_of, write_variant

from lutra.checkpoints.weights import Dense, Grouped
from lutra.models import load_model

Parts = dict[str, NDArray[np.generic]]
GROUP = 16


def parts_of(kind: str, matrix: Matrix) -> Parts:
    if kind == "awq":
        return test_awq.pack(matrix)
    if kind == "compressed-tensors":
        return test_compressed_tensors.pack(matrix, symmetric=False)
    return test_gptq.pack(matrix, version=2 if kind == "gptq_v2" else 1)


CONFIGS: dict[str, dict[str, object]] = {
    "gptq": test_gptq.CONFIG | {"desc_act": True},
    "gptq_v2": test_gptq.CONFIG | {"checkpoint_format": "gptq_v2"},
    "awq": test_awq.CONFIG,
    "compressed-tensors": test_compressed_tensors.config(symmetric=False),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("variant", ["llama-untied", "qwen2"])
def test_a_model_of_quantized_layers(kind: str, variant: str, tmp_path: Path) -> None:
    """One layer's output projection is left in floating point, as is the head."""
    folder = write_variant(tmp_path / "model", variant)
    path, config = folder / "model.safetensors", config_of(variant)
    weights = load_file(path)
    tensors: Parts = dict(weights)
    for seed, name in enumerate(sorted(weights)):
        owner = name.removesuffix(".weight")
        if not owner.endswith("_proj") or owner == "model.layers.1.self_attn.o_proj":
            continue
        n, k = weights[name].shape
        matrix = Matrix.random(n, k, k // GROUP, 4, shuffled=kind == "gptq", seed=seed)
        weights[name] = matrix.dense()
        del tensors[name]
        for part, values in parts_of(kind, matrix).items():
            tensors[f"{owner}.{part}"] = np.ascontiguousarray(values)
    save_file(tensors, path)
    said = config | {"quantization_config": CONFIGS[kind]}
    (folder / "config.json").write_text(json.dumps(said))
    model = load_model(folder)
    layer = model.layers[1]
    assert isinstance(layer.q_proj, Grouped)
    assert isinstance(layer.o_proj, Dense)
    expected = plain_forward(
        config, {name: values.astype(np.float64) for name, values in weights.items()}, TOKENS
    )
    actual = model.forward(np.array(TOKENS))
    assert np.abs(actual - expected).max() < 1e-5 * expected.std()

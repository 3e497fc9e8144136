"""The format that is expected of a checkpoint is the one that it is packed in."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from tests.host.gguf_model import ENCODERS, MODELS, random_floats, write_gguf

from lutra.checkpoints.gguf import GgufCheckpoint
from lutra.commands.show import default_format_of
from lutra.models import load_model
from lutra.open_model import open_model
from lutra_golden.model.capabilities import EVERY_PART


def formats(path: Path) -> tuple[str, str]:
    """Those that ``lutra show`` says and that the device ``cpu`` runs."""
    expected = default_format_of(load_model(path), GgufCheckpoint(path))
    packed = open_model(path, None, None, None, None, None, capabilities=EVERY_PART)[1]
    return expected, packed.format


@pytest.mark.parametrize("kind", ENCODERS)
def test_of_each_type(tmp_path: Path, kind: str) -> None:
    write_gguf(tmp_path / "otter.gguf", MODELS["bitnet" if kind == "I2_S" else "qwen3"], kind)
    expected, packed = formats(tmp_path / "otter.gguf")
    assert expected == packed


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"v_proj": "Q8_0", "1.mlp.down_proj": "Q6_K", "0.mlp.down_proj": "Q5_0"}, "W4.67A8g32"),
        ({"mlp": "Q1_0"}, "W2A8g32"),
        ({"mlp": "F16"}, "W6.67A8g32"),
        ({"mlp": "TQ2_0"}, "W2.67A8g32"),
    ],
)
def test_of_several_types(tmp_path: Path, kinds: Mapping[str, str], expected: str) -> None:
    write_gguf(tmp_path / "otter.gguf", MODELS["qwen2"], "Q4_K", kinds=kinds)
    assert formats(tmp_path / "otter.gguf") == (expected, expected)


def test_of_floats_on_a_grid(tmp_path: Path) -> None:
    floats = random_floats(MODELS["llama"])
    for name, w in floats.items():
        if "_proj" in name:
            floats[name] = np.sign(w) * np.float32(0.125)
    write_gguf(tmp_path / "otter.gguf", MODELS["llama"], "F16", floats=floats)
    expected, packed = formats(tmp_path / "otter.gguf")
    assert expected == packed == "W1g256A8g32"

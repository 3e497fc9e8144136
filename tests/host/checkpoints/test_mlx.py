"""MLX's layout, every bit put in its place by hand."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tests.host.checkpoints.quantized import NAME, string_of_bits

from lutra.checkpoints import open_checkpoint
from lutra.checkpoints.weights import Dense, Grouped, Weight
from lutra_golden.errors import LutraError

N, K = 12, 128
Parts = dict[str, NDArray[np.generic]]


def parts_of(bits: int, group: int) -> tuple[Parts, NDArray[np.float32]]:
    """Random codes, steps and offsets, and what they stand for."""
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (N, K))
    scale = rng.uniform(0.01, 0.1, (N, K // group)).astype(np.float16)
    least = rng.normal(size=(N, K // group)).astype(np.float16)
    dense = np.zeros((N, K), np.float32)
    for i in range(N):
        for j in range(K):
            g = j // group
            dense[i, j] = np.float32(scale[i, g]) * codes[i, j] + np.float32(least[i, g])
    words = np.stack([string_of_bits(row, bits) for row in codes])
    return {"weight": words.view(np.uint32), "scales": scale, "biases": least}, dense


def read(folder: Path, parts: Parts, said: str = '{"group_size": 64, "bits": 4}') -> Weight:
    folder.mkdir(exist_ok=True)
    config = f'{{"architectures": ["LlamaForCausalLM"], "quantization": {said}}}'
    (folder / "config.json").write_text(config)
    save_file({f"{NAME}.{part}": w for part, w in parts.items()}, folder / "model.safetensors")
    return open_checkpoint(folder).linear(NAME, N, K)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [16, 32, 64, 128])
def test_what_was_packed_is_read(bits: int, group: int, tmp_path: Path) -> None:
    """Whatever config.json says of all: layers may have bits and groups of their own."""
    parts, dense = parts_of(bits, group)
    weight = read(tmp_path, parts)
    assert isinstance(weight, Grouped)
    assert (weight.bits, weight.group) == (bits, group)
    np.testing.assert_array_equal(weight.dequantized(), dense)
    found = open_checkpoint(tmp_path).matrix(NAME, N, K)
    assert isinstance(found, Dense)
    np.testing.assert_array_equal(found.values, dense)


def test_a_layer_left_in_floating_point(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(N, K)).astype(np.float16)
    weight = read(tmp_path, {"weight": values})
    assert isinstance(weight, Dense)
    np.testing.assert_array_equal(weight.values, values)


@pytest.mark.parametrize("fault", ["nibbles", "scale", "bias", "rows"])
def test_another_layout_would_be_noticed(fault: str, tmp_path: Path) -> None:
    parts, dense = parts_of(4, 64)
    if fault == "nibbles":
        words = parts["weight"]
        fields = [((words >> np.uint32(4 * i)) & 15) << np.uint32(28 - 4 * i) for i in range(8)]
        parts["weight"] = np.bitwise_or.reduce(fields).astype(np.uint32)
    if fault == "scale":
        parts["scales"] = parts["scales"][:, ::-1].copy()
    if fault == "bias":
        parts["biases"] = -parts["biases"]
    if fault == "rows":
        parts["weight"] = parts["weight"][::-1].copy()
    assert np.abs(read(tmp_path, parts).dequantized() - dense).max() > 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight": np.zeros((N, 7), np.uint32)},
            r"weight \[12, 7\] with \S+scales \[12, 2\] must be 128 codes of 2, 3, 4, 5, 6",
        ),
        (
            {"scales": np.ones((N, 3), np.float16)},
            r"weight \[12, 16\] with \S+scales \[12, 3\]",
        ),
        ({"weight": np.zeros((N, 16), np.float32)}, "weight must be packed int32, not float32"),
        ({"biases": np.ones((N, 1), np.float16)}, r"biases must be \[12, 2\], not \[12, 1\]"),
        ({"scales": np.full((N, 2), np.inf, np.float16)}, "scales holds infinities or NaNs"),
    ],
)
def test_a_part_that_is_wrong(change: Parts, message: str, tmp_path: Path) -> None:
    parts, _ = parts_of(4, 64)
    with pytest.raises(LutraError, match=rf"^\S+model\.safetensors: \S+q_proj\.{message}"):
        read(tmp_path, parts | change)


def test_a_kind_that_is_not_supported(tmp_path: Path) -> None:
    parts, _ = parts_of(4, 64)
    with pytest.raises(LutraError, match="mode 'mxfp4' is not supported; supported is 'affine'"):
        read(tmp_path, parts, '{"group_size": 32, "bits": 4, "mode": "mxfp4"}')
    assert sorted(load_file(tmp_path / "model.safetensors"))[0] == f"{NAME}.biases"

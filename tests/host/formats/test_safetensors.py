"""safetensors files: types, bfloat16, and files that are not whole."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lutra.host.errors import LutraError
from lutra.host.formats.safetensors import read_safetensors


def _write(path: Path, dtype: str, shape: list[int], data: bytes) -> None:
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)


@pytest.mark.parametrize(
    "dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?"], ids=lambda name: np.dtype(name)
)
def test_types_and_shapes(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    expected = {
        "matrix": np.arange(-6, 6).reshape(3, 4).astype(dtype),
        "vector": np.array([1], dtype),
        "empty": np.zeros((0, 5), dtype),
    }
    save_file(expected, path)
    found = read_safetensors(path)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


def test_bfloat16_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    values = np.array([0.0, -0.0, 1.0, -2.5, 3.3895314e38, 1e-40, np.inf], np.float32)
    bits = values.view(np.uint32) >> 16
    _write(path, "BF16", [7], bits.astype("<u2").tobytes())
    found = read_safetensors(path)["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), bits << 16)


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(LutraError, match=f"^{path} does not exist: the model folder must hold"):
        read_safetensors(path)


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
def test_a_truncated_file(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(100, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    message = rf"^{path} is not a whole safetensors file \(.*\): copy or download it again$"
    with pytest.raises(LutraError, match=message):
        read_safetensors(path)


def test_another_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(LutraError, match="is not a whole safetensors file"):
        read_safetensors(path)


def test_a_type_that_is_not_supported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    _write(path, "F8_E4M3", [4], bytes(4))
    message = f"^{path}: tensor x has type F8_E4M3; supported are BF16, F64, F32, .*, BOOL$"
    with pytest.raises(LutraError, match=message):
        read_safetensors(path)

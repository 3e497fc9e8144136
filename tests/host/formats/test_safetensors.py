"""safetensors: types, bfloat16, shards, and files that are not whole."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lutra.formats.safetensors import SafetensorsFolder
from lutra.formats.safetensors_writer import write_safetensors
from lutra_golden.errors import LutraError


def _write(path: Path, dtype: str, shape: list[int], data: bytes) -> None:
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    "dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?"], ids=lambda name: np.dtype(name)
)
def test_types_and_shapes(dtype: str, file: Path) -> None:
    expected = {
        "matrix": np.arange(-6, 6).reshape(3, 4).astype(dtype),
        "vector": np.array([1], dtype),
        "empty": np.zeros((0, 5), dtype),
    }
    save_file(expected, file)
    found = SafetensorsFolder(file.parent)
    assert set(found.names()) == expected.keys()
    for name, values in expected.items():
        assert found.shape(name) == values.shape
        assert found.read(name, *values.shape).dtype == values.dtype
        np.testing.assert_array_equal(found.read(name), values)


def test_what_is_written_is_hashed(file: Path) -> None:
    arrays = {"a": np.arange(5000, dtype=np.uint16), "none": np.zeros((0, 3), np.int8)}
    sizes = {name: (values.dtype.name, values.shape) for name, values in arrays.items()}
    found = write_safetensors(file, sizes, arrays.items())
    assert found == hashlib.sha256(file.read_bytes()).hexdigest()
    np.testing.assert_array_equal(SafetensorsFolder(file.parent).read("a"), arrays["a"])


def test_bfloat16_is_exact(file: Path) -> None:
    values = np.array([0.0, -0.0, 1.0, -2.5, 3.3895314e38, 1e-40, np.inf], np.float32)
    bits = values.view(np.uint32) >> 16
    _write(file, "BF16", [7], bits.astype("<u2").tobytes())
    found = SafetensorsFolder(file.parent).read("x", 7)
    assert found.dtype.itemsize == 2
    np.testing.assert_array_equal(found.astype(np.float32).view(np.uint32), bits << 16)


def test_a_missing_file(file: Path) -> None:
    with pytest.raises(LutraError, match=f"^{file} does not exist: the model folder must hold"):
        SafetensorsFolder(file.parent)


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
def test_a_truncated_file(keep: int, file: Path) -> None:
    save_file({"x": np.zeros(100, np.float32)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    message = rf"^{file} is not a whole safetensors file \(.*\): copy or download it again$"
    with pytest.raises(LutraError, match=message):
        SafetensorsFolder(file.parent)


def test_another_file(file: Path) -> None:
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(LutraError, match="is a pointer of Git LFS, not the file: run `git"):
        SafetensorsFolder(file.parent)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    message = r"^\S+pytorch_model\.bin is a pickle, which can run any code and is not read; exp"
    with pytest.raises(LutraError, match=message):
        SafetensorsFolder(tmp_path)


def test_a_tensor_that_is_missing_or_has_another_shape(file: Path) -> None:
    save_file({"x": np.zeros((2, 3), np.float32)}, file)
    found = SafetensorsFolder(file.parent)
    with pytest.raises(LutraError, match=f"^{file} has no tensor y: copy the model again$"):
        found.read("y")
    with pytest.raises(LutraError, match=rf"^{file}: x must be \[3, 2\], not \[2, 3\]: config"):
        found.read("x", 3, 2)


# -- shards


def _shard(folder: Path, table: object) -> SafetensorsFolder:
    for name in ("a", "b"):
        save_file({name: np.full(2, ord(name), np.int32)}, folder / f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    return SafetensorsFolder(folder)


def test_shards_are_read_where_the_index_says(tmp_path: Path) -> None:
    table = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    found = _shard(tmp_path, table)
    assert set(found.names()) == {"a", "b"}
    np.testing.assert_array_equal(found.read("b", 2), [98, 98])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "has no weight_map: copy the model again$"),
        ({"weight_map": {"a": "../a.safetensors"}}, "must name files of its folder, not"),
        ({"weight_map": {"a": ""}}, r"cannot be read \(.*\): copy the model again$"),
        ({"weight_map": {"a": ".."}}, r"cannot be read \(.*\): copy the model again$"),
        ({"weight_map": {"a": 3}}, "must name files of its folder, not 3$"),
        ({"weight_map": {"a": "b.safetensors"}}, "has no tensor a, though .* says so"),
        ({"weight_map": {"a": "c.safetensors"}}, "does not exist, though .* names it"),
    ],
)
def test_an_index_that_is_wrong(table: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(LutraError, match=message):
        _shard(tmp_path, table).read("a")

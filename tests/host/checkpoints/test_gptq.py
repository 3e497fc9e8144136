"""GPTQ's layout, every bit put in its place by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.checkpoints.quantized import Matrix, read, string_of_bits, write

from lutra.checkpoints.weights import Dense, Grouped
from lutra_golden.errors import LutraError

Parts = dict[str, NDArray[np.generic]]
CONFIG: dict[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": False}


def pack(matrix: Matrix, *, version: int = 1) -> Parts:
    """The parts as AutoGPTQ stores them."""
    stored = matrix.zero - (version == 1)
    columns = [string_of_bits(row, matrix.bits) for row in matrix.codes]
    return {
        "qweight": np.stack(columns, axis=1),
        "qzeros": np.stack([string_of_bits(row, matrix.bits) for row in stored.T]),
        "scales": matrix.scale.T,
        "g_idx": matrix.index.astype(np.int32),
    }


def config_of(matrix: Matrix, **changes: object) -> dict[str, object]:
    k, groups = matrix.codes.shape[1], matrix.scale.shape[1]
    return CONFIG | {"bits": matrix.bits, "group_size": k // groups} | changes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shuffled", [False, True])
def test_what_was_packed_is_read(bits: int, version: int, shuffled: bool, tmp_path: Path) -> None:
    matrix = Matrix.random(32, 96, 3, bits, shuffled=shuffled)
    said = "gptq" if version == 1 else "gptq_v2"
    config = config_of(matrix, checkpoint_format=said, desc_act=shuffled)
    weight = read(write(tmp_path, pack(matrix, version=version), config), 32, 96)
    assert isinstance(weight, Grouped)
    assert (weight.bits, weight.group) == (bits, 32)
    assert (weight.order is not None) == shuffled
    np.testing.assert_array_equal(weight.dequantized(), matrix.dense())
    np.testing.assert_array_equal(weight.dequantized(slice(3, 9)), matrix.dense()[3:9])


def test_the_first_version_is_what_is_meant_where_none_is_named(tmp_path: Path) -> None:
    matrix = Matrix.random(8, 32, 2, 4)
    weight = read(write(tmp_path, pack(matrix), config_of(matrix)), 8, 32)
    np.testing.assert_array_equal(weight.dequantized(), matrix.dense())


def test_one_group_is_the_whole_depth(tmp_path: Path) -> None:
    matrix = Matrix.random(8, 48, 1, 4)
    parts = pack(matrix)
    del parts["g_idx"]
    weight = read(write(tmp_path, parts, config_of(matrix, group_size=-1)), 8, 48)
    np.testing.assert_array_equal(weight.dequantized(), matrix.dense())


def test_a_zero_point_of_zero_borrowed_from_its_neighbours(tmp_path: Path) -> None:
    """A converter of version 2 to 1 takes one from all fields of a word in one subtraction."""
    matrix = Matrix.random(16, 32, 2, 4)
    matrix = replace(matrix, zero=np.where(matrix.zero % 3 == 0, 0, matrix.zero))
    parts = pack(matrix, version=2)
    words = parts["qzeros"].astype(np.int64) - 0x11111111
    parts["qzeros"] = (words & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    weight = read(write(tmp_path, parts, config_of(matrix)), 16, 32)
    np.testing.assert_array_equal(weight.dequantized(), matrix.dense())


@pytest.mark.parametrize("fault", ["nibbles", "version", "scale", "order", "rows", "index"])
def test_another_layout_would_be_noticed(fault: str, tmp_path: Path) -> None:
    """Each fault in the packer changes what is read."""
    matrix = Matrix.random(16, 32, 2, 4, shuffled=True)
    parts = pack(matrix)
    if fault == "nibbles":
        words = parts["qweight"].view(np.uint32)
        fields = [((words >> (4 * i)) & 15) << (28 - 4 * i) for i in range(8)]
        parts["qweight"] = np.bitwise_or.reduce(fields).view(np.int32)
    if fault == "version":
        parts = pack(matrix, version=2)
    if fault == "scale":
        parts["scales"] = (1 / matrix.scale.T).astype(np.float16)
    if fault == "order":
        parts["g_idx"] = np.sort(parts["g_idx"])
    if fault == "rows":
        parts["qweight"] = parts["qweight"][::-1]
    if fault == "index":
        parts["scales"] = parts["scales"][::-1]
    weight = read(write(tmp_path, parts, config_of(matrix)), 16, 32)
    assert np.abs(weight.dequantized() - matrix.dense()).max() > 0.005


def test_a_layer_left_in_floating_point(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(8, 32)).astype(np.float16)
    weight = read(write(tmp_path, {"weight": values}, CONFIG), 8, 32)
    assert isinstance(weight, Dense)
    np.testing.assert_array_equal(weight.values, values)


WRONG_PARTS: dict[str, tuple[Parts, str]] = {
    "shape": ({"qweight": np.zeros((4, 8), np.int32)}, r"qweight must be \[4, 16\], not \[4, 8\]"),
    "type": (
        {"qweight": np.zeros((4, 16), np.float32)},
        "qweight must be packed int32, not float32: copy the model again",
    ),
    "nan": ({"scales": np.full((2, 16), np.nan, np.float16)}, "scales holds infinities or NaNs"),
    "integers": ({"scales": np.ones((2, 16), np.int32)}, "scales must be in floating point"),
    "groups": ({"g_idx": np.zeros(32, np.int32)}, "g_idx must name each of 2 groups 16 times"),
    "negative": ({"g_idx": np.full(32, -1, np.int32)}, "g_idx must name each of 2 groups"),
    "kind": ({"g_idx": np.zeros(32, np.float32)}, "g_idx must be whole numbers, not float32"),
}


@pytest.mark.parametrize("fault", WRONG_PARTS)
def test_a_part_that_is_wrong(fault: str, tmp_path: Path) -> None:
    matrix = Matrix.random(16, 32, 2, 4)
    change, message = WRONG_PARTS[fault]
    folder = write(tmp_path, pack(matrix) | change, config_of(matrix))
    with pytest.raises(LutraError, match=rf"^\S+model\.safetensors: \S+q_proj\.{message}"):
        read(folder, 16, 32)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "g_idx"])
def test_a_part_that_is_missing(part: str, tmp_path: Path) -> None:
    matrix = Matrix.random(16, 32, 2, 4)
    parts = pack(matrix)
    del parts[part]
    folder = write(tmp_path, parts, config_of(matrix, desc_act=True))
    with pytest.raises(LutraError, match=rf"has no tensor \S+q_proj\.{part}"):
        read(folder, 16, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "bits 5 is not supported; supported is 2 or 3 or 4 or 8: use a checkpoint"),
        ({"bits": None}, "bits must be a positive whole number, not None"),
        ({"group_size": 24}, r"group_size must divide the depth of \S+, 32, not be 24"),
        ({"group_size": 0}, "group_size must be a positive whole number, not 0"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not supported; supported"),
        ({"format": "marlin"}, "checkpoint_format 'marlin' is not supported; supported"),
        ({"dynamic": {"+:x": {"bits": 5}}}, "bits 5 is not supported; supported is 2 or 3 or 4 or"),
        ({"dynamic": ["x"]}, r"dynamic must be settings by layer, not \['x'\]: copy the model"),
        ({"pack_dtype": "int64"}, "pack_dtype 'int64' is not supported; supported is 'int32'"),
    ],
)
def test_a_kind_that_is_not_supported(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    matrix = Matrix.random(16, 32, 2, 4)
    folder = write(tmp_path, pack(matrix), config_of(matrix, **changes))
    with pytest.raises(LutraError, match=rf"^\S+config\.json: {message}"):
        read(folder, 16, 32)


def test_sizes_that_do_not_fill_words(tmp_path: Path) -> None:
    matrix = Matrix.random(12, 32, 2, 4)
    folder = write(tmp_path, pack(matrix), config_of(matrix))
    with pytest.raises(LutraError, match=r"must have sizes that fill words of 32 bits, not \[12"):
        read(folder, 12, 32)


def test_a_zero_point_that_three_bits_do_not_hold(tmp_path: Path) -> None:
    matrix = Matrix.random(32, 32, 1, 3)
    matrix = replace(matrix, zero=np.full((32, 1), 8))
    folder = write(tmp_path, pack(matrix), config_of(matrix))
    with pytest.raises(LutraError, match="qzeros holds a zero point of 8, which is not a co"):
        read(folder, 32, 32)

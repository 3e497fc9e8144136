"""The layout pack-quantized of compressed-tensors, every bit put in its place by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.checkpoints.quantized import Matrix, read, string_of_bits, write

from lutra.checkpoints.weights import Dense, Grouped
from lutra_golden.errors import LutraError

Parts = dict[str, NDArray[np.generic]]


def weights(**changes: object) -> dict[str, object]:
    return {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 16,
    } | changes


def config(**changes: object) -> dict[str, object]:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights(**changes)}},
        "ignore": ["lm_head"],
    }


def pack(matrix: Matrix, *, symmetric: bool) -> Parts:
    """The parts as LLM Compressor stores them."""
    parts: Parts = {
        "weight_packed": np.stack([string_of_bits(row, matrix.bits) for row in matrix.codes]),
        "weight_scale": matrix.scale,
        "weight_shape": np.array(matrix.codes.shape),
    }
    if not symmetric:
        columns = [string_of_bits(column, matrix.bits) for column in matrix.zero.T]
        parts["weight_zero_point"] = np.stack(columns, axis=1)
    if (np.diff(matrix.index) < 0).any():
        parts["weight_g_idx"] = matrix.index.astype(np.int32)
    return parts


def symmetrical(matrix: Matrix) -> Matrix:
    return replace(matrix, zero=np.full_like(matrix.zero, 1 << (matrix.bits - 1)))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shuffled", [True, False])
def test_what_was_packed_is_read(
    bits: int, symmetric: bool, shuffled: bool, tmp_path: Path
) -> None:
    matrix = Matrix.random(20, 64, 4, bits, shuffled=shuffled)
    matrix = symmetrical(matrix) if symmetric else matrix
    said = config(num_bits=bits, symmetric=symmetric)
    weight = read(write(tmp_path, pack(matrix, symmetric=symmetric), said), 20, 64)
    assert isinstance(weight, Grouped)
    assert (weight.bits, weight.group) == (bits, 16)
    assert (weight.order is not None) == shuffled
    np.testing.assert_array_equal(weight.dequantized(), matrix.dense())


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_that_have_one_scale(symmetric: bool, tmp_path: Path) -> None:
    """The depth does not fill its last word, nor do the zero points of the rows."""
    matrix = Matrix.random(11, 36, 1, 4)
    matrix = symmetrical(matrix) if symmetric else matrix
    said = config(strategy="channel", group_size=None, symmetric=symmetric)
    weight = read(write(tmp_path, pack(matrix, symmetric=symmetric), said), 11, 36)
    assert isinstance(weight, Grouped)
    assert weight.group == 36
    np.testing.assert_array_equal(weight.dequantized(), matrix.dense())


def test_two_kinds_in_one_model(tmp_path: Path) -> None:
    matrix = symmetrical(Matrix.random(8, 32, 2, 8))
    said = config() | {
        "config_groups": {
            "group_0": {"targets": ["re:.*mlp.*"], "weights": weights()},
            "group_1": {"targets": ["Linear"], "weights": weights(num_bits=8)},
        }
    }
    weight = read(write(tmp_path, pack(matrix, symmetric=True), said), 8, 32)
    np.testing.assert_array_equal(weight.dequantized(), matrix.dense())


def test_an_index_that_was_never_set(tmp_path: Path) -> None:
    matrix = symmetrical(Matrix.random(8, 32, 2, 4))
    parts = pack(matrix, symmetric=True) | {"weight_g_idx": np.full(32, -1, np.int32)}
    weight = read(write(tmp_path, parts, config()), 8, 32)
    np.testing.assert_array_equal(weight.dequantized(), matrix.dense())


@pytest.mark.parametrize("fault", ["nibbles", "offset", "scale", "zero rows", "order"])
def test_another_layout_would_be_noticed(fault: str, tmp_path: Path) -> None:
    """Each fault in the packer changes what is read."""
    matrix = Matrix.random(16, 32, 2, 4, shuffled=True)
    parts = pack(matrix, symmetric=False)
    if fault == "nibbles":
        swapped = matrix.codes.reshape(16, -1, 2)[..., ::-1].reshape(16, 32)
        parts["weight_packed"] = pack(replace(matrix, codes=swapped), symmetric=False)[
            "weight_packed"
        ]
    if fault == "offset":  # two's complement for the offset
        shifted = replace(matrix, codes=matrix.codes ^ 8)
        parts["weight_packed"] = pack(shifted, symmetric=False)["weight_packed"]
    if fault == "scale":
        parts["weight_scale"] = (1 / matrix.scale).astype(np.float16)
    if fault == "zero rows":
        parts["weight_zero_point"] = parts["weight_zero_point"][::-1]
    if fault == "order":
        del parts["weight_g_idx"]
    weight = read(write(tmp_path, parts, config(symmetric=False)), 16, 32)
    assert np.abs(weight.dequantized() - matrix.dense()).max() > 0.005


def test_a_layer_that_is_ignored(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(8, 32)).astype(np.float16)
    weight = read(write(tmp_path, {"weight": values}, config()), 8, 32)
    assert isinstance(weight, Dense)
    np.testing.assert_array_equal(weight.values, values)


WRONG_PARTS: dict[str, tuple[Parts, str]] = {
    "width": (
        {"weight_packed": np.zeros((16, 8), np.int32)},
        r"weight_packed has \[8\] words in a row and no zero point, which fits none of 4 bits s",
    ),
    "rows": ({"weight_packed": np.zeros((8, 4), np.int32)}, r"weight_packed must be \[16, 4\]"),
    "zero": (
        {"weight_zero_point": np.zeros((2, 2), np.int32)},
        r"weight_packed has \[4\] words in a row and a zero point, which fits none of 4 bits",
    ),
    "scale": (
        {"weight_scale": np.ones((16, 4), np.float16)},
        r"weight_scale of shape \[16, 4\] does not fit 4 bits symmetric in groups of 16",
    ),
    "scalar": ({"weight_scale": np.ones((), np.float16)}, r"weight_scale of shape \[1\] does not"),
    "nan": ({"weight_scale": np.full((16, 2), np.nan, np.float16)}, "weight_scale holds infin"),
    "shape": ({"weight_shape": np.array([16, 40])}, r"weight_shape must be \[16, 32\], not \[16, "),
    "index": ({"weight_g_idx": np.zeros(32, np.int32)}, "weight_g_idx must name each of 2 groups"),
}


@pytest.mark.parametrize("fault", WRONG_PARTS)
def test_a_part_that_is_wrong(fault: str, tmp_path: Path) -> None:
    change, message = WRONG_PARTS[fault]
    matrix = symmetrical(Matrix.random(16, 32, 2, 4))
    folder = write(tmp_path, pack(matrix, symmetric=True) | change, config())
    with pytest.raises(LutraError, match=rf"^\S+model\.safetensors: \S+q_proj\.{message}"):
        read(folder, 16, 32)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (config() | {"format": "float-quantized"}, "format 'float-quantized' is not supported; s"),
        (config() | {"sparsity_config": {"format": "x"}}, "sparsity_config 'x' is not supported"),
        (config() | {"config_groups": {}}, "config_groups is missing: copy the model again"),
        (config() | {"config_groups": {"group_0": 1}}, "config_groups has no weights"),
        (
            config(num_bits=7),
            "num_bits 7 is not supported; supported is 2 or 3 or 4 or 5 or 6",
        ),
        (config(type="float"), "type 'float' is not supported; supported is 'int'"),
        (config(strategy="block"), "strategy 'block' is not supported; supported is 'group' or"),
        (config() | {"transform_config": {"x": 1}}, "transform_config .* is not supported"),
    ],
)
def test_a_kind_that_is_not_supported(
    said: dict[str, object], message: str, tmp_path: Path
) -> None:
    matrix = symmetrical(Matrix.random(16, 32, 2, 4))
    folder = write(tmp_path, pack(matrix, symmetric=True), said)
    with pytest.raises(LutraError, match=rf"^\S+config\.json: {message}"):
        read(folder, 16, 32)

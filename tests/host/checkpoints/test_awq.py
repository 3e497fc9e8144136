"""AWQ's layout, every bit put in its place by hand."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.checkpoints.quantized import Matrix, read, write

from lutra.checkpoints.weights import Dense, Grouped
from lutra_golden.errors import LutraError

Parts = dict[str, NDArray[np.generic]]
CONFIG: dict[str, object] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 16,
    "version": "gemm",
    "zero_point": True,
}


def words_of(
    values: NDArray[np.int64], places: tuple[int, ...] = (0, 4, 1, 5, 2, 6, 3, 7)
) -> NDArray[np.int32]:
    """Eight columns to a word: the column ``c`` of eight goes to nibble ``places[c]``."""
    rows = []
    for row in values:
        words = [0] * (len(row) // 8)
        for column, value in enumerate(row):
            words[column // 8] |= int(value) << (4 * places[column % 8])
        rows.append(words)
    return np.array(rows, np.uint32).view(np.int32)


def pack(matrix: Matrix) -> Parts:
    """The parts as AutoAWQ stores them."""
    return {
        "qweight": words_of(matrix.codes.T),
        "qzeros": words_of(matrix.zero.T),
        "scales": matrix.scale.T,
    }


@pytest.mark.parametrize(("n", "k", "groups"), [(8, 32, 2), (24, 48, 3), (40, 64, 1)])
def test_what_was_packed_is_read(n: int, k: int, groups: int, tmp_path: Path) -> None:
    matrix = Matrix.random(n, k, groups, 4)
    group = -1 if groups == 1 else k // groups
    weight = read(write(tmp_path, pack(matrix), CONFIG | {"group_size": group}), n, k)
    assert isinstance(weight, Grouped)
    assert (weight.bits, weight.group, weight.order) == (4, k // groups, None)
    np.testing.assert_array_equal(weight.codes, matrix.codes)
    np.testing.assert_array_equal(weight.dequantized(), matrix.dense())


@pytest.mark.parametrize("fault", ["columns", "inverse", "zero", "scale", "zero columns"])
def test_another_layout_would_be_noticed(fault: str, tmp_path: Path) -> None:
    """Each fault in the packer changes what is read."""
    matrix = Matrix.random(16, 32, 2, 4)
    parts = pack(matrix)
    if fault == "columns":
        parts["qweight"] = words_of(matrix.codes.T, (0, 1, 2, 3, 4, 5, 6, 7))
    if fault == "inverse":  # the nibbles' columns for the columns' nibbles
        parts["qweight"] = words_of(matrix.codes.T, (0, 2, 4, 6, 1, 3, 5, 7))
    if fault == "zero":
        parts["qzeros"] = words_of(matrix.zero.T - 1)
    if fault == "scale":
        parts["scales"] = (1 / matrix.scale.T).astype(np.float16)
    if fault == "zero columns":
        parts["qzeros"] = words_of(matrix.zero.T, (0, 1, 2, 3, 4, 5, 6, 7))
    weight = read(write(tmp_path, parts, CONFIG), 16, 32)
    assert np.abs(weight.dequantized() - matrix.dense()).max() > 0.005


def test_a_layer_left_in_floating_point(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(8, 32)).astype(np.float16)
    weight = read(write(tmp_path, {"weight": values}, CONFIG), 8, 32)
    assert isinstance(weight, Dense)
    np.testing.assert_array_equal(weight.values, values)


WRONG_PARTS: dict[str, tuple[Parts, str]] = {
    "shape": ({"qzeros": np.zeros((1, 2), np.int32)}, r"qzeros must be \[2, 2\], not \[1, 2\]"),
    "type": ({"qweight": np.zeros((32, 2), np.int16)}, "qweight must be packed int32, not int16"),
    "nan": ({"scales": np.full((2, 16), np.inf, np.float16)}, "scales holds infinities or NaNs"),
}


@pytest.mark.parametrize("fault", WRONG_PARTS)
def test_a_part_that_is_wrong(fault: str, tmp_path: Path) -> None:
    change, message = WRONG_PARTS[fault]
    folder = write(tmp_path, pack(Matrix.random(16, 32, 2, 4)) | change, CONFIG)
    with pytest.raises(LutraError, match=rf"^\S+model\.safetensors: \S+q_proj\.{message}"):
        read(folder, 16, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits 3 is not supported; supported is 4"),
        ({"version": "gemv"}, "version 'gemv' is not supported; supported is 'gemm'"),
        ({"zero_point": False}, "zero_point False is not supported; supported is True"),
        ({"group_size": 24}, r"group_size must divide the depth of \S+, 32, not be 24"),
    ],
)
def test_a_kind_that_is_not_supported(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, pack(Matrix.random(16, 32, 2, 4)), CONFIG | changes)
    with pytest.raises(LutraError, match=rf"^\S+config\.json: {message}"):
        read(folder, 16, 32)


def test_rows_that_do_not_fill_words(tmp_path: Path) -> None:
    folder = write(tmp_path, {"qweight": np.zeros((32, 1), np.int32)}, CONFIG)
    with pytest.raises(LutraError, match="q_proj must have a multiple of 8 rows, not 12"):
        read(folder, 12, 32)

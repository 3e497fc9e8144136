"""Weights in floating point that lie on grids: found whatever their type, groups and levels."""

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tests.host.models.small_models import config_of, write_variant

from lutra.checkpoints.exact_grids import on_grid
from lutra.checkpoints.weights import Dense, Grouped, Ternary
from lutra.models import load_model
from lutra.quantize import default_format
from lutra.quantize.pack import pack_model
from lutra.quantize.reference import reference
from lutra_golden.model.shapes import LINEARS

N, K = 12, 256
TYPES = {"F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype("<f4")}
Float = NDArray[np.float64]


def codes_of(levels: int, seed: int = 1) -> Float:
    """Levels one apart about zero: {-1, 0, 1}, {-0.5, 0.5}, {-1.5, ..., 1.5}."""
    found = np.random.default_rng(seed).integers(0, levels, (N, K))
    found[:, :levels] = range(levels)  # every level is there
    return (found - (levels - 1) / 2).astype(np.float64)


def scales(group: int, dtype: np.dtype[np.generic], seed: int = 2) -> Float:
    """A scale of the type for each group, for all its weights."""
    found = np.random.default_rng(seed).uniform(0.01, 0.1, (N, K // group))
    return found.astype(dtype).astype(np.float64).repeat(group, axis=1)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("group", [256, 128, 64, 32])
@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (16, 4)])
def test_levels_in_groups(levels: int, bits: int, group: int, name: str) -> None:
    w = (codes_of(levels) * scales(group, TYPES[name])).astype(TYPES[name])
    found = on_grid(Dense(w))
    assert isinstance(found, Grouped)
    assert (found.bits, found.group) == (bits, group)
    assert ((2 * found.zero) % 1 == 0).all()
    assert found.zero.min() >= 0
    assert max(found.zero.max(), found.codes.max()) < 1 << bits
    again = found.dequantized()
    # in float32 the step is one number, rounded
    if name == "F32":
        np.testing.assert_allclose(again, w, rtol=1e-6)
    else:
        np.testing.assert_array_equal(again.astype(w.dtype), w)


@pytest.mark.parametrize("name", TYPES)
def test_one_scale_for_all(name: str) -> None:
    codes = codes_of(3)
    codes[3] = 0
    w = (codes * 0.037).astype(TYPES[name])
    found = on_grid(Dense(w))
    assert isinstance(found, Ternary)
    np.testing.assert_array_equal(found.codes, codes)
    assert found.scale == float(w.max())
    binary = on_grid(Dense((codes_of(2) * 0.037).astype(TYPES[name])))
    assert isinstance(binary, Grouped)
    assert (binary.bits, binary.group) == (1, K)


@pytest.mark.parametrize("axis", [0, 1])
def test_shards(axis: int) -> None:
    """A scale for each half of the rows, or of the columns, as two devices leave them."""
    by = np.repeat([0.01, 0.0135], (N, K)[axis] // 2)
    w = (codes_of(3) * (by[:, None] if axis == 0 else by)).astype(np.float16)
    found = on_grid(Dense(w))
    assert isinstance(found, Grouped)
    assert (found.bits, found.group) == (2, K if axis == 0 else K // 2)
    np.testing.assert_array_equal(found.dequantized().astype(w.dtype), w)


def test_zeros_of_any_place() -> None:
    """Levels on one side of zero, and far from it."""
    for first in (0, 1, 3, -5):
        q = np.random.default_rng(3).integers(first, first + 3, (N, K))
        w = (q * scales(64, np.dtype("<f2"))).astype(np.float16)
        found = on_grid(Dense(w))
        assert isinstance(found, Grouped)
        np.testing.assert_array_equal(found.dequantized().astype(w.dtype), w)


def test_what_is_no_grid() -> None:
    rng = np.random.default_rng(4)
    for dtype in TYPES.values():
        weight = Dense(rng.normal(size=(N, K)).astype(dtype))
        assert on_grid(weight) is weight
    w = (codes_of(3) * scales(64, np.dtype("<f2"))).astype(np.float16)
    w[-1, -1] = 0.5 * w[-1, -64:].max()  # one weight, in the last row: five levels
    weight = Dense(w)
    found = on_grid(weight)
    assert isinstance(found, Grouped)
    assert found.bits == 3
    np.testing.assert_array_equal(found.dequantized().astype(w.dtype), w)
    w[-1, -4:] = rng.normal(size=4)
    assert on_grid(weight) is weight
    narrow = Dense(codes_of(3)[:, :9].astype(np.float16))
    assert on_grid(narrow) is narrow


def test_zeros_are_left() -> None:
    assert isinstance(on_grid(Dense(np.zeros((N, K), np.float32))), Dense)


def test_numbers_that_are_not_finite_are_left() -> None:
    w = np.full((N, K), np.inf, np.float32)
    assert isinstance(on_grid(Dense(w)), Dense)


@pytest.mark.parametrize(("levels", "group", "format"), [
    (3, None, "W1.58A8"), (3, 16, "W2A8"), (2, 16, "W1A8"), (4, 16, "W2A8"),
])  # fmt: skip
def test_a_model_runs_on_its_grid(
    levels: int, group: int | None, format: str, tmp_path: Path
) -> None:
    """Layers of a float checkpoint, and nothing of them is rounded."""

    folder = write_variant(tmp_path / "model", "llama-untied")
    path, rng = folder / "model.safetensors", np.random.default_rng(5)
    tensors = load_file(path)
    for name, w in tensors.items():
        if name.endswith("_proj.weight"):
            n, k = w.shape
            size = k if group is None else group
            s = rng.uniform(0.05, 0.1, (n, k // size)) if group else np.full((n, 1), 0.0625)
            q = rng.integers(0, levels, (n, k)) - (levels - 1) / 2
            tensors[name] = (q * s.astype(np.float16).repeat(size, axis=1)).astype(np.float16)
    save_file(tensors, path)
    model = load_model(folder)
    assert str(default_format(model)) == format
    packed = pack_model(model)
    for layer, held in zip(reference(packed).layers, model.layers, strict=True):
        for name in LINEARS:
            np.testing.assert_allclose(
                layer.linear(name).dequantized(), held.linear(name).dequantized(), rtol=2.0**-14
            )
    assert config_of("llama-untied")["num_hidden_layers"] == len(packed.layers)
    assert replace(model, activation_bits=None).forward(np.arange(4)).shape[0] == 4

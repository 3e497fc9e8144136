"""Packed models on disk for tests: written, compared, and changed as no command would."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tests.host.tiles import compiled, golden, on_transport

from lutra.compile.configure import configure
from lutra.devices.base import StepResult
from lutra.packed.file import write_packed
from lutra.packed.layers import LayerSizes
from lutra.packed.store import PackedStore
from lutra_golden.arith.scale import Scale
from lutra_golden.model.packed import PackedBias, PackedLayer, PackedModel
from lutra_golden.model.shapes import LINEARS, Gate

__all__ = [
    "Config",
    "Tensors",
    "assert_same",
    "golden_logits",
    "golden_tiles",
    "loud_models",
    "program_tiles",
    "rehash",
    "store_for",
    "tamper",
    "write",
]

Config = dict[str, Any]
Tensors = dict[str, NDArray[Any]]


def store_for(out: Path, model: PackedModel, **settings: object) -> PackedStore:
    """A store for the layers of ``model``."""
    q, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    sizes = LayerSizes(model.hidden_size, model.intermediate_size, q, kv, model.head_dim)
    return PackedStore(out, settings, sizes)


def write(out: Path, model: PackedModel) -> str:
    """Write a model that is in memory; return its fingerprint."""
    store = store_for(out, model)
    for i, layer in enumerate(model.layers):
        store.save(i, layer)
    fingerprint = write_packed(out, model, store)
    store.clear()
    return fingerprint


def loud_models(model: PackedModel) -> dict[str, PackedModel]:
    """``model`` with one scale or bias changed so that one place of the token path saturates.

    By that place; ``gate`` only with SiLU.
    """
    first, n_heads = model.layers[0], model.n_heads + 2 * model.n_kv_heads
    bias = np.zeros(n_heads * model.head_dim, np.int16)

    def scaled(name: str, bits: int) -> PackedLayer:
        linear = first.linear(name)
        scale = Scale(linear.scale.m, linear.scale.e + bits)
        return replace(first, **{name: replace(linear, scale=scale)})

    found = {
        "scores": scaled("q_proj", 26),
        "attention": scaled("v_proj", 25),
        "heads": replace(scaled("v_proj", 20), bias=PackedBias(bias, 0)),
        "residual": scaled("o_proj", 40),
    }
    if model.gate is Gate.SILU:
        found["gate"] = scaled("gate_proj", 20)
    return {
        name: replace(
            model, layers=[layer, *model.layers[1:]], biased=model.biased or layer.bias is not None
        )
        for name, layer in found.items()
    }


def rehash(folder: Path) -> None:
    """Make hash and fingerprint fit what the files hold."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    tensors = (folder / "model.safetensors").read_bytes()
    content["sha256"] = hashlib.sha256(tensors).hexdigest()
    counted = {name: content[name] for name in content if name not in ("fingerprint", "name")}
    text = json.dumps(counted, sort_keys=True)
    content["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    path.write_text(json.dumps(content))


def tamper(
    folder: Path,
    config: Callable[[Config], object] | None = None,
    tensors: Callable[[Tensors], object] | None = None,
) -> Path:
    """Change what the files hold, and make them whole again."""
    if tensors is not None:
        path = folder / "model.safetensors"
        arrays = load_file(path)
        tensors(arrays)
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)
    if config is not None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        config(content)
        path.write_text(json.dumps(content))
    rehash(folder)
    return folder


def _assert_equal(a: object, b: object, where: str) -> None:
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray), where
        assert (a.dtype, a.shape) == (b.dtype, b.shape), where
        np.testing.assert_array_equal(a, b, err_msg=where)
    elif hasattr(a, "__dataclass_fields__"):
        assert type(a) is type(b), where
        for field in fields(a):  # pyright: ignore[reportArgumentType]
            _assert_equal(getattr(a, field.name), getattr(b, field.name), f"{where}.{field.name}")
    else:
        assert a == b, where


def assert_same(a: PackedModel, b: PackedModel) -> None:
    """All numbers of two packed models are the same; their names do not count."""
    for field in fields(PackedModel):
        if field.name not in ("name", "layers"):
            _assert_equal(getattr(a, field.name), getattr(b, field.name), field.name)
    assert len(a.layers) == len(b.layers)
    for i in range(len(a.layers)):
        x, y = a.layers[i], b.layers[i]
        for field in fields(x):
            where = f"layer {i} {field.name}"
            one, other = getattr(x, field.name), getattr(y, field.name)
            if field.name not in LINEARS:
                _assert_equal(one, other, where)
                continue
            _assert_equal(one.weights.doubled(), other.weights.doubled(), where)
            assert (one.weights.bits, one.weights.group) == (
                other.weights.bits,
                other.weights.group,
            )
            assert (one.scale, one.shift) == (other.scale, other.shift), where


def golden_tiles(model: PackedModel, tokens: list[int]) -> StepResult:
    """All logits, scales and the rest of ``tokens`` on the golden device."""
    return golden(model).run_tile(tokens, 0, 0)


def program_tiles(model: PackedModel, tokens: list[int]) -> StepResult:
    """The same of the compiled program, in the interpreter."""
    return on_transport(compiled(model, configure(model))).run_tile(tokens, 0, 0)


def golden_logits(model: PackedModel, tokens: list[int]) -> NDArray[np.int64]:
    """Logits ``[T, V]`` on the golden device."""
    return golden_tiles(model, tokens).logits

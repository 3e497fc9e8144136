"""Lutra's own file: a packed model as ``config.json`` and one ``model.safetensors``.

The same input gives the same bytes on every machine: tensors lie in one order, numbers are written
in one way. ``config.json`` carries the version of the format, everything that is not an array, the
SHA-256 of the tensors' file, and a fingerprint of both. Codes are in B128 (:mod:`.b128`); ternary
codes are 0, 1, 2 for -1, 0, 1 and have neither group scales nor zero points.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, overload

import numpy as np
from numpy.typing import NDArray

from lutra.host.checkpoints.config import ConfigFile
from lutra.host.errors import LutraError
from lutra.host.formats.b128 import from_b128, row_bytes, to_b128
from lutra.host.formats.safetensors import SafetensorsFolder
from lutra.host.models.decoder import LINEARS, Gate
from lutra.host.packing import (
    HeadNorms,
    PackedBias,
    PackedLayer,
    PackedLinear,
    PackedModel,
    PackedNorm,
)
from lutra.host.quantize.budget import BitPlan
from lutra.sim.golden.arith.scale import SCALE, Scale
from lutra.sim.golden.matmul.engine import GroupedWeights
from lutra.sim.golden.matmul.format import W_BITS

__all__ = ["VERSION", "PackedFile", "PackedStore", "is_packed", "open_packed", "write_packed"]

VERSION = 1
"""Of the format; another one is refused."""
_KEY = "lutra_version"
_CONFIG, _TENSORS = "config.json", "model.safetensors"
_NORMS = ("input_norm", "attention_norm", "ffn_input_norm", "ffn_norm")
_ARRAYS = ("embedding", "rope", "norm", "head", "head_rows")
_FIELDS = (
    "name", "architecture", "format", "a_bits", "ternary", "w_bits", "scale_bits", "group",
    "biased", "head_normed", "hidden_size", "intermediate_size", "n_heads", "n_kv_heads",
    "head_dim",
    "vocab_size", "context", "bos", "head_eps", "residual_frac", "embedding_frac", "head_shift",
    "head_scale",
)  # fmt: skip
_Arrays = dict[str, NDArray[np.generic]]
_HASH_BYTES = 1 << 24
_PLAN = "plan.json"
_TYPES = {"uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16"}


def is_packed(path: Path) -> bool:
    """Whether a folder holds a packed model."""
    config = path / _CONFIG
    try:
        return path.is_dir() and _KEY in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, TypeError):
        return False


# -- a layer as arrays and numbers


def _layer_arrays(layer: PackedLayer) -> tuple[_Arrays, dict[str, object]]:
    arrays: _Arrays = {}
    numbers: dict[str, object] = {"window": layer.window}
    for name in LINEARS:
        linear = layer.linear(name)
        w = linear.weights
        ternary = w.ternary
        codes = w.codes.astype(np.uint8, copy=False)
        if ternary:
            codes = (codes + 1 - (w.zero // 2).astype(np.uint8)).astype(np.uint8)
        arrays[f"{name}.codes"] = to_b128(codes, 2 if ternary else w.bits)
        if not ternary:
            wide = int(w.scale.max(initial=0)) > 255
            arrays[f"{name}.scale"] = w.scale.astype(np.uint16 if wide else np.uint8)
            arrays[f"{name}.zero"] = w.zero.astype(np.uint16)
        numbers[name] = {
            "bits": 2 if ternary else w.bits,
            "group": None if ternary else w.group,
            "scale": [int(linear.scale.m), int(linear.scale.e)],
            "shift": linear.shift,
        }
    for name in _NORMS:
        norm: PackedNorm | None = getattr(layer, name)
        numbers[name] = None if norm is None else norm.frac
        if norm is not None:
            arrays[name] = norm.gamma
    numbers["bias"] = None if layer.bias is None else layer.bias.frac
    if layer.bias is not None:
        arrays["bias"] = layer.bias.values
    numbers["head_norms"] = None if layer.head_norms is None else layer.head_norms.frac
    if layer.head_norms is not None:
        arrays["query_norm"] = layer.head_norms.query
        arrays["key_norm"] = layer.head_norms.key
    return arrays, numbers


class _LayerReader:
    """Rebuilds a layer; every number is checked, since files come from anywhere."""

    def __init__(self, tensors: SafetensorsFolder, sizes: "_Sizes") -> None:
        self._tensors, self._sizes = tensors, sizes

    def read(self, prefix: str, file: ConfigFile) -> PackedLayer:
        q, kv, dh = self._sizes.q, self._sizes.kv, self._sizes.head_dim
        linears = {
            name: self._linear(prefix + name, file, name, *self._sizes.shape_of(name))
            for name in LINEARS
        }
        depths = {"input_norm": "q_proj", "attention_norm": "o_proj"}
        depths |= {"ffn_input_norm": "gate_proj", "ffn_norm": "down_proj"}
        norms: dict[str, PackedNorm | None] = {}
        for name, linear in depths.items():
            frac = self._optional(file, name)
            depth = self._sizes.shape_of(linear)[1]
            norms[name] = (
                None if frac is None else PackedNorm(self._int16(prefix + name, depth), frac)
            )
        input_norm, ffn_input_norm = norms["input_norm"], norms["ffn_input_norm"]
        if input_norm is None or ffn_input_norm is None:
            raise LutraError(f"{file.path}: {prefix}input_norm is missing: pack the model again")
        bias = self._optional(file, "bias")
        head_norms = self._optional(file, "head_norms")
        window = file.get("window")
        if isinstance(window, bool) or not isinstance(window, int) or not 0 <= window < 1 << 31:
            raise LutraError(f"{file.path}: {prefix}window must be 0 or more, not {window!r}")
        return PackedLayer(
            input_norm=input_norm,
            q_proj=linears["q_proj"],
            k_proj=linears["k_proj"],
            v_proj=linears["v_proj"],
            bias=None
            if bias is None
            else PackedBias(self._int16(f"{prefix}bias", q + 2 * kv), bias),
            head_norms=None
            if head_norms is None
            else HeadNorms(
                self._int16(f"{prefix}query_norm", dh),
                self._int16(f"{prefix}key_norm", dh),
                head_norms,
            ),
            window=window,
            attention_norm=norms["attention_norm"],
            o_proj=linears["o_proj"],
            ffn_input_norm=ffn_input_norm,
            gate_proj=linears["gate_proj"],
            up_proj=linears["up_proj"],
            ffn_norm=norms["ffn_norm"],
            down_proj=linears["down_proj"],
        )

    def _int16(self, name: str, n: int) -> NDArray[np.int16]:
        return cast("NDArray[np.int16]", _typed(self._tensors, name, np.int16, n))

    @staticmethod
    def _optional(file: ConfigFile, name: str) -> int | None:
        value = file.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 24
        ):
            raise LutraError(f"{file.path}: {name} must be fraction bits, not {value!r}")
        return value

    def _linear(self, tensor: str, file: ConfigFile, name: str, n: int, k: int) -> PackedLinear:
        bits, group = file.whole("bits", name), file.get("group", name)
        if bits not in W_BITS:
            raise LutraError(f"{file.path}: {tensor} has {bits} bits; supported are {W_BITS}")
        data = _typed(self._tensors, f"{tensor}.codes", np.uint8, n, row_bytes(k, bits))
        codes = from_b128(cast("NDArray[np.uint8]", data), bits, k)
        if group is None:
            if bits != 2 or codes.max(initial=0) > 2:
                raise LutraError(f"{file.path}: {tensor} must have ternary codes 0, 1 and 2")
            weights = GroupedWeights.from_integers(codes.astype(np.int8) - 1)
        else:
            size = file.whole("group", name)
            if k % size:
                raise LutraError(f"{file.path}: {tensor} has groups of {size} in a depth of {k}")
            scale = self._tensors.take(f"{tensor}.scale", n, k // size)
            zero = _typed(self._tensors, f"{tensor}.zero", np.uint16, n, k // size)
            if scale.dtype.name not in ("uint8", "uint16"):
                raise LutraError(f"{file.path}: {tensor}.scale must be U8 or U16")
            try:
                weights = GroupedWeights(
                    codes=codes,
                    scale=scale.astype(np.int64),
                    zero=zero.astype(np.int64),
                    bits=bits,
                    group=size,
                )
            except ValueError as error:
                raise LutraError(f"{file.path}: {tensor}: {error}") from None
        shift = file.get("shift", name)
        if isinstance(shift, bool) or not isinstance(shift, int) or not 0 <= shift <= 24:
            raise LutraError(f"{file.path}: {tensor} has a shift of {shift!r}, not 0 to 24")
        return PackedLinear(weights, _scale(file, name, tensor), shift)


def _scale(file: ConfigFile, within: str | None, where: str) -> Scale:
    value = file.get("scale", within) if within else file.get("eps")
    if isinstance(value, list):
        pair = cast("list[object]", value)
        if len(pair) == 2 and all(isinstance(x, int) and not isinstance(x, bool) for x in pair):
            m, e = cast("list[int]", pair)
            whole = 1 << (SCALE.m_width - 1) <= m < 1 << SCALE.m_width
            if (whole and abs(e) <= 1 << 10) or (m, e) == (0, 0):
                return Scale(np.asarray(m), np.asarray(e))
    raise LutraError(f"{file.path}: {where} has no scale but {value!r}: pack the model again")


def _typed(
    tensors: SafetensorsFolder, name: str, dtype: type[np.generic], *shape: int
) -> NDArray[np.generic]:
    values = tensors.take(name, *shape)
    if values.dtype != dtype:
        raise LutraError(
            f"{tensors.path}: {name} must be {np.dtype(dtype)}, not {values.dtype}: "
            "pack the model again"
        )
    return values


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    intermediate: int
    q: int
    kv: int
    head_dim: int

    def shape_of(self, linear: str) -> tuple[int, int]:
        d, f = self.hidden, self.intermediate
        return {
            "q_proj": (self.q, d),
            "k_proj": (self.kv, d),
            "v_proj": (self.kv, d),
            "o_proj": (d, self.q),
            "gate_proj": (f, d),
            "up_proj": (f, d),
            "down_proj": (d, f),
        }[linear]


# -- layers that are finished, while others are not


class PackedStore(Sequence[PackedLayer]):
    """Packed layers on disk while a model is being packed, so that an interrupt loses little.

    ``settings`` is everything that decides what a layer becomes; layers that were packed with
    others are not taken.
    """

    def __init__(self, out: Path, settings: Mapping[str, object], sizes: "Sequence[int]") -> None:
        text = json.dumps(settings, sort_keys=True)
        self.folder = out / f".partial-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self._sizes = _Sizes(*sizes)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _place(self, i: int) -> Path:
        return self.folder / f"layer-{i:04d}"

    def save(self, i: int, layer: PackedLayer) -> None:
        """Keep layer ``i``; it is there whole or not at all."""
        arrays, numbers = _layer_arrays(layer)
        place = self._place(i)
        partial = place.with_suffix(".writing")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _write_tensors(partial / _TENSORS, arrays)
        (partial / _CONFIG).write_text(json.dumps(numbers, sort_keys=True), encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)

    def load(self, i: int) -> PackedLayer | None:
        """Layer ``i``, or None if it is not finished."""
        place = self._place(i)
        if not place.is_dir():
            return None
        reader = _LayerReader(SafetensorsFolder(place), self._sizes)
        return reader.read("", ConfigFile.read(place / _CONFIG))

    def save_plan(self, plan: BitPlan) -> None:
        """Keep the bits that were allotted."""
        (self.folder / _PLAN).write_text(json.dumps(plan.bits), encoding="utf-8")

    def load_plan(self) -> BitPlan | None:
        """The bits that were allotted, or None."""
        try:
            found = json.loads((self.folder / _PLAN).read_text(encoding="utf-8"))
            return BitPlan(tuple(tuple(map(int, layer)) for layer in found))
        except (OSError, ValueError, TypeError):
            return None

    def __len__(self) -> int:
        return sum(1 for each in self.folder.glob("layer-*") if not each.suffix)

    @overload
    def __getitem__(self, index: int) -> PackedLayer: ...
    @overload
    def __getitem__(self, index: slice) -> list[PackedLayer]: ...
    def __getitem__(self, index: int | slice) -> PackedLayer | list[PackedLayer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        layer = self.load(index)
        if layer is None:
            raise IndexError(f"layer {index} is not finished")
        return layer

    def arrays(self, i: int) -> tuple[SafetensorsFolder, dict[str, object]]:
        """What layer ``i`` is made of."""
        place = self._place(i)
        numbers = json.loads((place / _CONFIG).read_text(encoding="utf-8"))
        return SafetensorsFolder(place), numbers

    def clear(self) -> None:
        """Forget all layers."""
        shutil.rmtree(self.folder, ignore_errors=True)


# -- writing


def _write_tensors(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    sizes = {name: (a.dtype.name, a.shape) for name, a in arrays.items()}
    _stream_tensors(path, sizes, arrays.items())


def _stream_tensors(
    path: Path,
    sizes: Mapping[str, tuple[str, tuple[int, ...]]],
    arrays: Iterable[tuple[str, NDArray[np.generic]]],
) -> None:
    """Write safetensors one tensor at a time: the library wants all of them in memory."""
    header: dict[str, object] = {}
    offset = 0
    for name, (dtype, shape) in sizes.items():
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        offsets = [offset, offset + n_bytes]
        header[name] = {
            "dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": offsets
        }  # fmt: skip
        offset += n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (expected, (dtype, shape)), (name, values) in zip(sizes.items(), arrays, strict=True):
            assert (name, dtype, shape) == (expected, values.dtype.name, values.shape)
            little = values.dtype.newbyteorder("<")
            file.write(np.ascontiguousarray(values.astype(little, copy=False)).data)


def write_packed(out: Path, model: PackedModel, store: PackedStore) -> str:
    """Write a packed model whose layers are in ``store``; returns its fingerprint.

    The folder gets both files or, if anything fails, neither.
    """
    n = len(model.layers)
    tail: _Arrays = {
        "embedding": model.embedding,
        "rope": model.rope,
        "norm": model.norm.gamma,
        "head": model.head,
        "head_rows": model.head_rows,
    }
    sizes: dict[str, tuple[str, tuple[int, ...]]] = {}
    layers: list[dict[str, object]] = []
    for i in range(n):
        tensors, numbers = store.arrays(i)
        layers.append(numbers)
        for name in sorted(tensors.names()):
            sizes[f"layers.{i}.{name}"] = tensors.dtype(name), tensors.shape(name)
    for name in _ARRAYS:
        sizes[name] = tail[name].dtype.name, tail[name].shape

    def arrays() -> Iterable[tuple[str, NDArray[np.generic]]]:
        for i in range(n):
            tensors, _ = store.arrays(i)
            for name in sorted(tensors.names()):
                yield f"layers.{i}.{name}", tensors.take(name)
        for name in _ARRAYS:
            yield name, tail[name]

    partial = store.folder / _TENSORS
    _stream_tensors(partial, sizes, arrays())
    content: dict[str, object] = {name: getattr(model, name) for name in _FIELDS}
    content |= {
        _KEY: VERSION,
        "gate": model.gate.value,
        "eos": list(model.eos),
        "eps": [int(model.eps.m), int(model.eps.e)],
        "norm_frac": model.norm.frac,
        "layers": layers,
        "sha256": _sha256(partial),
    }
    content["fingerprint"] = _fingerprint(content)
    config = store.folder / _CONFIG
    config.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (out / _CONFIG).unlink(missing_ok=True)
    partial.replace(out / _TENSORS)
    config.replace(out / _CONFIG)
    return str(content["fingerprint"])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _fingerprint(content: Mapping[str, object]) -> str:
    """Of everything but the model's name: the integers that run."""
    counted = {k: v for k, v in content.items() if k not in ("name", "fingerprint")}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:16]


# -- reading


class _Layers(Sequence[PackedLayer]):
    """Layers of a file, read when they are asked for."""

    def __init__(self, reader: _LayerReader, files: list[ConfigFile]) -> None:
        self._reader, self._files = reader, files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> PackedLayer: ...
    @overload
    def __getitem__(self, index: slice) -> list[PackedLayer]: ...
    def __getitem__(self, index: int | slice) -> PackedLayer | list[PackedLayer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._reader.read(f"layers.{index}.", self._files[index])


@dataclass(frozen=True)
class PackedFile:
    """A packed model as it was opened, and what ``lutra show`` prints of it."""

    model: PackedModel
    fingerprint: str
    n_bytes: int


def open_packed(folder: Path) -> PackedFile:
    """Open a packed model; layers are read when they are asked for.

    LutraError if it is of another version, if its hash is not that of its tensors, or if sizes do
    not fit each other.
    """
    file = ConfigFile.read(folder / _CONFIG)
    if file.get(_KEY) != VERSION:
        raise LutraError(
            f"{file.path} is of packed format {file.get(_KEY)!r}, this is {VERSION}: "
            "pack the model again"
        )
    tensors = SafetensorsFolder(folder)
    if file.get("sha256") != _sha256(tensors.path):
        raise LutraError(
            f"{tensors.path} is not the file that config.json was written with (SHA-256 differs): "
            "copy or pack the model again"
        )
    listed = file.get("layers")
    found = cast("list[object]", listed) if isinstance(listed, list) else []
    if not found or not all(isinstance(x, dict) for x in found):
        raise LutraError(f"{file.path}: layers must be a list of objects: pack the model again")
    d, f = file.whole("hidden_size"), file.whole("intermediate_size")
    n_heads, n_kv, dh = (file.whole(x) for x in ("n_heads", "n_kv_heads", "head_dim"))
    vocab, context = file.whole("vocab_size"), file.whole("context")
    gate = file.get("gate")
    file.require("gate", gate, *(each.value for each in Gate), advice="pack the model again")
    sizes = _Sizes(d, f, n_heads * dh, n_kv * dh, dh)
    files = [ConfigFile(file.path, cast("dict[str, object]", x)) for x in found]
    bos = file.tokens("bos")

    def count(name: str, most: int) -> int:
        value = file.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise LutraError(f"{file.path}: {name} must be in 0..{most}, not {value!r}")
        return value

    model = PackedModel(
        name=folder.resolve().name,
        architecture=str(file.get("architecture")),
        format=str(file.get("format")),
        a_bits=file.whole("a_bits", most=16),
        ternary=file.flag("ternary"),
        w_bits=file.whole("w_bits", most=8),
        scale_bits=file.whole("scale_bits", most=16),
        group=file.whole("group") if file.get("group") is not None else None,
        biased=file.flag("biased"),
        head_normed=file.flag("head_normed"),
        gate=Gate(gate),
        hidden_size=d,
        intermediate_size=f,
        n_heads=n_heads,
        n_kv_heads=n_kv,
        head_dim=dh,
        vocab_size=vocab,
        context=context,
        bos=bos[0] if bos else None,
        eos=file.tokens("eos"),
        eps=_scale(file, None, "eps"),
        head_eps=count("head_eps", (1 << 16) - 1),
        residual_frac=count("residual_frac", 20),
        embedding=cast("NDArray[np.int16]", _typed(tensors, "embedding", np.int16, vocab, d)),
        embedding_frac=count("embedding_frac", 24),
        rope=cast("NDArray[np.int16]", _typed(tensors, "rope", np.int16, context, dh)),
        layers=_Layers(_LayerReader(tensors, sizes), files),
        norm=PackedNorm(
            cast("NDArray[np.int16]", _typed(tensors, "norm", np.int16, d)),
            count("norm_frac", 24),
        ),
        head=cast("NDArray[np.int8]", _typed(tensors, "head", np.int8, vocab, d)),
        head_rows=cast("NDArray[np.int16]", _typed(tensors, "head_rows", np.int16, vocab)),
        head_shift=count("head_shift", 24),
        head_scale=file.real("head_scale"),
    )
    fingerprint = str(file.get("fingerprint"))
    n_bytes = sum(path.stat().st_size for path in (file.path, tensors.path))
    return PackedFile(model, fingerprint, n_bytes)

"""Lutra's own file: a packed model as ``config.json`` and one ``model.safetensors``.

The same input gives the same bytes on every machine: tensors lie in one order, numbers are written
in one way. ``config.json`` carries the version of the format, everything that is not an array, the
SHA-256 of the tensors' file, and a fingerprint of all that. See :mod:`.packed_layers` for layers.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast, overload

import numpy as np
from numpy.typing import NDArray

from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra.formats.safetensors_writer import write_safetensors
from lutra.packed.layers import (
    LayerReader,
    LayerSizes,
    linear_arrays,
    read_count,
    read_linear,
    read_scale,
    take_typed,
)
from lutra.packed.store import LayerSource
from lutra_golden.arith.quantize import ACTIVATION_GROUPS, ActivationGroups
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import A_BITS, FORMATS, GROUPS
from lutra_golden.model.cache import KV_PAIRS, kv_name
from lutra_golden.model.checks import check_numbers
from lutra_golden.model.limits import (
    EMBEDDING_SHIFT_MAX,
    FRAC_MAX,
    HEAD_MAX,
    RESIDUAL_FRAC_MAX,
    SHIFT_MAX,
)
from lutra_golden.model.packed import (
    CodedVocabulary,
    PackedLayer,
    PackedLinear,
    PackedModel,
    PackedNorm,
)
from lutra_golden.model.shapes import LINEARS, Gate

__all__ = ["VERSION", "PackedFile", "is_packed", "open_packed", "write_packed"]

VERSION = 7
"""Version of the format; other versions are refused."""
_KEY = "lutra_version"
_CONFIG, _TENSORS = "config.json", "model.safetensors"
_TABLES = ("embedding", "head", "head_rows")
_CODED = "vocabulary"
_FIELDS = (
    "architecture", "format", "a_bits", "key_bits", "value_bits", "ternary", "w_bits", "scale_bits",
    "group",
    "biased", "head_normed", "hidden_size", "intermediate_size", "n_heads", "n_kv_heads",
    "head_dim", "vocab_size", "context", "bos", "head_eps", "residual_frac", "embedding_frac",
    "head_shift", "head_scale", "offsets",
)  # fmt: skip
_ADVICE = "pack the model again"
_HASH_BYTES = 1 << 24
_EPS_MAX = (1 << 16) - 1
_NAME_MAX = 100
_HALF_BYTE = 4


def is_packed(path: Path) -> bool:
    """True if a folder holds a packed model."""
    config = path / _CONFIG
    try:
        return path.is_dir() and _KEY in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, TypeError):
        return False


# -- writing


def write_packed(
    out: Path,
    model: PackedModel,
    store: LayerSource,
    beside: Callable[[Path], None] | None = None,
) -> str:
    """Write a packed model whose layers are in ``store``; returns its fingerprint.

    ``beside`` puts what else belongs to the model into the folder. ``config.json`` comes last: a
    folder that has it is whole.
    """
    n = len(model.layers)
    tail: dict[str, NDArray[np.generic]] = {
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
    coded: dict[str, object] | None = None
    if model.vocabulary is not None:
        coded, tail = _vocabulary_form(model.vocabulary, tail)
    for name, values in tail.items():
        sizes[name] = values.dtype.name, values.shape

    def arrays() -> Iterable[tuple[str, NDArray[np.generic]]]:
        for i in range(n):
            tensors, _ = store.arrays(i)
            for name in sorted(tensors.names()):
                yield f"layers.{i}.{name}", tensors.read(name)
        yield from tail.items()

    partial = store.folder / _TENSORS
    sha256 = write_safetensors(partial, sizes, arrays())
    content: dict[str, object] = {name: getattr(model, name) for name in _FIELDS}
    content |= {
        _KEY: VERSION,
        "name": model.name,
        "gate": model.gate.value,
        "eos": list(model.eos),
        "eps": [int(model.eps.m), int(model.eps.e)],
        "norm_frac": model.norm.frac,
        "activation_groups": None if model.a_groups is None else asdict(model.a_groups),
        "vocabulary": coded,
        "layers": layers,
        "sha256": sha256,
    }
    content["fingerprint"] = fingerprint = _fingerprint(content)
    config = store.folder / _CONFIG
    config.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (out / _CONFIG).unlink(missing_ok=True)
    partial.replace(out / _TENSORS)
    if beside:
        beside(out)
    config.replace(out / _CONFIG)
    return fingerprint


def _vocabulary_form(
    vocabulary: CodedVocabulary, tail: Mapping[str, NDArray[np.generic]]
) -> tuple[dict[str, object], dict[str, NDArray[np.generic]]]:
    """Numbers of coded embedding and head, and the arrays of a file with them; one if tied."""
    prefix = f"{_CODED}.embedding"
    arrays, first = linear_arrays(prefix, vocabulary.embedding)
    found, last = linear_arrays(f"{_CODED}.head", vocabulary.head)
    if not vocabulary.tied:
        arrays |= found
    kept = {name: values for name, values in tail.items() if name not in _TABLES}
    return {"tied": vocabulary.tied, "embedding": first, "head": last}, kept | arrays


def _read_vocabulary(
    file: ConfigFile, tensors: SafetensorsFolder, n: int, k: int
) -> CodedVocabulary | None:
    fields = file.get(_CODED)
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise LutraError(f"{file.path}: {_CODED} must be an object, not {fields!r}: {_ADVICE}")
    inner = ConfigFile(file.path, cast("dict[str, object]", fields))
    first = read_linear(tensors, inner, f"{_CODED}.", "embedding", n, k)
    if first.shift:
        raise LutraError(f"{file.path}: {_CODED}.embedding.shift must be 0: {_ADVICE}")
    if not inner.flag("tied"):
        return CodedVocabulary(first, read_linear(tensors, inner, f"{_CODED}.", "head", n, k))
    last = inner.get("head")
    if not isinstance(last, dict):
        raise LutraError(f"{file.path}: {_CODED}.head must be an object, not {last!r}: {_ADVICE}")
    numbers = ConfigFile(file.path, cast("dict[str, object]", last))
    scale = read_scale(numbers, "scale", prefix=f"{_CODED}.head.")
    shift = read_count(numbers, "shift", SHIFT_MAX, prefix=f"{_CODED}.head.")
    return CodedVocabulary(first, PackedLinear(first.source, scale, shift))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _fingerprint(content: Mapping[str, object]) -> str:
    """Fingerprint of all numbers in the file; tensors enter by their hash, the name does not."""
    counted = {name: content[name] for name in content if name not in ("fingerprint", "name")}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:16]


# -- reading


@dataclass(frozen=True)
class _Promise:
    """Summary of all layers in ``config.json``, by which a configuration is chosen."""

    ternary: bool
    w_bits: int
    scale_bits: int
    group: int | None
    biased: bool
    head_normed: bool
    offsets: bool

    def broken_by(self, layer: PackedLayer) -> str | None:
        """Description of what a layer has beyond it."""
        for name in LINEARS:
            linear = layer.linear(name)
            w = linear.stored
            if self.ternary and not (w.group is None and linear.shift):
                return f"{name} is not ternary, or not shifted"
            if w.bits > self.w_bits:
                return f"{name} has {w.bits} bits, more than {self.w_bits}"
            if w.scale_bits > self.scale_bits:
                return f"{name} has scales of {w.scale_bits} bits, more than {self.scale_bits}"
            if w.has_offsets and not self.offsets:
                return f"{name} has offsets"
            if w.group is not None and (self.group is None or w.group % self.group):
                return f"{name} has groups of {w.group}, not of {self.group}"
        if layer.bias is not None and not self.biased:
            return "it has biases"
        if layer.head_norms is not None and not self.head_normed:
            return "it has norms of heads"
        return None


class _Layers(Sequence[PackedLayer]):
    """Layers of a file, read when they are asked for."""

    def __init__(self, reader: LayerReader, files: list[ConfigFile], promise: _Promise) -> None:
        self._reader, self._files, self._promise = reader, files, promise

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> PackedLayer: ...
    @overload
    def __getitem__(self, index: slice) -> list[PackedLayer]: ...
    def __getitem__(self, index: int | slice) -> PackedLayer | list[PackedLayer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        file = self._files[index]
        layer = self._reader.read(f"layers.{index}.", file)
        if broken := self._promise.broken_by(layer):
            raise LutraError(
                f"{file.path}: layer {index} differs from the model's sizes, {broken}: {_ADVICE}"
            )
        return layer


@dataclass(frozen=True)
class PackedFile:
    """A packed model as it was opened, its fingerprint, and the bytes of its two files."""

    model: PackedModel
    fingerprint: str
    n_bytes: int


def open_packed(folder: Path, *, unchanged: bool = False) -> PackedFile:
    """Open a packed model; layers are read when they are asked for.

    With ``unchanged`` the files are known to be what was written: numbers are not checked again.

    LutraError if it is of another version, if its hash or its fingerprint is not that of its
    content, if sizes do not fit each other, or numbers can leave the range of the token path.
    """
    file = ConfigFile.read(folder / _CONFIG)
    version = file.get(_KEY)
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise LutraError(
            f"{file.path} is of packed format {version!r}, this Lutra reads {VERSION}: "
            + ("update Lutra, or pack" if newer else "pack")
            + f" its checkpoint again ({_command(file, folder)})"
        )
    path = folder / _TENSORS
    if not path.is_file():
        raise LutraError(f"{path} does not exist: copy the model again, both of its files")
    tensors = SafetensorsFolder(folder)
    if not unchanged and file.get("sha256") != _sha256(path):
        raise LutraError(
            f"{path} is not the file that config.json was written with (SHA-256 differs): "
            "copy or pack the model again"
        )
    fingerprint = _fingerprint(file.content)
    if file.get("fingerprint") != fingerprint:
        raise LutraError(
            f"{file.path} was changed since it was written (its fingerprint would be "
            f"{fingerprint}): copy or pack the model again"
        )
    n_bytes = sum(each.stat().st_size for each in (file.path, path))
    model = _read_model(_name(file, folder), file, tensors, unchanged)
    try:
        if not unchanged:
            check_numbers(model)
    except LutraError as error:
        # layers that cannot be read name their file themselves
        named = str(error).startswith(str(folder))
        raise LutraError(str(error) if named else f"{file.path}: {error}") from None
    return PackedFile(model, fingerprint, n_bytes)


def _command(file: ConfigFile, folder: Path) -> str:
    """Command that packs a file of another version again, in the same bits."""
    # the bits of weights, perhaps with a group, and of activations, of which a group has an option
    named = re.fullmatch(r"(W[0-9.]+)(g[0-9]+)?(A[0-9]+)(g[0-9]+)?", str(file.get("format")))
    options = list[str]()
    if named is not None and named[1] + named[3] in FORMATS:
        group = named[2] or ""
        if group in ("", *(f"g{size}" for size in GROUPS)):
            options += ["--format", named[1] + group + named[3]]
    if isinstance(groups := file.get("activation_groups"), dict):
        size = cast("dict[str, object]", groups).get("size")
        options += ["--a-group", str(size)] if size in ACTIVATION_GROUPS else []
    coded = file.get(_CODED)
    parts = cast("dict[str, object]", coded).values() if isinstance(coded, dict) else ()
    found = [
        cast("dict[str, object]", each).get("bits") for each in parts if isinstance(each, dict)
    ]
    if found:
        wide = any(isinstance(bits, int) and bits > _HALF_BYTE for bits in found)
        options += ["--head", "8" if wide else "4"]
    kv = [file.get("kv_bits"), (file.get("key_bits"), file.get("value_bits"))]
    for pair in KV_PAIRS:
        if pair in kv or (pair[0] == pair[1] and pair[0] in kv):
            options += ["--kv", kv_name(pair)]
    return shlex.join(["lutra", "pack", "CHECKPOINT", "-o", str(folder), *options])


def _name(file: ConfigFile, folder: Path) -> str:
    """The model's name, of characters that a terminal shows; older files have the folder's."""
    text = folder.resolve().name if file.get("name") is None else _text(file, "name")
    return "".join(each if each.isprintable() else "?" for each in text[:_NAME_MAX])


def _read_model(
    name: str, file: ConfigFile, tensors: SafetensorsFolder, unchanged: bool
) -> PackedModel:
    listed = file.get("layers")
    found = cast("list[object]", listed) if isinstance(listed, list) else []
    if not found or not all(isinstance(each, dict) for each in found):
        raise LutraError(f"{file.path}: layers must be a list of objects: {_ADVICE}")
    files = [ConfigFile(file.path, cast("dict[str, object]", each)) for each in found]
    d, f = file.whole("hidden_size"), file.whole("intermediate_size")
    n_heads, n_kv_heads, head_dim = (
        file.whole(each, maximum=1 << 12) for each in ("n_heads", "n_kv_heads", "head_dim")
    )
    for what, value, divisor in (("n_heads", n_heads, n_kv_heads), ("head_dim", head_dim, 4)):
        if value % divisor:
            raise LutraError(
                f"{file.path}: {what} must be a multiple of {divisor}, not {value}: {_ADVICE}"
            )
    vocab, context = file.whole("vocab_size"), file.whole("context")
    gate, a_bits, bos = file.get("gate"), file.whole("a_bits"), file.tokens("bos")
    file.require("gate", gate, *(each.value for each in Gate), advice=_ADVICE)
    file.require("a_bits", a_bits, *A_BITS, advice=_ADVICE)
    key_bits, value_bits = kv = file.whole("key_bits"), file.whole("value_bits")
    if kv not in KV_PAIRS:
        raise LutraError(
            f"{file.path}: key_bits and value_bits must be 8 and 8, 8 and 4 or 4 and 4, not "
            f"{key_bits} and {value_bits}: {_ADVICE}"
        )
    promise = _Promise(
        ternary=file.flag("ternary"),
        w_bits=file.whole("w_bits", maximum=8),
        scale_bits=file.whole("scale_bits", maximum=16),
        group=file.whole("group") if file.get("group") is not None else None,
        biased=file.flag("biased"),
        head_normed=file.flag("head_normed"),
        offsets=file.flag("offsets"),
    )

    def int16(name: str, *shape: int) -> NDArray[np.int16]:
        return cast("NDArray[np.int16]", take_typed(tensors, name, np.int16, *shape))

    coded = _read_vocabulary(file, tensors, vocab, d)
    n_rows = vocab if coded is None else 0
    head, rows = np.zeros((0, d), np.int8), np.zeros(0, np.int16)
    embedding = np.zeros((0, d), np.int16)
    if coded is None:
        head = cast("NDArray[np.int8]", take_typed(tensors, "head", np.int8, vocab, d))
        rows, embedding = int16("head_rows", vocab), int16("embedding", vocab, d)
    wrong = (
        n_rows
        and not unchanged
        and (head.min() < -HEAD_MAX or head.max() > HEAD_MAX or rows.min() < 1)
    )
    if wrong:
        raise LutraError(
            f"{tensors.path}: head must be in -{HEAD_MAX}..{HEAD_MAX} and head_rows positive: "
            f"{_ADVICE}"
        )
    residual_frac = read_count(file, "residual_frac", RESIDUAL_FRAC_MAX)
    sizes = LayerSizes(d, f, n_heads * head_dim, n_kv_heads * head_dim, head_dim)
    return PackedModel(
        name=name,
        architecture=_text(file, "architecture"),
        format=_text(file, "format"),
        a_bits=a_bits,
        key_bits=key_bits,
        value_bits=value_bits,
        ternary=promise.ternary,
        w_bits=promise.w_bits,
        scale_bits=promise.scale_bits,
        group=promise.group,
        biased=promise.biased,
        head_normed=promise.head_normed,
        gate=Gate(gate),
        hidden_size=d,
        intermediate_size=f,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        context=context,
        bos=bos[0] if bos else None,
        eos=file.tokens("eos"),
        eps=read_scale(file, "eps"),
        head_eps=read_count(file, "head_eps", _EPS_MAX),
        residual_frac=residual_frac,
        embedding=embedding,
        embedding_frac=read_count(
            file,
            "embedding_frac",
            residual_frac,
            minimum=max(0, residual_frac - EMBEDDING_SHIFT_MAX),
        ),
        rope=int16("rope", context, head_dim),
        layers=_Layers(LayerReader(tensors, sizes), files, promise),
        norm=PackedNorm(int16("norm", d), read_count(file, "norm_frac", FRAC_MAX)),
        head=head,
        head_rows=rows,
        head_shift=read_count(file, "head_shift", SHIFT_MAX, minimum=1),
        head_scale=file.real("head_scale"),
        a_groups=_activation_groups(file, a_bits),
        offsets=promise.offsets,
        vocabulary=coded,
    )


def _activation_groups(file: ConfigFile, a_bits: int) -> ActivationGroups | None:
    within = "activation_groups"
    if file.get(within) is None:
        return None
    try:
        groups = ActivationGroups(
            size=file.whole("size", within), shift_max=file.whole("shift_max", within)
        )
    except ValueError as error:
        raise LutraError(f"{file.path}: activation_groups: {error}: {_ADVICE}") from None
    if a_bits != 8:
        raise LutraError(
            f"{file.path}: activations in groups must have 8 bits, not {a_bits}: {_ADVICE}"
        )
    return groups


def _text(file: ConfigFile, name: str) -> str:
    value = file.get(name)
    if not isinstance(value, str):
        raise LutraError(f"{file.path}: {name} must be a text, not {value!r}: {_ADVICE}")
    return value

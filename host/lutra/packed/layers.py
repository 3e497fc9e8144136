"""A packed layer as arrays and numbers, and back.

Codes are in B128 (:mod:`.b128`). Ternary ones are 0, 1, 2 for -1, 0, 1 and have neither group
scales nor zero points. A zero point that all groups of a matrix share is one number, two of them
are two and a bit for each group. Scales and offsets in two levels are records
(:mod:`lutra_golden.model.two_levels`). Files come from anywhere, so every number that is read is
checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra_golden.arith.scale import SCALE, Scale
from lutra_golden.errors import LutraError
from lutra_golden.model.b128 import CODE_BITS, row_bytes
from lutra_golden.model.limits import FRAC_MAX, SCALE_EXPONENT_MAX, SHIFT_MAX
from lutra_golden.model.lowered import STACKS
from lutra_golden.model.packed import (
    HeadNorms,
    PackedBias,
    PackedLayer,
    PackedLinear,
    PackedNorm,
)
from lutra_golden.model.shapes import LINEARS, linear_shapes
from lutra_golden.model.stored import OFFSET_SHIFT_MAX, StoredWeights, TwoZeros
from lutra_golden.model.two_levels import MULTIPLE_BITS, SUPER, TwoLevels
from lutra_golden.vector.heads import FIXED_FRAC

__all__ = [
    "LayerReader",
    "LayerSizes",
    "layer_arrays",
    "linear_arrays",
    "read_count",
    "read_linear",
    "read_scale",
    "take_typed",
]

_ADVICE = "pack the model again"
_WINDOW_MAX = (1 << 31) - 1
_ZERO_MAX = (1 << 16) - 1
_NORMS = {
    "input_norm": "q_proj",
    "attention_norm": "o_proj",
    "ffn_input_norm": "gate_proj",
    "ffn_norm": "down_proj",
}
"""The norms, and the matrix whose depth each has."""


@dataclass(frozen=True)
class LayerSizes:
    """Sizes common to a model's layers; ``q`` and ``kv`` are widths of all heads."""

    hidden: int
    intermediate: int
    q: int
    kv: int
    head_dim: int

    def shape_of(self, linear: str) -> tuple[int, int]:
        """Rows and depth of a matrix."""
        return linear_shapes(self.hidden, self.intermediate, self.q, self.kv)[linear]


def layer_arrays(layer: PackedLayer) -> tuple[dict[str, NDArray[np.generic]], dict[str, object]]:
    """Form of a layer in a file: its arrays and its numbers."""
    arrays: dict[str, NDArray[np.generic]] = {}
    numbers: dict[str, object] = {"window": layer.window}
    for name in LINEARS:
        found, numbers[name] = linear_arrays(name, layer.linear(name))
        arrays |= found
    for name in _NORMS:
        norm: PackedNorm | None = getattr(layer, name)
        numbers[name] = None if norm is None else norm.frac
        if norm is not None:
            arrays[name] = norm.gamma
    numbers["bias"] = None if layer.bias is None else layer.bias.frac
    numbers["key_centre"] = layer.bias is not None and layer.bias.centre is not None
    if layer.bias is not None:
        arrays["bias"] = layer.bias.values
        if layer.bias.centre is not None:
            arrays["key_centre"] = layer.bias.centre
    numbers["head_norms"] = None if layer.head_norms is None else layer.head_norms.frac
    if layer.head_norms is not None:
        arrays["query_norm"] = layer.head_norms.query
        arrays["key_norm"] = layer.head_norms.key
    return arrays, numbers


def linear_arrays(
    name: str, linear: PackedLinear
) -> tuple[dict[str, NDArray[np.generic]], dict[str, object]]:
    """Form of a matrix in a file: its arrays, whose names begin with ``name``, and its numbers."""
    stored = linear.stored
    zero: int | list[int] | None = None
    arrays: dict[str, NDArray[np.generic]] = {}
    if stored.scale is not None:
        arrays[f"{name}.scale"] = stored.scale
    if stored.zero is not None:
        if (two := TwoZeros.of(stored.zero)) is None:
            arrays[f"{name}.zero"] = stored.zero
        elif two.first == two.second:
            zero = two.first
        else:
            zero, arrays[f"{name}.marks"] = [two.first, two.second], two.marks
    if stored.offset is not None:
        arrays[f"{name}.offset"] = stored.offset
    levels, shift = stored.levels, stored.offset_shift
    if levels is not None:
        arrays[f"{name}.levels"], shift = levels.records, levels.offset_shift
    arrays[f"{name}.codes"] = stored.codes
    return arrays, {
        "bits": stored.bits,
        "group": stored.group,
        "zero": zero,
        "levels": None if levels is None else {"bits": levels.bits, "shift": levels.shift},
        "offset_shift": shift if stored.has_offsets else None,
        "scale": [int(linear.scale.m), int(linear.scale.e)],
        "shift": linear.shift,
    }


class LayerReader:
    """Rebuilds layers of :func:`layer_arrays`."""

    def __init__(self, tensors: SafetensorsFolder, sizes: LayerSizes) -> None:
        self._tensors, self._sizes = tensors, sizes

    def read(self, prefix: str, file: ConfigFile) -> PackedLayer:
        """The layer whose tensors begin with ``prefix`` and whose numbers are in ``file``."""
        sizes = self._sizes
        matrices = {name: self._linear(prefix, name, file) for name in LINEARS}
        for stack in STACKS:
            shifts = [matrices[name].shift for name in stack]
            if len(set(shifts)) > 1:
                raise LutraError(
                    f"{file.path}: {prefix}{', '.join(stack)} must have one shift, not {shifts}: "
                    f"{_ADVICE}"
                )
        norms: dict[str, PackedNorm | None] = {}
        for name, linear in _NORMS.items():
            frac = _frac(file, prefix, name)
            depth = sizes.shape_of(linear)[1]
            norms[name] = (
                None if frac is None else PackedNorm(self._int16(prefix + name, depth), frac)
            )
        input_norm, ffn_input_norm = norms["input_norm"], norms["ffn_input_norm"]
        if input_norm is None or ffn_input_norm is None:
            raise LutraError(
                f"{file.path}: {prefix}input_norm and ffn_input_norm must be there: {_ADVICE}"
            )
        bias = head_norms = None
        if (frac := _frac(file, prefix, "bias", FIXED_FRAC)) is not None:
            centre = None
            if file.flag("key_centre"):
                centre = self._int16(f"{prefix}key_centre", sizes.kv)
            bias = PackedBias(self._int16(f"{prefix}bias", sizes.q + 2 * sizes.kv), frac, centre)
        if (frac := _frac(file, prefix, "head_norms")) is not None:
            query, key = (
                self._int16(f"{prefix}{x}_norm", sizes.head_dim) for x in ("query", "key")
            )
            head_norms = HeadNorms(query, key, frac)
        return PackedLayer(
            input_norm=input_norm,
            q_proj=matrices["q_proj"],
            k_proj=matrices["k_proj"],
            v_proj=matrices["v_proj"],
            bias=bias,
            head_norms=head_norms,
            window=read_count(file, "window", _WINDOW_MAX, prefix=prefix),
            attention_norm=norms["attention_norm"],
            o_proj=matrices["o_proj"],
            ffn_input_norm=ffn_input_norm,
            gate_proj=matrices["gate_proj"],
            up_proj=matrices["up_proj"],
            ffn_norm=norms["ffn_norm"],
            down_proj=matrices["down_proj"],
        )

    def _int16(self, name: str, n: int) -> NDArray[np.int16]:
        return cast("NDArray[np.int16]", take_typed(self._tensors, name, np.int16, n))

    def _linear(self, prefix: str, name: str, file: ConfigFile) -> PackedLinear:
        return read_linear(self._tensors, file, prefix, name, *self._sizes.shape_of(name))


def read_linear(
    tensors: SafetensorsFolder, file: ConfigFile, prefix: str, name: str, n: int, k: int
) -> PackedLinear:
    """A matrix ``[n, k]`` of :func:`linear_arrays`: numbers are ``name`` in ``file``, names of
    arrays begin with ``prefix``, too."""
    where, fields = prefix + name, file.get(name)
    if not isinstance(fields, dict):
        raise LutraError(f"{file.path}: {where} must be an object, not {fields!r}: {_ADVICE}")
    inner = ConfigFile(file.path, cast("Mapping[str, object]", fields))
    bits = inner.get("bits")
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in CODE_BITS:
        raise LutraError(
            f"{file.path}: {where}.bits must be one of {', '.join(map(str, CODE_BITS))}, not "
            f"{bits!r}: {_ADVICE}"
        )
    codes = take_typed(tensors, f"{where}.codes", np.uint8, n, row_bytes(k, bits))
    group, scale, zero, offset, offset_shift, levels = None, None, None, None, 0, None
    if inner.get("group") is not None:
        group = read_count(inner, "group", k, minimum=1, prefix=f"{where}.")
        if k % group:
            raise LutraError(
                f"{file.path}: {where}.group must divide the depth of {k}, not be {group}: "
                f"{_ADVICE}"
            )
        if offsets := inner.get("offset_shift") is not None:
            offset_shift = read_count(inner, "offset_shift", OFFSET_SHIFT_MAX, prefix=f"{where}.")
        if inner.get("levels") is not None:
            levels = _read_levels(tensors, inner, where, (n, k, group), offset_shift, offsets)
            offset_shift = 0
        else:
            scale = tensors.view(f"{where}.scale", n, k // group)
            if scale.dtype.name not in ("uint8", "uint16"):
                raise LutraError(
                    f"{tensors.path}: {where}.scale must be uint8 or uint16, not "
                    f"{scale.dtype}: {_ADVICE}"
                )
            if offsets:
                offset = take_typed(tensors, f"{where}.offset", np.int16, n, k // group)
        zero = _read_zero(tensors, inner, where, n, k // group)
    try:
        weights = StoredWeights(
            codes=cast("NDArray[np.uint8]", codes),
            depth=k,
            bits=bits,
            group=group,
            scale=cast("NDArray[np.unsignedinteger] | None", scale),
            zero=zero,
            offset=cast("NDArray[np.int16] | None", offset),
            offset_shift=offset_shift,
            levels=levels,
        )
    except ValueError as error:
        raise LutraError(f"{tensors.path}: {where}: {error}: {_ADVICE}") from None
    scale_w = read_scale(inner, "scale", prefix=f"{where}.")
    return PackedLinear(weights, scale_w, read_count(inner, "shift", SHIFT_MAX, prefix=f"{where}."))


def _read_levels(
    tensors: SafetensorsFolder,
    file: ConfigFile,
    where: str,
    sizes: tuple[int, int, int],
    offset_shift: int,
    offsets: bool,
) -> TwoLevels:
    """Two levels of a matrix of these rows, depth and group."""
    fields, (n, k, group) = file.get("levels"), sizes
    if not isinstance(fields, dict):
        raise LutraError(
            f"{file.path}: {where}.levels must be an object, not {fields!r}: {_ADVICE}"
        )
    if k % SUPER or SUPER % group:
        raise LutraError(
            f"{file.path}: {where}.levels must be of a depth that is a multiple of {SUPER} and of "
            f"groups that divide {SUPER}, not of {k} and {group}: {_ADVICE}"
        )
    inner, prefix = ConfigFile(file.path, cast("dict[str, object]", fields)), f"{where}.levels."
    bits = read_count(inner, "bits", max(MULTIPLE_BITS), prefix=prefix)
    shift = read_count(inner, "shift", bits, prefix=prefix)
    n_bytes = TwoLevels.record_bytes(SUPER // group, bits, offsets=offsets)
    records = take_typed(tensors, f"{where}.levels", np.uint8, n, k // SUPER, n_bytes)
    try:
        return TwoLevels(
            records=cast("NDArray[np.uint8]", records),
            groups=SUPER // group,
            bits=bits,
            shift=shift,
            offsets=offsets,
            offset_shift=offset_shift,
        )
    except ValueError as error:
        raise LutraError(f"{tensors.path}: {where}.levels: {error}: {_ADVICE}") from None


def _read_zero(
    tensors: SafetensorsFolder, file: ConfigFile, where: str, n: int, n_groups: int
) -> NDArray[np.uint16]:
    """Zero points ``[n, n_groups]``: one number, two and the marks of groups, or an array."""
    value = file.get("zero")
    if value is None:
        return cast(
            "NDArray[np.uint16]", take_typed(tensors, f"{where}.zero", np.uint16, n, n_groups)
        )
    if not isinstance(value, list):
        common = read_count(file, "zero", _ZERO_MAX, prefix=f"{where}.")
        return np.broadcast_to(np.uint16(common), (n, n_groups))
    pair = cast("list[object]", value)
    whole = [x for x in pair if isinstance(x, int) and not isinstance(x, bool)]
    if len(pair) != 2 or len(whole) != 2 or not 0 <= whole[0] < whole[1] <= _ZERO_MAX:
        raise LutraError(
            f"{file.path}: {where}.zero must be a number, or two rising ones up to {_ZERO_MAX}, "
            f"not {value!r}: {_ADVICE}"
        )
    marks = take_typed(tensors, f"{where}.marks", np.uint8, n, -(-n_groups // 8))
    return TwoZeros(whole[0], whole[1], cast("NDArray[np.uint8]", marks)).zeros(n_groups)


def read_count(
    file: ConfigFile, name: str, maximum: int, *, minimum: int = 0, prefix: str = ""
) -> int:
    """A whole number from ``minimum`` to ``maximum``."""
    value = file.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise LutraError(
            f"{file.path}: {prefix}{name} must be in {minimum}..{maximum}, not {value!r}: {_ADVICE}"
        )
    return value


def _frac(file: ConfigFile, prefix: str, name: str, maximum: int = FRAC_MAX) -> int | None:
    """Fraction bits, or None where there is nothing that has them."""
    return None if file.get(name) is None else read_count(file, name, maximum, prefix=prefix)


def read_scale(file: ConfigFile, name: str, *, prefix: str = "") -> Scale:
    """A normalised scale, ``[mantissa, exponent]``."""
    value = file.get(name)
    pair = cast("list[object]", value) if isinstance(value, list) else []
    if len(pair) == 2 and all(isinstance(x, int) and not isinstance(x, bool) for x in pair):
        m, e = cast("list[int]", pair)
        normal = 1 << (SCALE.m_width - 1) <= m < 1 << SCALE.m_width
        normal &= abs(e) <= SCALE_EXPONENT_MAX
        if normal or (m, e) == (0, 0):
            return Scale(np.asarray(m), np.asarray(e))
    raise LutraError(
        f"{file.path}: {prefix}{name} must be a mantissa of {SCALE.m_width} bits and an exponent "
        f"in -{SCALE_EXPONENT_MAX}..{SCALE_EXPONENT_MAX}, not {value!r}: {_ADVICE}"
    )


def take_typed(
    tensors: SafetensorsFolder, name: str, dtype: type[np.generic], *shape: int
) -> NDArray[np.generic]:
    """A tensor of this type and shape, as stored in the file."""
    values = tensors.view(name, *shape)
    if values.dtype != dtype:
        raise LutraError(
            f"{tensors.path}: {name} must be {np.dtype(dtype)}, not {values.dtype}: {_ADVICE}"
        )
    return values

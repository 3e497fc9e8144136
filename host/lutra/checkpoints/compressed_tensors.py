"""Integer weights in layouts of compressed-tensors, as LLM Compressor writes them."""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.floating import read_dense
from lutra.checkpoints.weights import Grouped, Weight
from lutra.checkpoints.words32 import order_of_groups, read_scale, read_words, unpack_words
from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra_golden.errors import LutraError

__all__ = ["activation_bits", "check_schemes", "read_compressed_tensors"]

_BITS = (2, 3, 4, 5, 6, 8)
_STRATEGIES = ("group", "channel", "tensor")
_FORMATS = ("pack-quantized", "int-quantized", "mixed-precision")
_WITHIN = "quantization_config"


def read_compressed_tensors(
    tensors: SafetensorsFolder, config: ConfigFile, name: str, n: int, k: int
) -> Weight:
    """A linear layer: codes of up to 8 bits, in words or one a byte.

    In words: codes along the depth in ``weight_packed [N, K * bits / 32]``, with an offset of half
    their range; zero points, if there are any, are packed along the rows with the same offset:
    ``weight_zero_point [N * bits / 32, K / group]``. In bytes: ``weight [N, K]`` and
    ``weight_zero_point [N, K / group]``, int8 without that offset. ``weight_scale`` is
    ``[N, K / group]``, or one number. ``weight_g_idx`` is the group of each column. A layer that
    was left in floating point is read as it is.
    """
    packed, full = f"{name}.weight_packed", f"{name}.weight"
    asymmetric = f"{name}.weight_zero_point" in tensors.names()
    if packed in tensors.names() or full not in tensors.names():
        fitting, padded = _fitting(tensors, config, packed, k, asymmetric)
        bits = fitting[0].bits
        width = tensors.shape(packed)[-1]
        words = np.ascontiguousarray(read_words(tensors, packed, n, width).T)
        codes = unpack_words(words, bits, padded=padded)[:k]
    elif tensors.dtype(full) == "int8":
        fitting = [each for each in _schemes(config) if each.symmetric is not asymmetric]
        if not fitting:
            raise _unfitting(tensors, config, full, f"{'a' if asymmetric else 'no'} zero point")
        bits, padded = fitting[0].bits, False
        codes = _of_bytes(tensors, full, bits, n, k).T
    else:
        return read_dense(tensors, config, name, n, k)
    scale = _scale(tensors, f"{name}.weight_scale", fitting, n, k)
    groups = scale.shape[1]
    zero = np.full((n, groups), float(1 << (bits - 1)), np.float32)
    if asymmetric and packed in tensors.names():
        rows = _words(n, bits, padded=padded)
        stored = read_words(tensors, f"{name}.weight_zero_point", rows, groups)
        zero = unpack_words(stored, bits, padded=padded)[:n].astype(np.float32)
    elif asymmetric:
        zero = _of_bytes(tensors, f"{name}.weight_zero_point", bits, n, groups).astype(np.float32)
    if f"{name}.weight_shape" in tensors.names():
        shape = tensors.read(f"{name}.weight_shape", 2).tolist()
        if shape != [n, k]:
            raise LutraError(
                f"{tensors.path}: {name}.weight_shape must be {[n, k]}, not {shape}: "
                "config.json and the tensors are of different models"
            )
    order, index = None, f"{name}.weight_g_idx"
    # all are -1 where the columns are in the order of their groups
    if index in tensors.names() and (tensors.read(index, k) != -1).any():
        order = order_of_groups(tensors, index, k, k // groups)
    columns = codes if order is None else codes[order]
    return Grouped(
        codes=np.ascontiguousarray(columns.T),
        scale=scale,
        zero=zero,
        bits=bits,
        group=k // groups,
        order=order,
    )


def check_schemes(config: ConfigFile) -> None:
    """LutraError for a kind of quantisation that is not read."""
    _schemes(config)


def activation_bits(config: ConfigFile) -> int:
    """Bits of activations: 8 if every group of ``config_groups`` rounds its inputs to as many, or
    16."""
    groups = _mapping(config.get("config_groups", _WITHIN))
    inputs = [_mapping(_mapping(group).get("input_activations")) for group in groups.values()]
    return 8 if inputs and all(each.get("num_bits") == 8 for each in inputs) else 16


def _mapping(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


@dataclass(frozen=True, kw_only=True)
class _Scheme:
    """Quantisation of one kind of layer; a ``group`` of 0 means one scale per row, of None one for
    all of a matrix."""

    bits: int
    symmetric: bool
    group: int | None

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        parts = {0: "rows", None: "one"}.get(self.group, f"groups of {self.group}")
        return f"{self.bits} bits {kind} in {parts}"

    def n_groups(self, k: int) -> int:
        """Scales of a row of ``k`` weights."""
        return k // self.group if self.group else 1


def _words(n: int, bits: int, *, padded: bool) -> int:
    """Words that ``n`` codes take, as one string of bits or as many whole codes as a word holds."""
    return -(-n // (32 // bits)) if padded else -(-n * bits // 32)


def _fitting(
    tensors: SafetensorsFolder, config: ConfigFile, name: str, k: int, asymmetric: bool
) -> tuple[list[_Scheme], bool]:
    """The schemes that the width of a packed matrix fits, and True if its words are padded.

    Codes of 3, 5 and 6 bits are a string of bits, or, from older programs, as many as a word holds.
    """
    width = tensors.shape(name)[-1:]
    fitting = {
        padded: [
            each
            for each in _schemes(config)
            if width == (_words(k, each.bits, padded=padded),) and each.symmetric is not asymmetric
        ]
        for padded in (False, True)
    }
    both = [each for each in fitting[True] if each in fitting[False] and 32 % each.bits]
    if both and k > 32 // both[0].bits:
        raise LutraError(
            f"{tensors.path}: {name} can be {k} codes of {both[0].bits} bits in either of two "
            "layouts: export the model with 4 bits, or with int-quantized weights"
        )
    if not fitting[False] and not fitting[True]:
        zero = f"{list(width)} words in a row and {'a' if asymmetric else 'no'} zero point"
        raise _unfitting(tensors, config, name, zero)
    padded = not fitting[False]
    return fitting[padded], padded


def _unfitting(tensors: SafetensorsFolder, config: ConfigFile, name: str, what: str) -> LutraError:
    said = ", ".join(str(each) for each in _schemes(config))
    return LutraError(
        f"{tensors.path}: {name} has {what}, which fits none of {said}: "
        "config.json and the tensors are of different models"
    )


def _of_bytes(
    tensors: SafetensorsFolder, name: str, bits: int, n: int, k: int
) -> NDArray[np.uint8]:
    """Codes ``[n, k]`` from 0 on, of bytes with a sign."""
    half = 1 << (bits - 1)
    codes = tensors.read(name, n, k).astype(np.int16) + half
    if codes.min(initial=0) < 0 or codes.max(initial=0) >= 2 * half:
        raise LutraError(
            f"{tensors.path}: {name} holds numbers of more than {bits} bits: copy the model again"
        )
    return codes.astype(np.uint8)


def _scale(
    tensors: SafetensorsFolder, name: str, schemes: list[_Scheme], n: int, k: int
) -> NDArray[np.float32]:
    """Scales ``[n, groups]``; one number is that of all."""
    shape = tensors.shape(name)
    whole = any(each.group is None for each in schemes)
    if whole and shape in ((), (1,)):
        return np.broadcast_to(read_scale(tensors, name, *shape).reshape(1, 1), (n, 1)).copy()
    groups = shape[-1] if shape else 0
    if not groups or k % groups or not any(each.n_groups(k) == groups for each in schemes):
        raise LutraError(
            f"{tensors.path}: {name} of shape {list(shape)} does not fit "
            f"{', '.join(str(each) for each in schemes)}: copy the model again"
        )
    return read_scale(tensors, name, n, groups)


def _schemes(config: ConfigFile) -> list[_Scheme]:
    """Settings of ``config_groups``; a layer's tensors show which of them it has."""
    advice = "export the model as pack-quantized"
    config.require("format", config.get("format", _WITHIN), *_FORMATS, advice=advice)
    transforms = config.get("transform_config", _WITHIN) or None
    config.require("transform_config", transforms, None, advice="use a model without transforms")
    sparsity = _mapping(config.get("sparsity_config", _WITHIN)).get("format")
    config.require("sparsity_config", sparsity, None, "dense", advice="use a model without it")
    groups = config.get("config_groups", _WITHIN)
    if not isinstance(groups, dict) or not groups:
        raise LutraError(f"{config.path}: config_groups is missing: copy the model again")
    schemes: list[_Scheme] = []
    for group in cast("dict[str, object]", groups).values():
        content = _mapping(group).get("weights")
        if not isinstance(content, dict):
            raise LutraError(f"{config.path}: config_groups has no weights: {advice}")
        own = _mapping(group).get("format")
        config.require("format", own, None, *_FORMATS[:2], advice=advice)
        schemes.append(_scheme(ConfigFile(config.path, cast("dict[str, object]", content)), advice))
    return schemes


def _scheme(file: ConfigFile, advice: str) -> _Scheme:
    """The ``weights`` of a group."""
    file.require("type", file.get("type"), "int", None, advice=advice)
    bits = file.whole("num_bits")
    file.require("num_bits", bits, *_BITS, advice="use a checkpoint with one of these")
    size = file.get("group_size")
    unsaid = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = file.get("strategy") or unsaid
    file.require("strategy", strategy, *_STRATEGIES, advice="use a checkpoint with these")
    sizes = {"channel": 0, "tensor": None}
    return _Scheme(
        bits=bits,
        symmetric=file.flag("symmetric", default=True),
        group=sizes[str(strategy)] if strategy in sizes else file.whole("group_size"),
    )

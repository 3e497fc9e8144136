"""The layout ``pack-quantized`` of compressed-tensors, as LLM Compressor writes it."""

from dataclasses import dataclass
from typing import cast

import numpy as np

from lutra.checkpoints.floating import read_dense
from lutra.checkpoints.weights import Grouped, Weight
from lutra.checkpoints.words32 import order_of_groups, read_scale, read_words, unpack_words
from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra_golden.errors import LutraError

__all__ = ["activation_bits", "read_compressed_tensors"]

_BITS = (2, 4, 8)
_WITHIN = "quantization_config"


def read_compressed_tensors(
    tensors: SafetensorsFolder, config: ConfigFile, name: str, n: int, k: int
) -> Weight:
    """A linear layer: codes along the depth in ``weight_packed [N, K * bits / 32]``.

    ``weight_scale`` is ``[N, K / group]``. Codes have an offset of half their range; zero points,
    if there are any, are packed along the rows with the same offset: ``weight_zero_point``
    ``[N * bits / 32, K / group]``. ``weight_g_idx`` is the group of each column. A layer that was
    left in floating point is read as it is.
    """
    packed = f"{name}.weight_packed"
    if packed not in tensors.names() and f"{name}.weight" in tensors.names():
        return read_dense(tensors, config, name, n, k)
    schemes = _schemes(config)
    asymmetric = f"{name}.weight_zero_point" in tensors.names()
    width = tensors.shape(packed)[-1:]
    fitting = [
        each
        for each in schemes
        if width == (-(-k * each.bits // 32),) and each.symmetric is not asymmetric
    ]
    if not fitting:
        said = ", ".join(str(each) for each in schemes)
        raise LutraError(
            f"{tensors.path}: {packed} has {list(width)} words in a row and "
            f"{'a' if asymmetric else 'no'} zero point, which fits none of {said}: "
            "config.json and the tensors are of different models"
        )
    bits = fitting[0].bits
    scale_name = f"{name}.weight_scale"
    groups = tensors.shape(scale_name)[-1:]
    if not groups or not groups[0] or k % groups[0] or not _grouped(fitting, k, groups[0]):
        raise LutraError(
            f"{tensors.path}: {scale_name} of shape {list(tensors.shape(scale_name))} does not fit "
            f"{', '.join(str(each) for each in fitting)}: copy the model again"
        )
    scale = read_scale(tensors, scale_name, n, groups[0])
    words = read_words(tensors, packed, n, -(-k * bits // 32))
    codes = unpack_words(np.ascontiguousarray(words.T), bits)[:k]
    zero = np.full((n, groups[0]), float(1 << (bits - 1)), np.float32)
    if asymmetric:
        stored = read_words(tensors, f"{name}.weight_zero_point", -(-n * bits // 32), groups[0])
        zero = unpack_words(stored, bits)[:n].astype(np.float32)
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
        order = order_of_groups(tensors, index, k, k // groups[0])
    columns = codes if order is None else codes[order]
    return Grouped(
        codes=np.ascontiguousarray(columns.T),
        scale=scale,
        zero=zero,
        bits=bits,
        group=k // groups[0],
        order=order,
    )


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
    """Quantisation of one kind of layer; ``group`` 0 means one scale per row."""

    bits: int
    symmetric: bool
    group: int

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"{self.bits} bits {kind} in {f'groups of {self.group}' if self.group else 'rows'}"


def _grouped(schemes: list[_Scheme], k: int, n_groups: int) -> bool:
    return any((k // each.group if each.group else 1) == n_groups for each in schemes)


def _schemes(config: ConfigFile) -> list[_Scheme]:
    """Settings of ``config_groups``; a layer's tensors show which of them it has."""
    advice = "export the model as pack-quantized"
    config.require("format", config.get("format", _WITHIN), "pack-quantized", advice=advice)
    transforms = config.get("transform_config", _WITHIN) or None
    config.require("transform_config", transforms, None, advice="use a model without transforms")
    groups = config.get("config_groups", _WITHIN)
    if not isinstance(groups, dict) or not groups:
        raise LutraError(f"{config.path}: config_groups is missing: copy the model again")
    schemes: list[_Scheme] = []
    for group in cast("dict[str, object]", groups).values():
        content = cast("dict[str, object]", group).get("weights") if isinstance(group, dict) else 0
        if not isinstance(content, dict):
            raise LutraError(f"{config.path}: config_groups has no weights: {advice}")
        file = ConfigFile(config.path, cast("dict[str, object]", content))
        file.require("type", file.get("type"), "int", None, advice=advice)
        bits = file.whole("num_bits")
        file.require("num_bits", bits, *_BITS, advice="use a checkpoint with one of these")
        strategy = file.get("strategy")
        file.require("strategy", strategy, "group", "channel", advice="use a checkpoint with these")
        schemes.append(
            _Scheme(
                bits=bits,
                symmetric=file.flag("symmetric", default=True),
                group=file.whole("group_size") if strategy == "group" else 0,
            )
        )
    return schemes

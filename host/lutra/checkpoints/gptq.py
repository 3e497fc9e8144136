"""GPTQ's layout of integer weights, versions 1 and 2, as AutoGPTQ and GPTQModel write it.

Source: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv
2210.17323); the layout is that of those programs.
"""

from typing import cast

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.floating import read_dense
from lutra.checkpoints.weights import Grouped, Weight
from lutra.checkpoints.words32 import (
    group_size,
    order_of_groups,
    read_bits,
    read_scale,
    read_words,
    unpack_words,
)
from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra_golden.errors import LutraError

__all__ = ["check_format", "read_gptq"]

_BITS = (2, 3, 4, 8)
_FLOAT_BITS = (16, 32)
_WITHIN = "quantization_config"


def read_gptq(tensors: SafetensorsFolder, config: ConfigFile, name: str, n: int, k: int) -> Weight:
    """A linear layer: codes along the depth in ``qweight [K * bits / 32, N]``.

    ``scales`` are ``[K / group, N]``, zero points in ``qzeros [K / group, N * bits / 32]``; version
    1 stores them less one. ``g_idx`` is the group of each column. A layer that was left in floating
    point is read as it is.
    """
    if f"{name}.qweight" not in tensors.names() and f"{name}.weight" in tensors.names():
        return read_dense(tensors, config, name, n, k)
    bits, group = _settings(tensors, config, name, k)
    for width in (n, k):
        if width * bits % 32:
            raise LutraError(
                f"{tensors.path}: {name} must have sizes that fill words of 32 bits, not {[n, k]}"
            )
    codes = unpack_words(read_words(tensors, f"{name}.qweight", k * bits // 32, n), bits)
    scale = read_scale(tensors, f"{name}.scales", k // group, n)
    stored = read_words(tensors, f"{name}.qzeros", k // group, n * bits // 32)
    zero = _zeros(tensors, name, stored, bits, less_one=_version(config) == "gptq")
    order = None
    if f"{name}.g_idx" in tensors.names():
        order = order_of_groups(tensors, f"{name}.g_idx", k, group)
    elif config.get("desc_act", _WITHIN):
        raise LutraError(
            f"{tensors.path} has no tensor {name}.g_idx, though desc_act is set: "
            "copy the model again"
        )
    columns = codes if order is None else codes[order]
    return Grouped(
        codes=np.ascontiguousarray(columns.T),
        scale=np.ascontiguousarray(scale.T),
        zero=zero,
        bits=bits,
        group=group,
        order=order,
    )


def check_format(config: ConfigFile) -> None:
    """LutraError for a layout that is neither version, or settings by layer that are none."""
    advice = "export the model as one of these"
    config.require("checkpoint_format", _version(config), "gptq", "gptq_v2", advice=advice)
    for settings in _exceptions(config):
        bits = settings.get("bits", _BITS[0])
        config.require("bits", bits, *_BITS, advice="use a checkpoint with one of these")


def _version(config: ConfigFile) -> object:
    named = config.get("checkpoint_format", _WITHIN) or config.get("format", _WITHIN)
    return named or "gptq"


def _exceptions(config: ConfigFile) -> list[dict[str, object]]:
    """Settings of layers that do not have those of all: GPTQModel's ``dynamic``, by patterns whose
    sign says if they leave a layer in floating point, and AutoRound's ``extra_config``."""
    found: list[dict[str, object]] = []
    for field in ("dynamic", "extra_config"):
        entries = config.get(field, _WITHIN)
        if entries is not None and not isinstance(entries, dict):
            raise LutraError(
                f"{config.path}: {field} must be settings by layer, not {entries!r}: "
                "copy the model again"
            )
        for pattern, settings in cast("dict[str, object]", entries or {}).items():
            if isinstance(settings, dict) and not pattern.startswith("-"):
                found.append(cast("dict[str, object]", settings))
    return [each for each in found if each.get("bits") not in _FLOAT_BITS]


def _settings(tensors: SafetensorsFolder, config: ConfigFile, name: str, k: int) -> tuple[int, int]:
    """Bits and group of a matrix: those of all, or others that layers have and that fit it."""
    rows, groups = tensors.shape(f"{name}.qweight")[:1], tensors.shape(f"{name}.scales")[:1]
    of_all = config.get("bits", _WITHIN), config.get("group_size", _WITHIN)
    for settings in ({}, *_exceptions(config)):
        bits = settings.get("bits", of_all[0])
        group = settings.get("group_size", of_all[1])
        group = k if group == -1 else group
        if isinstance(bits, int) and isinstance(group, int) and bits in _BITS and group > 0:
            if (rows, groups) == ((k * bits // 32,), (k // group,)) and not k % group:
                return bits, group
    return read_bits(config, _BITS), group_size(config, name, k)


def _zeros(
    tensors: SafetensorsFolder, name: str, words: NDArray[np.uint32], bits: int, *, less_one: bool
) -> NDArray[np.float32]:
    """Zero points ``[N, groups]``."""
    if not less_one:
        return unpack_words(np.ascontiguousarray(words.T), bits).astype(np.float32)
    if 32 % bits == 0:
        # One was taken from every field of a word at once, borrows included: so it is given back.
        ones = sum(1 << shift for shift in range(0, 32, bits))
        words = words + np.uint32(ones)
        return unpack_words(np.ascontiguousarray(words.T), bits).astype(np.float32)
    zero = unpack_words(np.ascontiguousarray(words.T), bits).astype(np.float32) + 1
    if zero.max(initial=0) > (1 << bits) - 1:
        raise LutraError(
            f"{tensors.path}: {name}.qzeros holds a zero point of {int(zero.max())}, which is "
            f"not a code of {bits} bits: export the model as gptq_v2"
        )
    return zero

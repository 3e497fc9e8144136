"""Checkpoints as Hugging Face stores them: ``config.json`` and safetensors."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.awq import read_awq
from lutra.checkpoints.compressed_tensors import (
    activation_bits,
    check_schemes,
    read_compressed_tensors,
)
from lutra.checkpoints.exemptions import check_exemptions, is_exempt
from lutra.checkpoints.floating import read_dense, take_finite
from lutra.checkpoints.gptq import check_format, read_gptq
from lutra.checkpoints.mlx import read_mlx
from lutra.checkpoints.weights import Dense, Ternary, Weight
from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra_golden.errors import LutraError

__all__ = ["LAYOUTS", "HuggingFaceCheckpoint", "Layout", "ternarize", "unpack_ternary"]

_PARTS = (
    *("weight", "weight_scale", "qweight", "qzeros", "scales", "biases", "g_idx"),
    *("weight_packed", "weight_zero_point", "weight_shape", "weight_g_idx"),
    *("input_scale", "input_zero_point"),
)
_FLOATS = ("BF16", "F16", "F32", "F64")
_CODES = ("qweight", "weight_packed", "weight_scale", "scales")
"""Parts that only quantised matrices have."""
# for programs that cache keys and values in eight bits with one scale for all
_CACHE_SCALES = (".k_scale", ".v_scale", ".k_proj.output_scale", ".v_proj.output_scale")
_WITHIN = "quantization_config"
_LARGE = "BitnetForCausalLM"  # ternary without saying so


class HuggingFaceCheckpoint:
    """A folder with ``config.json`` and safetensors, see
    :class:`~lutra.checkpoints.base.Checkpoint`."""

    def __init__(self, folder: Path) -> None:
        self.config = _read_config(folder)
        self._tensors = SafetensorsFolder(folder)
        self.path = self._tensors.path
        layout = _layout(self.config)
        layout.check(self.config)
        self._linear = layout.read
        self.activation_bits = layout.activation_bits(self.config)

    def names(self) -> Collection[str]:
        """Names of all matrices and vectors; the parts of a quantised matrix have one name."""
        found: dict[str, None] = {}
        for name in self._tensors.names():
            if name.endswith(_CACHE_SCALES):
                continue
            owner, _, part = name.rpartition(".")
            found[owner if part in _PARTS else name] = None
        return found.keys()

    def expect(self, name: str, *shape: int) -> None:
        """Refuse what is missing or, in floating point, has another shape."""
        held = self._tensors.names()
        parts = [each for part in _PARTS if (each := f"{name}.{part}") in held]
        parts = [name] if name in held else parts
        shapes = {each: self._tensors.shape(each) for each in parts}  # their files are there
        floats = [each for each in parts if self._tensors.dtype(each) in _FLOATS]
        if parts and (len(parts) > 1 or not floats or shapes[parts[0]] == shape):
            return
        # whoever reads it says what is wrong with it, if anything is
        if len(shape) == 1:
            self.vector(name, *shape)
        else:
            self.linear(name, *shape)

    def linear(self, name: str, n: int, k: int) -> Weight:
        """The matrix of a linear layer."""
        return self._linear(self._tensors, self.config, name, n, k)

    def matrix(self, name: str, n: int, k: int) -> Dense:
        """A matrix in floating point; a quantised one, such as a head's, is decoded."""
        names = self._tensors.names()
        if not any(f"{name}.{part}" in names for part in _CODES):
            return read_dense(self._tensors, self.config, name, n, k)
        weight = self.linear(name, n, k)
        return weight if isinstance(weight, Dense) else Dense(weight.dequantized())

    def vector(self, name: str, n: int) -> NDArray[np.float32]:
        """A norm's weights, or a bias."""
        full = name if name.endswith(".bias") else f"{name}.weight"
        return take_finite(self._tensors, full, n).astype(np.float32)


def unpack_ternary(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Unpack ``[N / 4, K]`` bytes to ``[N, K]`` in -1, 0, 1.

    Bits ``2 i`` and ``2 i + 1`` of packed row ``r`` are row ``i * N / 4 + r``, with one added.
    """
    fields = [((packed >> (2 * i)) & 3).astype(np.int8) - 1 for i in range(4)]
    return np.concatenate(fields)


def ternarize(values: NDArray[np.generic]) -> Ternary:
    """Make weights ternary by the mean of their magnitudes, one scale for the matrix.

    Source: "The Era of 1-bit LLMs" (arXiv 2402.17764), section 2.
    """
    w = values.astype(np.float32)
    scale = max(float(np.abs(w).mean(dtype=np.float64)), 1e-5)
    codes = np.clip(np.rint(w / np.float32(scale)), -1, 1).astype(np.int8)
    return Ternary(codes, scale)


def read_bitnet(
    tensors: SafetensorsFolder, config: ConfigFile, name: str, n: int, k: int
) -> Weight:
    """Ternary weights: packed with a scale, or made from the master weights in the file.

    The scale multiplies where ``linear_class`` is ``autobitlinear`` and divides elsewhere. Weights
    in floating point stay so if ``modules_to_not_convert`` names them, or if others are packed.
    """
    path, full = tensors.path, f"{name}.weight"
    if full in tensors.names() and tensors.shape(full) == (n, k):
        held = read_dense(tensors, config, name, n, k)
        online = config.get("quantization_mode", _WITHIN) == "online"
        others = not online and any(each.endswith(".weight_scale") for each in tensors.names())
        return held if others or is_exempt(config, name) else ternarize(held.values)
    if n % 4:
        raise LutraError(f"{path}: {full} must have a multiple of 4 rows to be packed, not {n}")
    packed = tensors.read(full, n // 4, k)
    if packed.dtype != np.uint8:
        raise LutraError(f"{path}: {full} must be packed uint8, not {packed.dtype}")
    codes = unpack_ternary(cast("NDArray[np.uint8]", packed))
    if codes.max(initial=0) > 1:
        raise LutraError(f"{path}: {full} holds codes other than 0, 1 and 2: copy the model again")
    scale_name = f"{name}.weight_scale"
    scale = float(take_finite(tensors, scale_name, 1).astype(np.float64)[0])
    if scale <= 0:
        raise LutraError(f"{path}: {scale_name} must be positive, not {scale}")
    multiplies = config.get("linear_class", _WITHIN) == "autobitlinear"
    return Ternary(codes, scale if multiplies else 1 / scale)


LinearReader = Callable[[SafetensorsFolder, ConfigFile, str, int, int], Weight]


def _nothing(_config: ConfigFile) -> None:
    pass


def _eight(_config: ConfigFile) -> int:
    return 8


def _sixteen(_config: ConfigFile) -> int:
    return 16


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Weights as one program stores them.

    ``read`` reads a linear layer. ``values`` are those that are read of fields of
    ``quantization_config`` that change what a model computes; ``more`` checks what else there is.
    ``activation_bits`` are the bits of activations that the weights were made for.
    """

    read: LinearReader
    values: Mapping[str, Sequence[object]] = field(default_factory=dict[str, Sequence[object]])
    more: Callable[[ConfigFile], object] = _nothing
    activation_bits: Callable[[ConfigFile], int] = _eight

    def check(self, config: ConfigFile) -> None:
        """LutraError for settings that would be left out, before anything is read."""
        for name, supported in self.values.items():
            said = config.get(name, _WITHIN)
            said = said.lower() if isinstance(said, str) else said
            if said is not None:
                config.require(name, said, *supported, advice="export the model as one of these")
        self.more(config)


def _auto_round_bits(config: ConfigFile) -> int:
    said = config.get("act_bits", _WITHIN)
    return 8 if isinstance(said, int) and said <= 8 else 16


LAYOUTS: Mapping[str, Layout] = {
    "none": Layout(read=read_dense),
    "bitnet": Layout(
        read=read_bitnet,
        values={
            "linear_class": ("autobitlinear", "bitlinear"),
            "quantization_mode": ("online", "offline"),
            "use_rms_norm": (False,),
        },
        more=check_exemptions,
    ),
    "gptq": Layout(
        read=read_gptq,
        values={
            "pack_dtype": ("int32",), "is_marlin_format": (False,), "rotation": ("",),
            "adapter": ({},),
        },
        more=check_format,
        activation_bits=_sixteen,
    ),
    "awq": Layout(
        read=read_awq,
        values={"version": ("gemm",), "zero_point": (True,)},
        activation_bits=_sixteen,
    ),
    "compressed-tensors": Layout(
        read=read_compressed_tensors, more=check_schemes, activation_bits=activation_bits
    ),
    "mlx": Layout(read=read_mlx, values={"mode": ("affine",)}, activation_bits=_sixteen),
}  # fmt: skip
"""By the ``quant_method`` of ``quantization_config``."""
_AUTO_ROUND = ("auto-round", "intel/auto-round")


def _layout(config: ConfigFile) -> Layout:
    """The layout that ``config.json`` says."""
    method = config.get("quant_method", _WITHIN)
    if method in _AUTO_ROUND:
        return _of_auto_round(config)
    kind = "bitnet" if method is None and config.architecture == _LARGE else "none"
    if method is not None:
        kind = str(method)
    elif config.get(_WITHIN):
        kind = "missing"
    named = [each for each in LAYOUTS if each != "none"]
    if kind not in LAYOUTS or method == "none":
        raise LutraError(
            f"{config.path}: quant_method {kind!r} is not supported; supported are "
            f"{', '.join(named)}, {_AUTO_ROUND[0]}: use a checkpoint in one of these, or in "
            "floating point"
        )
    return LAYOUTS[kind]


def _of_auto_round(config: ConfigFile) -> Layout:
    """AutoRound stores weights in the layout of GPTQ's or of AWQ's programs, and says which."""
    said = config.get("packing_format", _WITHIN) or config.get("backend", _WITHIN)
    parts = str(said).replace("auto_", "").split(":")
    kind = next((each for each in ("gptq", "awq") if each in parts), None)
    if kind is None:
        raise LutraError(
            f"{config.path}: packing_format {said!r} is not supported; supported are "
            "auto_round:auto_gptq and auto_round:auto_awq: export the model as one of these"
        )
    config.require(
        "data_type", config.get("data_type", _WITHIN), "int", None, advice="use integer weights"
    )
    return replace(LAYOUTS[kind], activation_bits=_auto_round_bits)


def _read_config(folder: Path) -> ConfigFile:
    """``config.json``, with what older programs wrote into a file beside it."""
    path = folder / "config.json"
    if not path.exists() and (folder / "adapter_config.json").exists():
        raise LutraError(
            f"{folder} holds an adapter, not a model: merge it into the model that its "
            "adapter_config.json names, and give the result"
        )
    config = ConfigFile.read(path)
    mlx = config.get("quantization")
    if isinstance(mlx, dict) and config.get("quant_method", _WITHIN) is None:
        # its programs write no method, and newer ones the same under both names
        said = {**cast("dict[str, object]", mlx), "quant_method": "mlx"}
        return ConfigFile(path, {**config.content, _WITHIN: said})
    if config.get(_WITHIN):
        return config
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (folder / name).is_file():
            content = dict(ConfigFile.read(folder / name).content)
            for old, new in (("w_bit", "bits"), ("q_group_size", "group_size")):
                if old in content:
                    content[new] = content.pop(old)
            said = {"quant_method": method, **content}
            return ConfigFile(path, {**config.content, _WITHIN: said})
    return config

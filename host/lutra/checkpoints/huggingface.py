"""Checkpoints as Hugging Face stores them: ``config.json`` and safetensors."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.awq import read_awq
from lutra.checkpoints.compressed_tensors import activation_bits, read_compressed_tensors
from lutra.checkpoints.floating import read_dense, take_finite
from lutra.checkpoints.gptq import read_gptq
from lutra.checkpoints.weights import Dense, Ternary, Weight
from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra_golden.errors import LutraError

__all__ = ["QUANTIZATIONS", "HuggingFaceCheckpoint", "ternarize", "unpack_ternary"]

_PARTS = (
    *("weight", "weight_scale", "qweight", "qzeros", "scales", "g_idx"),
    *("weight_packed", "weight_zero_point", "weight_shape", "weight_g_idx"),
)
_TERNARY = ("BitNetForCausalLM", "BitnetForCausalLM")


class HuggingFaceCheckpoint:
    """A folder with ``config.json`` and safetensors, see
    :class:`~lutra.checkpoints.base.Checkpoint`."""

    def __init__(self, folder: Path) -> None:
        self.config = ConfigFile.read(folder / "config.json")
        self._tensors = SafetensorsFolder(folder)
        self.path = self._tensors.path
        method = self.config.get("quant_method", "quantization_config")
        ternary = self.config.architecture in _TERNARY
        if method is None and self.config.get("quantization_config"):
            method = "missing"
        kind = ("bitnet" if ternary else "none") if method is None else str(method)
        if kind not in QUANTIZATIONS:
            raise LutraError(
                f"{self.config.path}: quant_method {kind!r} is not supported; supported are "
                f"{', '.join(each for each in QUANTIZATIONS if each != 'none')}: "
                "use a checkpoint in one of these, or in floating point"
            )
        self._linear = QUANTIZATIONS[kind]
        self.activation_bits = 16 if kind in ("gptq", "awq") else 8
        if kind == "compressed-tensors":
            self.activation_bits = activation_bits(self.config)

    def names(self) -> Collection[str]:
        """Names of all matrices and vectors; the parts of a quantised matrix have one name."""
        found: dict[str, None] = {}
        for name in self._tensors.names():
            owner, _, part = name.rpartition(".")
            found[owner if part in _PARTS else name] = None
        return found.keys()

    def linear(self, name: str, n: int, k: int) -> Weight:
        """The matrix of a linear layer."""
        return self._linear(self._tensors, self.config, name, n, k)

    def matrix(self, name: str, n: int, k: int) -> Dense:
        """A matrix in floating point."""
        return read_dense(self._tensors, self.config, name, n, k)

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
) -> Ternary:
    """Ternary weights: packed with a scale, or made from the master weights in the file.

    The scale multiplies where ``linear_class`` is ``autobitlinear`` and divides elsewhere.
    """
    path, full = tensors.path, f"{name}.weight"
    if full in tensors.names() and tensors.shape(full) == (n, k):
        return ternarize(read_dense(tensors, config, name, n, k).values)
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
    linear_class = config.get("linear_class", "quantization_config") or "bitlinear"
    advice = "copy the model again"
    config.require("linear_class", linear_class, "autobitlinear", "bitlinear", advice=advice)
    return Ternary(codes, scale if linear_class == "autobitlinear" else 1 / scale)


LinearReader = Callable[[SafetensorsFolder, ConfigFile, str, int, int], Weight]

QUANTIZATIONS: Mapping[str, LinearReader] = {
    "none": read_dense,
    "bitnet": read_bitnet,
    "gptq": read_gptq,
    "awq": read_awq,
    "compressed-tensors": read_compressed_tensors,
}
"""Readers of a linear layer, by the ``quant_method`` of ``quantization_config``."""

"""AWQ's layout of integer weights, version ``gemm``, as AutoAWQ writes it.

Source: "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv
2306.00978); the layout is that of the program.
"""

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.floating import read_dense
from lutra.checkpoints.weights import Grouped, Weight
from lutra.checkpoints.words32 import group_size, read_bits, read_scale, read_words
from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra_golden.errors import LutraError

__all__ = ["read_awq"]

_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column, out of eight, of each four bits of a word, starting at the least significant."""


def read_awq(tensors: SafetensorsFolder, config: ConfigFile, name: str, n: int, k: int) -> Weight:
    """A linear layer: codes along the rows in ``qweight [K, N / 8]``, eight in a word.

    ``scales`` are ``[K / group, N]``, zero points in ``qzeros [K / group, N / 8]``. A layer that
    was left in floating point is read as it is.
    """
    if f"{name}.qweight" not in tensors.names() and f"{name}.weight" in tensors.names():
        return read_dense(tensors, config, name, n, k)
    bits, group = read_bits(config, (4,)), group_size(config, name, k)
    if n % 8:
        raise LutraError(f"{tensors.path}: {name} must have a multiple of 8 rows, not {n}")
    codes = _unpack(read_words(tensors, f"{name}.qweight", k, n // 8))
    zero = _unpack(read_words(tensors, f"{name}.qzeros", k // group, n // 8))
    scale = read_scale(tensors, f"{name}.scales", k // group, n)
    return Grouped(
        codes=np.ascontiguousarray(codes.T),
        scale=np.ascontiguousarray(scale.T),
        zero=np.ascontiguousarray(zero.T).astype(np.float32),
        bits=bits,
        group=group,
    )


def _unpack(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """``[K, N / 8]`` words to ``[K, N]`` codes."""
    codes = np.empty((*words.shape, 8), np.uint8)
    for i, column in enumerate(_COLUMNS):
        codes[..., column] = words >> np.uint32(4 * i) & np.uint32(15)
    return codes.reshape(len(words), -1)

"""Parts shared by layouts of quantised checkpoints: codes in 32-bit words, groups, their order."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.floating import take_finite
from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra_golden.errors import LutraError

__all__ = [
    "group_size",
    "order_of_groups",
    "read_bits",
    "read_scale",
    "read_words",
    "unpack_words",
]

_WITHIN = "quantization_config"


def unpack_words(
    words: NDArray[np.uint32], bits: int, *, padded: bool = False
) -> NDArray[np.uint8]:
    """Unpack ``[W, N]`` words to codes ``[32 W / bits, N]``, or some more that are of no use.

    A column of words is one string of bits, the least significant first: code ``i`` is its bits
    ``bits * i`` on, across the end of a word where 32 is no multiple of ``bits``. If it is
    ``padded``, each word has as many whole codes as it holds.
    """
    # words after which codes and words begin together
    period = 1 if padded else bits // math.gcd(bits, 32)
    n_codes = 32 * period // bits
    if left := -len(words) % period:
        words = np.concatenate([words, np.zeros((left, words.shape[1]), np.uint32)])
    lines = words.reshape(len(words) // period, period, words.shape[1])
    codes = np.empty((len(lines), n_codes, words.shape[1]), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for i in range(n_codes):
        word, shift = divmod(bits * i, 32)
        code = lines[:, word] >> np.uint32(shift)
        if shift + bits > 32:
            code = code | lines[:, word + 1] << np.uint32(32 - shift)
        codes[:, i] = code & mask
    return codes.reshape(-1, words.shape[1])


def read_words(tensors: SafetensorsFolder, name: str, *shape: int) -> NDArray[np.uint32]:
    """Words of packed codes."""
    words = tensors.read(name, *shape)
    if words.dtype.kind not in "iu" or words.dtype.itemsize != 4:
        raise LutraError(
            f"{tensors.path}: {name} must be packed int32, not {words.dtype}: copy the model again"
        )
    return words.view(np.uint32)


def read_scale(tensors: SafetensorsFolder, name: str, *shape: int) -> NDArray[np.float32]:
    """Scales of groups."""
    return take_finite(tensors, name, *shape).astype(np.float32)


def read_bits(config: ConfigFile, supported: Sequence[int]) -> int:
    """Bits of a code, as ``quantization_config`` says."""
    bits = config.whole("bits", _WITHIN)
    config.require("bits", bits, *supported, advice="use a checkpoint with one of these")
    return bits


def group_size(config: ConfigFile, name: str, k: int) -> int:
    """Columns of a group, as ``quantization_config`` says; -1 is the whole depth."""
    said = config.get("group_size", _WITHIN)
    group = k if said == -1 else config.whole("group_size", _WITHIN)
    if k % group:
        raise LutraError(
            f"{config.path}: group_size must divide the depth of {name}, {k}, not be {group}: "
            "use a checkpoint with other groups"
        )
    return group


def order_of_groups(
    tensors: SafetensorsFolder, name: str, k: int, group: int
) -> NDArray[np.int64] | None:
    """The columns in the order of their groups, by the tensor ``name`` that has the group of each.

    None if they are in that order already.
    """
    index = tensors.read(name, k)
    if index.dtype.kind not in "iu":
        raise LutraError(
            f"{tensors.path}: {name} must be whole numbers, not {index.dtype}: copy the model again"
        )
    order = np.argsort(index, kind="stable").astype(np.int64)
    if not np.array_equal(index[order], np.arange(k) // group):
        raise LutraError(
            f"{tensors.path}: {name} must name each of {k // group} groups {group} times: "
            "use a checkpoint with groups of one size"
        )
    return None if np.array_equal(order, np.arange(k)) else order

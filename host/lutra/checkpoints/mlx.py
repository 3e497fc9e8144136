"""MLX's layout of integer weights, as ``mlx_lm.convert`` writes it.

Source: ``mlx.core.quantize`` of https://github.com/ml-explore/mlx, mode ``affine``.
"""

import numpy as np

from lutra.arguments import either
from lutra.checkpoints.floating import read_dense
from lutra.checkpoints.weights import Grouped, Weight
from lutra.checkpoints.words32 import read_scale, read_words, unpack_words
from lutra.formats.config_file import ConfigFile
from lutra.formats.safetensors import SafetensorsFolder
from lutra_golden.errors import LutraError

__all__ = ["read_mlx"]

_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (16, 32, 64, 128)


def read_mlx(tensors: SafetensorsFolder, config: ConfigFile, name: str, n: int, k: int) -> Weight:
    """A linear layer: codes along the depth in ``weight [N, K * bits / 32]``, uint32.

    A weight is ``scale * code + bias``, with both ``[N, K / group]``, in ``scales`` and ``biases``.
    Their shapes say how many bits and groups a layer has. A layer that was left in floating point
    is read as it is.
    """
    full, scales = f"{name}.weight", f"{name}.scales"
    if scales not in tensors.names():
        return read_dense(tensors, config, name, n, k)
    words, groups = tensors.shape(full)[-1:], tensors.shape(scales)[-1:]
    bits = next((each for each in _BITS if words == (k * each // 32,) and not k * each % 32), 0)
    group = next((each for each in _GROUPS if groups == (k // each,) and not k % each), 0)
    if not bits or not group:
        raise LutraError(
            f"{tensors.path}: {full} {list(tensors.shape(full))} with {scales} "
            f"{list(tensors.shape(scales))} must be {k} codes of {either(_BITS)} bits in groups of "
            f"{either(_GROUPS)}: convert the model again"
        )
    codes = unpack_words(np.ascontiguousarray(read_words(tensors, full, n, words[0]).T), bits)
    shape = (n, groups[0])
    return Grouped(
        codes=np.ascontiguousarray(codes.T),
        scale=read_scale(tensors, scales, *shape),
        zero=np.zeros(shape, np.float32),
        bits=bits,
        group=group,
        offset=read_scale(tensors, f"{name}.biases", *shape),
    )

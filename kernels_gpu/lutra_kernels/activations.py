"""Activations of a pass that a kernel quantises, with the scale that each token gets."""

from dataclasses import dataclass

import numpy as np

from lutra_kernels.arrays import Array, empty
from lutra_kernels.layout import Activations, padded_depth

__all__ = ["Quantized"]


@dataclass(frozen=True)
class Quantized:
    """``a`` as matrix products take it, and ``scale`` int32 ``[m]``, packed words."""

    a: Activations
    scale: Array

    @classmethod
    def new(cls, m: int, k: int, a_bits: int, group: int) -> "Quantized":
        """Memory for ``m`` tokens that are not known yet."""
        rows = empty((m * a_bits // 8, padded_depth(k)), np.int8)
        sums = empty((m, k // group if group else 1), np.int32)
        a = Activations(rows=rows, sums=sums, m=m, k=k, group=group, a_bits=a_bits)
        return cls(a, empty((m,), np.int32))

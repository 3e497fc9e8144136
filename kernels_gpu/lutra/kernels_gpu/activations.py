"""Activations of a tile on the device, as :mod:`lutra.kernels_gpu.layout` says."""

from dataclasses import dataclass

import numpy as np

from lutra.kernels_gpu.arrays import Array, empty
from lutra.kernels_gpu.layout import padded_depth

__all__ = ["Activations"]


@dataclass(frozen=True)
class Activations:
    """Quantised activations of up to ``m`` tokens, their sums and scales.

    ``q`` int8 ``[m, K]`` (``[2 m, K]`` of bytes of 16 bits), ``sums`` int32 ``[m, n / group]``
    (``[m, 1]`` if ``group`` is 0), ``scale`` int32 ``[m]`` packed words.
    """

    q: Array
    sums: Array
    scale: Array
    m: int
    n: int
    a_bits: int
    group: int

    @classmethod
    def new(cls, m: int, n: int, a_bits: int, group: int) -> "Activations":
        """Memory for activations that are not known yet."""
        if group and n % group:
            raise ValueError(f"depth must be a multiple of group ({group}), not {n}")
        planes = 1 if a_bits == 8 else 2
        return cls(
            q=empty((planes * m, padded_depth(n)), np.int8),
            sums=empty((m, n // group if group else 1), np.int32),
            scale=empty((m,), np.int32),
            m=m,
            n=n,
            a_bits=a_bits,
            group=group,
        )

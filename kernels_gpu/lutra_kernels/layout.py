"""Activations as the kernels read them, and what a token brings along: the contract between the
quantisation kernels, which write it, and the matmul kernels.

Values lie in their natural order along the depth, one row per token, filled with zeros up to a
multiple of 128. B128's fields are runs of 16 or 32 weights that follow each other, so a word of
four packed bytes meets, in each of its fields, four activations that follow each other too: no
other order is needed, for any width of weights, for the head, or for plain int8 products.

Activations of 16 bits are two bytes, each signed: ``a = 256 * high + low + 128``. Byte rows are
``[2 * M, K]``: the low bytes of all tokens, then the high bytes. The constant 128 meets the weights
only through their sums over a row, which the upload of a matrix computes once.

With them go ``[M, K / group]`` int32 sums of each group's activations (of the whole row for ternary
weights), which the weights' zero points multiply.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra_kernels.arrays import Array, check, upload

__all__ = [
    "BLOCK",
    "LOW_OFFSET",
    "Activations",
    "cdiv",
    "group_sums",
    "padded_depth",
    "to_bytes",
    "upload_activations",
]

BLOCK = 128
"""Depths are filled up to a multiple of this."""
LOW_OFFSET = 128
"""Offset that makes a low byte signed."""


def cdiv(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def padded_depth(k: int) -> int:
    """Bytes of a row of ``k`` activations."""
    return cdiv(k, BLOCK) * BLOCK


def to_bytes(a: NDArray[np.integer], a_bits: int = 8) -> NDArray[np.int8]:
    """Byte rows of activations ``[M, K]``: ``[M, padded]``, or ``[2 * M, padded]`` of 16 bits.

    The padding of 16-bit activations is 0 in both bytes, so it is worth 128 and not zero: weights'
    sums do not count it, and codes there are 0.
    """
    if a_bits not in (8, 16):
        raise ValueError(f"a_bits must be 8 or 16, not {a_bits}")
    m, k = a.shape
    q_max = (1 << (a_bits - 1)) - 1
    if a.size and max(int(a.max()), -int(a.min())) > q_max:
        raise ValueError(f"activations must be within +-{q_max}")
    planes = 1 if a_bits == 8 else 2
    rows = np.zeros((planes, m, padded_depth(k)), np.int8)
    if a_bits == 8:
        rows[0, :, :k] = a
    else:
        rest = a.astype(np.int32) - LOW_OFFSET
        low = ((rest + 128) & 255) - 128
        rows[0, :, :k] = low
        rows[1, :, :k] = (rest - low) >> 8
    return rows.reshape(planes * m, -1)


def group_sums(a: NDArray[np.integer], group: int) -> NDArray[np.int32]:
    """``[M, K / group]`` sums of each group's activations; a ``group`` of 0 is the whole row."""
    m, k = a.shape
    group = group or k
    if k % group:
        raise ValueError(f"depth must be a multiple of group ({group}), not {k}")
    return a.reshape(m, k // group, group).sum(axis=2, dtype=np.int64).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Activations of ``m`` tokens and depth ``k`` on a device.

    ``rows`` int8 ``[a_bytes * m, padded_depth(k)]`` and ``sums`` int32 ``[m, k / group]``, as this
    module says; ``group`` 0 is the whole row.
    """

    rows: Array
    sums: Array
    m: int
    k: int
    group: int
    a_bits: int = 8

    def __post_init__(self) -> None:
        if self.a_bits not in (8, 16):
            raise ValueError(f"a_bits must be 8 or 16, not {self.a_bits}")
        if self.m < 1 or self.k < 1:
            raise ValueError(f"m and k must be positive, not {self.m} and {self.k}")
        if self.group and self.k % self.group:
            raise ValueError(f"depth must be a multiple of group ({self.group}), not {self.k}")
        check("rows", self.rows, [self.a_bytes * self.m, padded_depth(self.k)], np.int8)
        check("sums", self.sums, [self.m, self.k // (self.group or self.k)], np.int32)

    @property
    def a_bytes(self) -> int:
        """Byte rows of a token."""
        return self.a_bits // 8


def upload_activations(a: NDArray[np.integer], group: int, a_bits: int = 8) -> Activations:
    """Activations ``[M, K]`` for weights with this group; 0 for ternary ones."""
    m, k = a.shape
    rows, sums = upload(to_bytes(a, a_bits)), upload(group_sums(a, group))
    return Activations(rows=rows, sums=sums, m=m, k=k, group=group, a_bits=a_bits)

"""A packed matrix on a device: codes in B128, and the scales and shift of its results."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutra_kernels.arrays import Array, rows_of, upload
from lutra_kernels.layout import BLOCK, LOW_OFFSET

__all__ = ["ALIGNMENT", "Q_MAX", "SHIFT_MAX", "Matrix", "upload_matrix"]

SHIFT_MAX = 24
"""Largest final shift."""
Q_MAX = {8: 127, 16: 32767}
"""Largest magnitude of an activation by its bits."""
ALIGNMENT = 16
"""Groups are multiples of it, as chunks of packed bytes want."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """``[n, k]`` weights of ``bits`` bits on a device.

    ``codes`` uint8 ``[n, row bytes]``. Grouped: ``scale`` (uint8 or uint16) and ``zero`` (uint8 or
    uint16, half steps) ``[n, k / group]``, and int32 ``minimum`` of the same shape where groups
    have offsets. Ternary: ``group`` 0, codes 0, 1, 2 for -1, 0, 1. With 16-bit activations
    ``offset`` int64 ``[n]``: what their low bytes lack, 256 times each row's sum of scales times
    codes. ``peak`` is the largest sum of a row's doubled weights, all taken positive.
    """

    codes: Array
    n: int
    k: int
    bits: int
    shift: int
    peak: int
    group: int = 0
    scale: Array | None = None
    zero: Array | None = None
    minimum: Array | None = None
    offset: Array | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be in 1..8, not {self.bits}")
        if self.group and (self.group % ALIGNMENT or self.k % self.group):
            raise ValueError(
                f"group must be a multiple of {ALIGNMENT} that divides the depth ({self.k}), "
                f"not {self.group}"
            )
        if not self.group and self.bits != 2:
            raise ValueError(f"ternary codes must have 2 bits, not {self.bits}")
        if bool(self.group) != (self.scale is not None) or bool(self.group) != (
            self.zero is not None
        ):
            raise ValueError("grouped weights must have scale and zero, ternary ones neither")
        if self.minimum is not None and not self.group:
            raise ValueError("only grouped weights have offsets of groups")
        if not 0 <= self.shift <= SHIFT_MAX or not (self.group or self.shift):
            raise ValueError(
                f"shift must be in {0 if self.group else 1}..{SHIFT_MAX}, not {self.shift}"
            )

    @property
    def n_blocks(self) -> int:
        """Blocks of 128 weights of a row."""
        return -(-self.k // BLOCK)

    @property
    def n_groups(self) -> int:
        """Groups of a row; one of a ternary row, which has one zero point."""
        return self.k // self.group if self.group else 1

    def rows(self, rows: range) -> "Matrix":
        """Some rows, one at least, in the same memory."""

        def part(array: Array | None) -> Array | None:
            return None if array is None else rows_of(array, rows.start, rows.stop)

        return replace(
            self,
            codes=rows_of(self.codes, rows.start, rows.stop),
            n=len(rows),
            scale=part(self.scale),
            zero=part(self.zero),
            minimum=part(self.minimum),
            offset=part(self.offset),
        )

    def is_wide(self, a_bits: int) -> bool:
        """True if a sum before the shift may need more than 32 bits."""
        return self.peak * Q_MAX[a_bits] >= 1 << 31


def _narrow(values: NDArray[np.integer]) -> NDArray[np.integer]:
    """The fewest bytes, one or two, that hold ``values``."""
    return values.astype(np.uint8 if int(values.max(initial=0)) < 256 else np.uint16)


def upload_matrix(
    codes: NDArray[np.uint8],
    *,
    k: int,
    bits: int,
    shift: int,
    group: int = 0,
    scale: NDArray[np.integer] | None = None,
    zero: NDArray[np.integer] | None = None,
    minimum: NDArray[np.int32] | None = None,
    peak: int | None = None,
    code_sums: NDArray[np.integer] | None = None,
) -> Matrix:
    """A matrix of B128 ``codes`` ``[N, row bytes]`` on the device.

    ``minimum`` are the offsets of groups, in doubled weights. ``code_sums``, needed for 16-bit
    activations only, are each row's sums of codes by group, ``[N, k / group]`` (``[N, 1]`` for
    ternary weights). Without a ``peak`` the largest possible one is taken, which costs 64-bit sums
    where 32 would do.
    """
    n = len(codes)
    blocks = -(-k // BLOCK)
    if codes.dtype != np.uint8:
        raise TypeError(f"codes must be uint8, not {codes.dtype}")
    if codes.shape != (n, blocks * bits * BLOCK // 8):
        raise ValueError(
            f"codes must be {[n, blocks * bits * BLOCK // 8]}, not {list(codes.shape)}"
        )
    if group and scale is not None and zero is not None:
        sides = ("scale", scale), ("zero", zero), ("minimum", minimum)
        for name, values in sides:
            if values is not None and values.shape != (n, k // group):
                raise ValueError(f"{name} must be {[n, k // group]}, not {list(values.shape)}")
        largest = int((scale.astype(np.int64).sum(axis=1)).max(initial=0))
        possible = largest * group * 2 * ((1 << bits) - 1)
        if minimum is not None:
            sums = np.abs(minimum.astype(np.int64)).sum(axis=1)
            possible += group * int(sums.max(initial=0))
    else:
        possible = 2 * k
    offset = None
    if code_sums is not None:
        weighted = code_sums.astype(np.int64) * (1 if scale is None else scale.astype(np.int64))
        offset = upload(2 * LOW_OFFSET * weighted.sum(axis=1))
    return Matrix(
        codes=upload(codes),
        n=n,
        k=k,
        bits=bits,
        shift=shift,
        peak=possible if peak is None else peak,
        group=group,
        scale=None if scale is None else upload(_narrow(scale)),
        zero=None if zero is None else upload(_narrow(zero)),
        minimum=None if minimum is None else upload(minimum.astype(np.int32)),
        offset=offset,
    )

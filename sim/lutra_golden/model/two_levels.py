"""Scales and offsets of groups in two levels: factors of many weights, small multiples of each."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["MULTIPLE_BITS", "SUPER", "TwoLevels"]

SUPER = 256
"""Weights of a row that have a factor in common."""
MULTIPLE_BITS = (4, 6, 8)
"""Bits that the multiples of groups are stored in; eight multiples take as many bytes."""
_FACTOR_BYTES = 2
_LANES = 8


@dataclass(frozen=True, kw_only=True)
class TwoLevels:
    """Scales of groups, and offsets if there are ``offsets``, as products of two integers.

    Each :data:`SUPER` weights of a row have a factor, and each of their ``groups`` has a multiple,
    unsigned, up to ``2**shift``. A scale is their product, rounded half up:

        scale = (factor * multiple + half) >> shift        half = (1 << shift) >> 1

    with a factor of 16 bits. Offsets are the same of a signed factor and multiples of their own,
    and each stands for ``offset << offset_shift``.

    ``records`` ``[N, K / SUPER, record_bytes]``, uint8, hold for each super-group the multiples of
    the scales, ``bits`` each, as a string of bits from the lowest on, those of the offsets, the
    factor of the scales and that of the offsets; little-endian.
    """

    records: NDArray[np.uint8]
    groups: int
    bits: int
    shift: int
    offsets: bool = False
    offset_shift: int = 0

    def __post_init__(self) -> None:
        if self.bits not in MULTIPLE_BITS:
            raise ValueError(f"bits of multiples must be one of {MULTIPLE_BITS}, not {self.bits}")
        if self.groups % _LANES or not 0 < self.groups <= SUPER:
            raise ValueError(
                f"groups of {SUPER} weights must be a multiple of {_LANES} up to {SUPER}, "
                f"not {self.groups}"
            )
        if not 0 <= self.shift <= self.bits:
            raise ValueError(f"shift of multiples must be in 0..{self.bits}, not {self.shift}")
        n_bytes = self.record_bytes(self.groups, self.bits, offsets=self.offsets)
        if self.records.ndim != 3 or self.records.shape[2] != n_bytes:
            raise ValueError(f"records must be [N, S, {n_bytes}], not {list(self.records.shape)}")
        for side in range(1 + self.offsets if self.shift < self.bits else 0):
            if (most := int(self._multiples(side).max(initial=0))) > 1 << self.shift:
                raise ValueError(f"multiples must be in 0..{1 << self.shift}, not up to {most}")

    @staticmethod
    def record_bytes(groups: int, bits: int, *, offsets: bool) -> int:
        """Bytes of a super-group."""
        return (1 + offsets) * (groups // _LANES * bits + _FACTOR_BYTES)

    @classmethod
    def of(
        cls,
        factor: NDArray[np.uint16],
        multiple: NDArray[np.uint8],
        shift: int,
        offset: tuple[NDArray[np.int16], NDArray[np.uint8]] | None = None,
        offset_shift: int = 0,
    ) -> "TwoLevels":
        """Factors ``[N, S]`` and multiples ``[N, G]`` of scales and, if there are any, offsets."""
        sides = [(factor.view(np.uint16), multiple)]
        if offset is not None:
            sides.append((offset[0].view(np.uint16), offset[1]))
        (n, n_super), groups = factor.shape, multiple.shape[1] // factor.shape[1]
        most = max(int(each.max(initial=0)) for _, each in sides)
        bits = next(bits for bits in MULTIPLE_BITS if most < 1 << bits)
        parts = [_string(each.reshape(n, n_super, groups), bits) for _, each in sides]
        parts += [each.astype("<u2")[..., None].view(np.uint8) for each, _ in sides]
        return cls(
            records=np.concatenate(parts, axis=2),
            groups=groups,
            bits=bits,
            shift=shift,
            offsets=offset is not None,
            offset_shift=offset_shift,
        )

    @property
    def scale(self) -> NDArray[np.uint16]:
        """Scales of all groups, ``[N, G]``."""
        return self._products(0, np.int64).astype(np.uint16)

    @property
    def offset(self) -> NDArray[np.int16] | None:
        """Offsets of all groups, ``[N, G]``, None if there are none."""
        return self._products(1, np.int16).astype(np.int16) if self.offsets else None

    def rows(self, select: slice | NDArray[np.int64]) -> "TwoLevels":
        """Those of some of the rows."""
        return replace(self, records=self.records[select])

    def _products(self, side: int, dtype: type[np.signedinteger]) -> NDArray[np.int64]:
        end = self.records.shape[2] - _FACTOR_BYTES * (self.offsets - side)
        raw = np.ascontiguousarray(self.records[..., end - _FACTOR_BYTES : end]).view("<u2")
        factor = raw.astype(np.uint16).astype(dtype).astype(np.int64)  # [N, S, 1]
        half = (1 << self.shift) >> 1
        return ((factor * self._multiples(side) + half) >> self.shift).reshape(len(raw), -1)

    def _multiples(self, side: int) -> NDArray[np.uint8]:
        """Multiples of scales or, as side 1, of offsets, ``[N, S, groups]``."""
        (n, n_super, _), size = self.records.shape, self.groups // _LANES * self.bits
        packed = self.records[..., side * size : (side + 1) * size]
        words = np.zeros((n, n_super, self.groups // _LANES, _LANES), np.uint8)
        words[..., : self.bits] = packed.reshape(*words.shape[:3], self.bits)
        at = np.arange(_LANES, dtype=np.uint64) * np.uint64(self.bits)
        fields = words.view("<u8") >> at & np.uint64((1 << self.bits) - 1)
        return fields.astype(np.uint8).reshape(n, n_super, self.groups)


def _string(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Numbers ``[N, S, groups]`` as strings of bits, ``[N, S, groups * bits / 8]``."""
    n, n_super, _ = values.shape
    eights = values.reshape(n, n_super, -1, _LANES)
    words = np.zeros(eights.shape[:3], "<u8")
    for i in range(_LANES):
        words |= eights[..., i].astype("<u8") << np.uint64(bits * i)
    return words[..., None].view(np.uint8)[..., :bits].reshape(n, n_super, -1)

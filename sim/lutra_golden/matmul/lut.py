"""The LUT tensor core: bit-serial table lookup with symmetric tables of four activations.

Source: LUT Tensor Core, ISCA'25 (arXiv 2408.06003), sections 3.1 (weight reinterpretation, table
symmetrisation) and 3.2 (bit-serial lookup, elongated tiles).
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int
from lutra_golden.matmul.engine import adder_tree_latency
from lutra_golden.matmul.grouped import GroupedParams

__all__ = [
    "ENTRIES",
    "GROUP",
    "LutParams",
    "Tables",
    "decode_bits",
    "encode_bits",
    "lut_table",
]

GROUP = 4
# Entry i is the sum of four activations with these signs: the last is always plus, bit j of i says
# whether activation j is added; the other half of the 16 combinations are their negatives.
ENTRIES: NDArray[np.int64] = np.array(
    [[2 * (i >> j & 1) - 1 for j in range(GROUP - 1)] + [1] for i in range(1 << (GROUP - 1))],
    dtype=np.int64,
)


def encode_bits(bits: Int) -> Int:
    """Codes of bits ``[..., 4]``, which mean -1 and +1: index in 2:0, negate in 3.

    Where the last bit says -1 the others are complemented here, offline, so that the hardware only
    selects and negates.
    """
    negate = 1 - bits[..., GROUP - 1]
    index = (bits[..., : GROUP - 1] ^ negate[..., None]) @ (1 << np.arange(GROUP - 1))
    return index | negate << (GROUP - 1)


def decode_bits(codes: Int) -> Int:
    """Inverse of :func:`encode_bits`: ``[..., 4]``."""
    negate = codes >> (GROUP - 1)
    bits = (codes[..., None] >> np.arange(GROUP - 1)) & 1
    return np.concatenate([bits ^ negate[..., None], 1 - negate[..., None]], axis=-1)


def lut_table(a: Int) -> Int:
    """The eight entries ``[..., 8]`` of the table of four activations ``[..., 4]``."""
    return a @ ENTRIES.T


class Tables(IntEnum):
    """Material of the tables; the values and the order of words are the same."""

    MEMORY = 1
    """Distributed memories, written entry by entry: for FPGAs."""
    LOGIC = 2
    """Adders that compute the entries in every step: for standard cells."""


@dataclass(frozen=True, kw_only=True)
class LutParams(GroupedParams):
    """Shape of the LUT tensor core; one bit of each weight per step.

    A code ``q`` of W bits is looked up as ``q' = 2 q - (2**W - 1)``, whose bits mean -1 and +1, and
    the zero point ``z`` (in half steps) becomes ``z' = z - (2**W - 1)``: the words hold ``z'``.
    ``tables`` says what the hardware's tables are made of.
    """

    kind = "lut"
    symmetric = True

    tables: Tables = Tables.MEMORY

    def __post_init__(self) -> None:
        if self.w_width != 1:
            raise ValueError(f"w_width of the lut engine must be 1, not {self.w_width}")
        super().__post_init__()
        if self.tables not in tuple(Tables):
            raise ValueError(f"tables must be 1 (memory) or 2 (logic), not {self.tables}")
        if self.step_depth % GROUP:
            raise ValueError(
                f"step_depth must be a multiple of {GROUP} (activations of a table), not "
                f"{self.step_depth}"
            )

    @property
    def n_tables(self) -> int:
        """Tables that a row looks up in one step."""
        return self.step_depth // GROUP

    @property
    def entry_width(self) -> int:
        """Width of a table entry: the sum of four activations."""
        return self.a_width + 2

    @property
    def prepare_cycles(self) -> int:
        return self.steps * len(ENTRIES) + 2 if self.tables == Tables.MEMORY else 1

    @property
    def datapath_latency(self) -> int:
        return adder_tree_latency(self.n_tables)

    @property
    def field_width(self) -> int:
        return GROUP

    def fields(self, digits: Int) -> Int:
        return encode_bits(digits.reshape(*digits.shape[:-1], -1, GROUP))

    def digits(self, fields: Int) -> Int:
        return decode_bits(fields).reshape(*fields.shape[:-1], -1)

    def stored_zero(self, zero: Int, planes: int) -> Int:
        return zero - ((1 << planes) - 1)

    def step_sums(self, a: Int, fields: Int) -> Int:
        tables = lut_table(a.reshape(len(a), self.n_tables, GROUP))
        entry = tables[:, np.arange(self.n_tables), fields & 7]  # [M, n, n_tables]
        return np.where(fields >> 3, -entry, entry).sum(axis=-1)

"""Mirrored tables of signed sums: what an entry holds, the codes that select one, lookups.

A code is an entry index in bits 3:0, and in bit 4 whether the entry is negated. In a weight word
bit 4 of table t > 0 is relative: it says whether the sign differs from that of table
``t & (t - 1)``, with which the adder tree joins it. An adder then has its operation from one bit.

Source: TeLLMe, arXiv 2510.15926, section on table-lookup matmul (groups of three activations, a
table of their signed sums); mirrored here, so that 13 sums and a sign stand for all 27.
"""

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int

__all__ = [
    "ENTRIES",
    "GROUP",
    "absolute_signs",
    "build_table",
    "decode_codes",
    "encode_trits",
    "relative_signs",
    "sum_lookups",
]

GROUP = 3
# Entry i of a table is the sum of the three activations with these signs; the first non-zero
# sign is always plus, the other half of the 27 combinations is reached by the code's sign bit.
ENTRIES: NDArray[np.int64] = np.array(
    [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
        (1, -1, 0),
        (1, 0, 1),
        (1, 0, -1),
        (0, 1, 1),
        (0, 1, -1),
        (1, 1, 1),
        (1, 1, -1),
        (1, -1, 1),
        (1, -1, -1),
    ],
    dtype=np.int64,
)


def encode_trits(trits: Int) -> Int:
    """Return the 5-bit codes of ``trits`` ``[..., 3]`` in -1, 0, 1: index in 3:0, negate in 4."""
    if np.abs(trits).max(initial=0) > 1:
        raise ValueError(f"trits must be -1, 0 or 1, not {trits.min()}..{trits.max()}")
    key = trits @ np.array([9, 3, 1]) + 13
    codes = np.zeros(27, np.int64)
    for index, signs in enumerate(ENTRIES):
        value = int(signs @ np.array([9, 3, 1]))
        codes[13 - value] = index | 16
        codes[13 + value] = index
    codes[13] = 0
    return codes[key]


def decode_codes(codes: Int) -> Int:
    """Inverse of :func:`encode_trits`: ``[..., 3]``."""
    trits = ENTRIES[_indices(codes)]
    return np.where((codes >> 4)[..., None] != 0, -trits, trits)


def _indices(codes: Int) -> Int:
    """Indices of codes; ValueError for those that :func:`encode_trits` does not give."""
    indices = codes & 15
    if indices.max(initial=0) >= len(ENTRIES):
        raise ValueError(
            f"the index of a code of three trits must be in 0..{len(ENTRIES) - 1}, not "
            f"{indices.max()}"
        )
    return indices


def relative_signs(codes: Int) -> Int:
    """Codes ``[..., n_tables]`` as a weight word has them."""
    relative = codes.copy()
    for table in range(1, codes.shape[-1]):
        relative[..., table] ^= codes[..., table & (table - 1)] & 16
    return relative


def absolute_signs(codes: Int) -> Int:
    """Inverse of :func:`relative_signs`."""
    absolute = codes.copy()
    for table in range(1, codes.shape[-1]):
        absolute[..., table] ^= absolute[..., table & (table - 1)] & 16
    return absolute


def build_table(a: Int) -> Int:
    """Return the 14 entries ``[..., 14]`` of the table of three activations ``[..., 3]``."""
    return a @ ENTRIES.T


def sum_lookups(tables: Int, codes: Int) -> Int:
    """Look up ``codes`` ``[lanes, n_tables]`` in ``tables`` ``[..., n_tables, 14]`` and add up.

    The result is ``[..., lanes]``.
    """
    entry = tables[..., np.arange(codes.shape[-1]), _indices(codes)]  # [..., lanes, n_tables]
    return np.where(codes >> 4, -entry, entry).sum(axis=-1)

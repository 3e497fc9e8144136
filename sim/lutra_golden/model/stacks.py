"""Matrices that share their input, as one: queries, keys and values, gate and up."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.format import W_BITS
from lutra_golden.model.packed import PackedLinear
from lutra_golden.model.stored import StoredWeights

__all__ = ["stack", "unify_formats"]


def stack(parts: Iterable[GroupedWeights]) -> GroupedWeights:
    """The rows of several matrices in order, with the most bits and the finest groups."""
    found = list(parts)
    bits, group = max(part.bits for part in found), math.gcd(*(part.group for part in found))
    offset = None
    if any(part.offset is not None for part in found):
        offsets = [
            np.zeros_like(part.zero) if part.offset is None else part.offset for part in found
        ]
        offset = _joined(found, offsets, group)
    return GroupedWeights(
        codes=np.concatenate([part.codes for part in found]),
        scale=_joined(found, [part.scale for part in found], group),
        zero=_joined(found, [part.zero for part in found], group),
        bits=bits,
        group=group,
        offset=offset,
    )


def _joined(
    parts: Sequence[GroupedWeights], values: Sequence[NDArray[np.int64]], group: int
) -> NDArray[np.int64]:
    """Values of the parts' groups in order, each for as many groups as it has finer ones."""
    return np.concatenate(
        [
            value.repeat(part.group // group, axis=1)
            for part, value in zip(parts, values, strict=True)
        ]
    )


def unify_formats(parts: Sequence[PackedLinear]) -> list[StoredWeights]:
    """The matrices with one number of bits, of those that formats have, and one group size;
    unchanged if they agree."""
    stored = [part.stored for part in parts]
    if stored[0].bits in W_BITS and len({(each.bits, each.group) for each in stored}) == 1:
        return stored
    whole = stack(part.weights for part in parts)
    ends = np.cumsum([each.n_rows for each in stored])
    rows = [slice(end - each.n_rows, end) for end, each in zip(ends, stored, strict=True)]
    return [StoredWeights.of(whole.rows(each), grouped=True) for each in rows]

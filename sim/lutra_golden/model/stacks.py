"""Matrices that share their input, as one: queries, keys and values, gate and up."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.packed import PackedLinear
from lutra_golden.model.stored import StoredWeights

__all__ = ["stack", "unify_formats"]


def stack(parts: Iterable[GroupedWeights]) -> GroupedWeights:
    """The rows of several matrices in order, with the most bits and the finest groups."""
    found = list(parts)
    bits, group = max(part.bits for part in found), math.gcd(*(part.group for part in found))

    def joined(name: str) -> NDArray[np.int64]:
        values = [getattr(part, name).repeat(part.group // group, axis=1) for part in found]
        return np.concatenate(values)

    return GroupedWeights(
        codes=np.concatenate([part.codes for part in found]),
        scale=joined("scale"),
        zero=joined("zero"),
        bits=bits,
        group=group,
    )


def unify_formats(parts: Sequence[PackedLinear]) -> list[StoredWeights]:
    """The matrices with one number of bits and one group size; unchanged if they agree."""
    stored = [part.stored for part in parts]
    if len({(each.bits, each.group) for each in stored}) == 1:
        return stored
    whole = stack(part.weights for part in parts)
    ends = np.cumsum([each.n_rows for each in stored])
    rows = [slice(end - each.n_rows, end) for end, each in zip(ends, stored, strict=True)]
    return [StoredWeights.of(whole.rows(each), grouped=True) for each in rows]

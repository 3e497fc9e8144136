"""Which targets of the library to use: what is fastest on this machine, not what ranks highest."""

import logging
import os
from functools import cache

import numpy as np

from lutra.devices.cpu.library import strip_rows, target_names, target_number
from lutra.devices.cpu.steps import Matrix, Pool, matmul_seconds
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.arith.scale import scale_from_float
from lutra_golden.model.b128 import row_bytes
from lutra_golden.model.packed import PackedLinear
from lutra_golden.model.stored import StoredWeights

__all__ = ["choose_targets"]

_LOG = logging.getLogger(__name__)
# rows, depth, tokens of products that count alike: with groups 27 MB, more than most share of a
# cache. Where memory bounds a single token, a few tell targets from each other
_FEW = (8192, 4096, (1, 4))
_MANY = (512, 2048, (48,))
_REPEATS = 3
_AS_FAST = 1.05
_BITS, _GROUP = 6, 32


@cache
def choose_targets(threads: int, groups: ActivationGroups | None = None) -> tuple[str, str]:
    """Targets for products of few and of many columns, by a measurement of some 50 ms.

    It is made with ternary rows, or, for activations in ``groups``, with rows in groups of 32: what
    is faster for the ones is not for the others. ``$LUTRA_CPU_TARGET`` names one for both instead.
    """
    if forced := os.environ.get(setting := "LUTRA_CPU_TARGET"):
        target_number(forced, setting)
        return forced, forced
    names = [name for name, available in target_names().items() if available]
    # the last one is plain C, which is never faster than vectors
    candidates = names[:-1] or names
    if len(candidates) == 1:
        return candidates[0], candidates[0]
    pool = Pool(threads)
    few, many = (_fastest(candidates, pool, groups, *shape) for shape in (_FEW, _MANY))
    pool.close()
    _LOG.info("device cpu uses %s, and %s for many tokens", few, many)
    return few, many


def _weights(n: int, k: int, groups: ActivationGroups | None) -> StoredWeights:
    """Written with ones, because untouched pages would all map to the same page."""
    if groups is None:
        return StoredWeights(codes=np.full((n, k // 4), 0xAA, np.uint8), depth=k, bits=2)
    shape = (n, k // _GROUP)
    return StoredWeights(
        codes=np.full((n, row_bytes(k, _BITS)), 0x55, np.uint8),
        depth=k,
        bits=_BITS,
        group=_GROUP,
        scale=np.full(shape, 1 << 15, np.uint16),
        zero=np.full(shape, 1 << _BITS, np.uint16),
    )


def _fastest(
    names: list[str],
    pool: Pool,
    groups: ActivationGroups | None,
    n: int,
    k: int,
    tokens: tuple[int, ...],
) -> str:
    w = PackedLinear(_weights(n, k, groups), scale_from_float(1.0), 24)
    bits = 8 if groups is None else 8 + groups.shift_max
    seconds = dict.fromkeys(names, 0.0)
    for name in names:
        matrices = [Matrix.of(w, groups, strip_rows(name))] * _REPEATS
        for m in tokens:
            a = np.ones((m, k), np.int16)
            seconds[name] += float(matmul_seconds(name, pool, matrices, a, bits).min())
    # of targets that are as fast the first has the faster functions beside its products
    limit = _AS_FAST * min(seconds.values())
    return next(name for name in names if seconds[name] <= limit)

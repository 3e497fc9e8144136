"""Which targets of the library to use: what is fastest on this machine, not what ranks highest."""

import logging
import os
from functools import cache

import numpy as np

from lutra.devices.cpu.library import target_names, target_number
from lutra.devices.cpu.steps import Matrix, Pool, matmul_seconds
from lutra_golden.arith.scale import scale_from_float
from lutra_golden.model.packed import PackedLinear
from lutra_golden.model.stored import StoredWeights

__all__ = ["choose_targets"]

_LOG = logging.getLogger(__name__)
_FEW = (16384, 4096, 1)  # rows, depth, tokens: 16 MB, more than most share of a cache
_MANY = (512, 2048, 48)
_REPEATS = 3


@cache
def choose_targets(threads: int) -> tuple[str, str]:
    """Targets for products of few and of many columns, by a measurement of some 50 ms.

    ``$LUTRA_CPU_TARGET`` names one for both instead.
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
    few, many = (_fastest(candidates, pool, *shape) for shape in (_FEW, _MANY))
    pool.close()
    _LOG.info("device cpu uses %s, and %s for many tokens", few, many)
    return few, many


def _fastest(names: list[str], pool: Pool, n: int, k: int, m: int) -> str:
    # written with ones, because untouched pages would all map to the same page
    weights = StoredWeights(codes=np.full((n, k // 4), 0xAA, np.uint8), depth=k, bits=2)
    w = Matrix.of(PackedLinear(weights, scale_from_float(1.0), 1))
    a = np.ones((m, k), np.int16)
    seconds = {name: float(matmul_seconds(name, pool, [w] * _REPEATS, a).min()) for name in names}
    return min(seconds, key=lambda name: seconds[name])

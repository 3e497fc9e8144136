"""A KV cache in NumPy, whatever its layout."""

import numpy as np
from numpy.typing import NDArray

from lutra_kernels.arrays import Array, download
from lutra_kernels.cache import KvCache

__all__ = ["unpacked_cache"]

Values = NDArray[np.int64]


def unpacked_cache(cache: KvCache) -> tuple[Values, Values, Values, Values]:
    """Keys and values ``[n_pages, n_kv_heads, page, head_dim]``, and words of their scales."""

    def rows(array: Array) -> Values:
        data = download(array)
        if cache.bits == 8:
            return data.astype(np.int64)
        low = (data << np.int8(4)) >> np.int8(4)
        return np.concatenate([low, data >> np.int8(4)], axis=-1).astype(np.int64)

    k_scale, v_scale = (download(a).astype(np.int64) for a in (cache.k_scale, cache.v_scale))
    return rows(cache.k), rows(cache.v), k_scale, v_scale

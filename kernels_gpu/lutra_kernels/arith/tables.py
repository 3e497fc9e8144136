"""The golden tables as one small array, which every kernel that interpolates takes."""

import numpy as np
import triton.language as tl
from numpy.typing import NDArray

from lutra_golden.arith.exp2 import exp2_table
from lutra_golden.arith.scale import rsqrt_table
from lutra_golden.arith.silu import silu_table

__all__ = ["EXP2_FIRST", "RSQRT_FIRST", "SILU_BASE", "SILU_RISE", "tables"]

_RSQRT, _EXP2, _SILU = rsqrt_table(), exp2_table(), silu_table()

RSQRT_FIRST = tl.constexpr(0)
"""First of the seeds of reciprocal square roots."""
EXP2_FIRST = tl.constexpr(len(_RSQRT))
"""First of the exponential's segments: its base, and its drop above bit 18."""
SILU_BASE = tl.constexpr(len(_RSQRT) + len(_EXP2[0]))
"""First of the values of SiLU's gap at a segment's start."""
SILU_RISE = tl.constexpr(len(_RSQRT) + len(_EXP2[0]) + len(_SILU[0]))
"""Index of the first rise of the gap over a segment."""


def tables() -> NDArray[np.int32]:
    """All tables, ``[SILU_RISE + 512]``."""
    base, drop = _EXP2
    return np.concatenate([_RSQRT, base | drop << 18, *_SILU]).astype(np.int32)

"""Cycles of rotary embedding and quantisation of heads."""

from lutra_golden.core.config import AcceleratorConfig

__all__ = ["HEAD_CYCLES", "HEAD_NORM_CYCLES", "rope_cycles"]

HEAD_CYCLES = 11
"""Cycles of a head's factor and scale."""
HEAD_NORM_CYCLES = 12
"""Additional cycles for the norm of a head."""


def rope_cycles(
    config: AcceleratorConfig,
    token_count: int,
    *,
    bias: bool = False,
    qk_norm: bool = False,
    centre: bool = False,
) -> int:
    """Cycles from the acceptance of a command to ``done``, without stalls.

    ``centre`` comes with ``bias``. With ``bias`` or ``qk_norm`` it is a bound: up to 40 cycles
    fewer are taken.
    """
    if token_count == 0:
        return 1
    heads = config.n_heads + 2 * config.n_kv_heads
    pairs = config.head_dim // 16  # of blocks of eight elements, in one head
    if bias or qk_norm:
        period = 4 if bias and (qk_norm or centre) else 2
        normed = config.n_heads + config.n_kv_heads if qk_norm else 0
        scalars = token_count * (heads * HEAD_CYCLES + normed * HEAD_NORM_CYCLES)
        passes = token_count * period * (2 * heads * pairs + 1)
        return max(scalars + 2 * period * pairs + 44, passes + 52)
    scalars = token_count * heads * HEAD_CYCLES + 3 * pairs + 22
    second_pass = token_count * (heads * 2 * pairs + 2) + pairs + 31
    return max(scalars, second_pass)

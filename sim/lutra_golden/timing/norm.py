"""Cycles of RMSNorm and quantisation."""

from lutra_golden.control.isa import NormSource
from lutra_golden.timing.arith import (
    QUANTIZER_LATENCY,
    SCALE_LATENCY,
    SCALE_MUL_LATENCY,
    SCALE_PERIOD,
    SILU_LATENCY,
)

__all__ = [
    "RECIP_TO_FACTOR",
    "STAGE_Q",
    "STAGE_SUM",
    "STAGE_V",
    "STAGE_Y",
    "SWIGLU_SCALE_CYCLES",
    "SWIGLU_STAGES",
    "norm_cycles",
]

# stages of the pipeline, counted in cycles from a word's address; SWIGLU's words come later
STAGE_V = 3
"""The word's elements, of any source."""
STAGE_Y = 6
"""Elements times gamma, and their squares."""
STAGE_SUM = 8
"""Sums over the lanes."""
STAGE_Q = STAGE_Y + QUANTIZER_LATENCY
"""Quantised elements."""
RECIP_TO_FACTOR = SCALE_LATENCY["RECIP"] + SCALE_LATENCY["MUL"] + 2
"""Cycles from the acceptance of the reciprocal of the maximum to the factor."""
SWIGLU_SCALE_CYCLES = SCALE_MUL_LATENCY + 1
"""Cycles that a gate waits for its token's scale."""
SWIGLU_STAGES = SWIGLU_SCALE_CYCLES + 3 + SILU_LATENCY
"""Cycles of a gate on its way to SiLU: it waits, is multiplied, shifted and rounded."""


def norm_cycles(n_words: int, token_count: int, source: NormSource) -> int:
    """Cycles from the acceptance of a command to ``done``, exactly."""
    mul, from_int = SCALE_PERIOD["MUL"], SCALE_PERIOD["FROM_INT"]
    prepare = (3 if source == NormSource.GATE else 1) * mul
    late = SWIGLU_STAGES if source == NormSource.SWIGLU else 0
    y_to_recip, recip_to_ss = from_int, SCALE_PERIOD["RECIP"] + 2 * mul
    ss_to_end = from_int + 4 * mul + SCALE_PERIOD["ADD"] + SCALE_PERIOD["RSQRT"]

    # the last cycle of a pass; of the sequence; and the first in which the sums are free
    now, idle, ss_free = n_words, 0, 0
    done = 1
    for token in range(token_count):
        begin = max(now + 1 + (STAGE_V + late - 1 if token == 0 else 0), ss_free)
        now = begin + n_words - 1
        start = max(begin + STAGE_V + late + 1, idle)
        y = max(start + 1 + prepare, now + STAGE_SUM + late + 1)
        ss = y + y_to_recip + recip_to_ss
        ss_free, idle = ss + 1, ss + ss_to_end
        if token < token_count - 1:
            now += n_words
        y_to_quantize = 1 if late else y_to_recip + RECIP_TO_FACTOR - STAGE_Y
        begin = max(now + 1, y + y_to_quantize)
        now = begin + n_words - 1
        done = max(now + STAGE_Q + late + 1, idle)
    return done

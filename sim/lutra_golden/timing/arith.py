"""Latencies of the arithmetic blocks, in cycles."""

__all__ = [
    "EXP2_LATENCY",
    "QUANTIZER_LATENCY",
    "SCALE_LATENCY",
    "SCALE_MUL_LATENCY",
    "SCALE_PERIOD",
    "SILU_LATENCY",
]

EXP2_LATENCY = 4
"""From an exponent to its power: table, multiply and subtract, shift, round."""
QUANTIZER_LATENCY = 3
"""From a vector to its quantised elements: multiply, shift, round and clamp."""
SILU_LATENCY = 4
"""From a vector to its SiLU: magnitude, table, multiply and add, round."""
SCALE_MUL_LATENCY = 2
"""From two scales to their product, in the pipelined multiplier: multiply, round."""

SCALE_LATENCY = {"FROM_INT": 4, "MUL": 3, "ADD": 5, "RECIP": 5, "RSQRT": 6}
"""From the acceptance of an operation of the scale unit to the offer of its result."""
SCALE_PERIOD = {operation: cycles + 1 for operation, cycles in SCALE_LATENCY.items()}
"""Cycles between two operations if the second needs the result of the first."""

"""Limits of a packed model's numbers: what the token path's registers and adders take."""

from lutra_golden.arith.fixed import round_shift
from lutra_golden.errors import LutraError

__all__ = [
    "ACC_MAX",
    "EMBEDDED_SHIFT_MAX",
    "EMBEDDING_SHIFT_MAX",
    "FRAC_MAX",
    "HEAD_MAX",
    "LOGIT_ACC_MAX",
    "RESIDUAL_FRAC_MAX",
    "RESIDUAL_MAX",
    "SCALE_EXPONENT_MAX",
    "SHIFT_MAX",
    "least_shift",
]

ACC_MAX = (1 << 27) - 1
"""Largest accumulator: the vector unit takes 28 bits."""
LOGIT_ACC_MAX = (1 << 23) - 1
"""Largest accumulator of the head: times an int16 row scale, it still gives an int32 logit."""
HEAD_MAX = 121
"""The head's rows are integers of five balanced trits, so that the ternary engine takes them."""
SCALE_EXPONENT_MAX = 128
"""Largest exponent of a stored scale, and the negative of the least: far beyond any model's."""
SHIFT_MAX = 24
"""Largest shift of a sum that a model may need."""
FRAC_MAX = 24
"""Most fraction bits of a vector."""
RESIDUAL_FRAC_MAX = 20
"""Most fraction bits of the residual stream."""
RESIDUAL_MAX = (1 << 31) - 1
"""Largest number of the residual stream."""
EMBEDDED_SHIFT_MAX = 63
"""Most bits by which a coded row of the embedding is shifted, to the right."""
EMBEDDING_SHIFT_MAX = 16
"""Most bits by which an embedding row is shifted: int16 then stays within int32."""


def least_shift(peak: int, q_max: int, limit: int, least: int = 0) -> int:
    """Least shift with which no sum of activations up to ``q_max`` passes ``limit``."""
    for shift in range(least, SHIFT_MAX + 1):
        if int(round_shift(peak * q_max, shift)) <= limit:
            return shift
    raise LutraError(
        f"sums of up to {peak * q_max} do not fit the accumulators even with a shift of "
        f"{SHIFT_MAX}: the model's rows are too deep"
    )

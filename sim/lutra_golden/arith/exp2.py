"""``2**-d`` by a piecewise-linear table of 32 segments."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lutra_golden.arith.fixed import Int, round_shift

__all__ = ["EXP2", "Exp2Params", "exp2_neg", "exp2_table"]


@dataclass(frozen=True, kw_only=True)
class Exp2Params:
    """Fixed-point positions of the exponential."""

    d_frac: int = 12  # argument: unsigned, this many fraction bits
    d_width: int = 31  # the difference of two scores
    segment_bits: int = 5
    y_frac: int = 15  # result: 2**15 is one
    table_frac: int = 17

    @property
    def y_width(self) -> int:
        """Width that holds one."""
        return self.y_frac + 1

    @property
    def rest_bits(self) -> int:
        """Fraction bits below the segment index."""
        return self.d_frac - self.segment_bits


EXP2 = Exp2Params()


def exp2_table(params: Exp2Params = EXP2) -> tuple[Int, Int]:
    """Return ``(base, drop)``, each ``[32]``: the value at the segment's start and its fall.

    Both have ``table_frac`` fraction bits; ``base - drop`` is the next segment's base.
    """
    n = 1 << params.segment_bits
    knots = np.rint(2.0 ** (params.table_frac - np.arange(n + 1) / n)).astype(np.int64)
    return knots[:-1], knots[:-1] - knots[1:]


def exp2_neg(d: ArrayLike, params: Exp2Params = EXP2) -> Int:
    """Return ``2**-d`` as ``unsigned(16)`` with 15 fraction bits; ``d`` is ``>= 0`` in Q12.

    ``base - (drop * rest >> rest_bits)`` (floor), then one rounding half up by the integer part of
    ``d`` and the two guard bits. Largest error: half a last place and 8e-5 of the value.
    """
    d = np.asarray(d, np.int64)
    whole, fraction = d >> params.d_frac, d & ((1 << params.d_frac) - 1)
    segment, rest = fraction >> params.rest_bits, fraction & ((1 << params.rest_bits) - 1)
    base, drop = exp2_table(params)
    y = base[segment] - ((drop[segment] * rest) >> params.rest_bits)
    guard = params.table_frac - params.y_frac
    # 31 and above give zero: y has 18 bits
    return round_shift(y, np.minimum(whole, 31) + guard)

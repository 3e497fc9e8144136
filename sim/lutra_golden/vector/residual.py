"""Dequantisation into the residual stream, and the logits of the head."""

import numpy as np

from lutra_golden.arith.fixed import Int, Saturation, round_shift, saturate
from lutra_golden.arith.scale import Scale, scale_mul

__all__ = [
    "LOGIT_SHIFT",
    "LOGIT_WIDTH",
    "RESIDUAL_WIDTH",
    "embedded",
    "logits",
    "residual_add",
    "residual_sum",
]

RESIDUAL_WIDTH = 32
LOGIT_SHIFT = 7
LOGIT_WIDTH = 32


def residual_sum(
    x: Int, acc: Int, s: Scale, w_scale: Scale, frac: int, saturation: Saturation | None = None
) -> Int:
    """Return ``x + round(acc * (s * w_scale) * 2**frac)``, not limited to 32 bits.

    ``x`` and ``acc`` are ``[M, N]``, ``s`` is ``[M]``; the product of the scales is rounded once,
    the shift ``-(e + frac)`` is limited to 0..63. ``saturation`` is set by a sum beyond 32 bits,
    and by an accumulator that would have to be shifted to the left.
    """
    c = scale_mul(s, w_scale)
    shift = -(c.e + frac)[:, None]
    added = round_shift(acc * c.m[:, None], np.clip(shift, 0, 63))
    if saturation is not None:
        out = saturate(x + added, RESIDUAL_WIDTH) != x + added
        saturation.note(out | ((shift < 0) & (added != 0)))
    return x + added


def residual_add(x: Int, acc: Int, s: Scale, w_scale: Scale, frac: int) -> Int:
    """Return :func:`residual_sum` clamped to 32 bits."""
    return saturate(residual_sum(x, acc, s, w_scale, frac), RESIDUAL_WIDTH)


def embedded(doubled: Int, w_scale: Scale, frac: int) -> Int:
    """Return ``round(doubled * w_scale * 2**frac)``: rows of a coded embedding in the stream.

    ``doubled`` ``[M, N]`` are twice the weights, ``w_scale`` is what one of them is worth. The
    packer sees to it that the shift is within 0..63 and no result beyond 32 bits.
    """
    return round_shift(doubled * int(w_scale.m), -(int(w_scale.e) + frac))


def logits(acc: Int, row_scale: Int) -> Int:
    """Return int32 logits ``round(acc * row_scale / 2**7)``; ``row_scale`` is int16 ``[N]``.

    Accumulators of up to 24 bits need no clamp, unless both factors are at their most negative.

    One scale per token turns them into numbers: activation scale x head scale x 2**7.
    """
    return saturate(round_shift(acc * row_scale, LOGIT_SHIFT), LOGIT_WIDTH)

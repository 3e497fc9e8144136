"""RMSNorm and quantisation in integers; squared-ReLU and SiLU gating as sources of it."""

from dataclasses import dataclass

import numpy as np

from lutra_golden.arith.fixed import Int, Saturation, bit_length, round_shift, saturate
from lutra_golden.arith.quantize import (
    Q_MAX,
    ActivationGroups,
    quantize,
    quantize_factor,
    quantize_groups,
    quantize_step,
)
from lutra_golden.arith.scale import Scale, scale_add, scale_from_int, scale_mul, scale_rsqrt
from lutra_golden.arith.silu import SILU, silu

__all__ = [
    "GATE_WIDTH_MAX",
    "ONE_FRAC",
    "SCALED_WIDTH",
    "SOURCE_WIDTH",
    "SWIGLU_SHIFTS",
    "NormParams",
    "gate_scale",
    "norm_quantize",
    "relu2_gate",
    "swiglu",
    "swiglu_scale",
]

SOURCE_WIDTH = 32
"""Bits of an element of the residual stream or of an attention output."""
SCALED_WIDTH = 16
"""Bits of an element after the block shift."""
GATE_WIDTH_MAX = 21
"""Bits of a gate or up accumulator of squared ReLU, whose product then fits 64 bits."""
ONE_FRAC = 14
"""Fraction bits of a gamma of ones, by which rows are multiplied where there is no norm."""
SWIGLU_SHIFTS = (-11, 52)
"""Shifts of :func:`swiglu`; a smaller one saturates all but zero, a larger one leaves zero."""


@dataclass(frozen=True, kw_only=True)
class NormParams:
    """Widths of the norm unit."""

    gate_width: int = 20  # gate and up accumulators of relu(g)**2 * u
    acc_width: int = 24  # those of silu(g) * u
    a_width: int = 8

    def __post_init__(self) -> None:
        # the source then fits 64 bits, and what rotation makes of an accumulator 47
        for name, value, limit in (
            ("gate_width", self.gate_width, GATE_WIDTH_MAX),
            ("acc_width", self.acc_width, 30),
        ):
            if not 2 <= value <= limit:
                raise ValueError(f"{name} must be in 2..{limit}, not {value}")
        if self.a_width not in (8, 16):
            raise ValueError(f"a_width must be 8 or 16, not {self.a_width}")

    @property
    def v_width(self) -> int:
        """Width that holds an element of any source."""
        return max(SOURCE_WIDTH, 3 * (self.gate_width - 1) + 1, SILU.x_width + self.acc_width)


def relu2_gate(gate: Int, up: Int) -> Int:
    """Return ``relu(gate)**2 * up``, exactly."""
    positive = np.maximum(gate, 0)
    return positive * positive * up


def gate_scale(s: Scale, w_gate: Scale, w_up: Scale) -> Scale:
    """Scale of :func:`relu2_gate` on raw accumulators with activation scale ``s``."""
    s_gate = scale_mul(s, w_gate)
    return scale_mul(scale_mul(s_gate, s_gate), scale_mul(s, w_up))


def swiglu(
    gate: Int, up: Int, s: Scale, w_gate: Scale, saturation: Saturation | None = None
) -> Int:
    """Return ``silu(gate * s * w_gate) * up`` of accumulators ``[M, N]``, with 16 fraction bits.

    ``s`` ``[M]`` is the activation scale. SiLU is not homogeneous: its argument is
    ``x = saturate27(round(gate * c * 2**16))`` with ``c = s * w_gate``, rounded once. The product
    is exact; its scale is :func:`swiglu_scale`. ``saturation`` is set by an argument above the
    range; SiLU is zero below it as at its end.
    """
    c = scale_mul(s, w_gate)
    shift = np.clip(-(c.e + SILU.x_frac), *SWIGLU_SHIFTS)
    exact = round_shift(gate * c.m[:, None], shift[:, None])
    x = saturate(exact, SILU.x_width)
    if saturation is not None:
        saturation.note(exact > x)
    return silu(x) * up


def swiglu_scale(s: Scale, w_up: Scale) -> Scale:
    """Scale of :func:`swiglu` on raw up accumulators with activation scale ``s``."""
    scale = scale_mul(s, w_up)
    return Scale(scale.m, scale.e - np.where(scale.m == 0, 0, SILU.x_frac))


def norm_quantize(
    v: Int,
    v_scale: Scale,
    gamma: Int,
    gamma_frac: int,
    inv_n: Scale,
    eps: Scale,
    *,
    normalise: bool = True,
    q_max: int = Q_MAX,
    groups: ActivationGroups | None = None,
    run: int = 0,
) -> tuple[Int, Scale]:
    """RMSNorm of each row of ``v`` times ``gamma``, quantised with a scale per row.

    ``v`` is ``[M, N]`` (``|v| < 2**62``) in units of ``v_scale`` ``[M]``; ``gamma`` is ``[N]``
    int16 with ``gamma_frac`` fraction bits; ``inv_n`` is ``1 / N``. Without ``normalise`` the rows
    are multiplied by ``gamma`` only. Returns ``q`` ``[M, N]`` in -q_max..q_max (127 or 32767) and
    its scale ``[M]``.

    1. Block shift: ``sh = max(0, bit_length(max|v|) - 15)``, ``vs = saturate16(round(v / 2**sh))``.
    2. ``ss = sum(vs**2)``, ``y = vs * gamma``, ``y_max = max|y|``, all exact.
    3. ``s1 = v_scale * 2**sh``; ``r = rsqrt((ss * inv_n) * (s1 * s1) + eps)``, or 1.
    4. ``q = round(y * q_max / y_max)``; scale ``(s1 * r) * (y_max * (1/q_max) * 2**-gamma_frac)``.

    With ``groups`` (in runs of ``run`` elements, the whole row if 0) step 4 gives the integers of
    :func:`~lutra_golden.arith.quantize.quantize_groups`; the scale is ``2**-shift_max`` of that.
    """
    v_max = np.abs(v).max(axis=-1)
    sh = np.maximum(bit_length(v_max) - (SCALED_WIDTH - 1), 0)
    vs = saturate(round_shift(v, sh[:, None]), SCALED_WIDTH)  # [M, N]
    ss = (vs * vs).sum(axis=-1)
    y = vs * gamma
    y_max = np.abs(y).max(axis=-1)

    s1 = Scale(v_scale.m, v_scale.e + np.where(v_scale.m == 0, 0, sh))
    unit = s1
    if normalise:
        mean_square = scale_mul(scale_mul(scale_from_int(ss), inv_n), scale_mul(s1, s1))
        unit = scale_mul(s1, scale_rsqrt(scale_add(mean_square, eps)))
    step = quantize_step(y_max, q_max)
    step = Scale(step.m, step.e - np.where(step.m == 0, 0, gamma_frac))
    scale = scale_mul(unit, step)
    if groups is not None:
        lowered = Scale(scale.m, scale.e - np.where(scale.m == 0, 0, groups.shift_max))
        return quantize_groups(y, y_max, groups, run or y.shape[1]), lowered

    factor = quantize_factor(y_max, q_max)
    q = quantize(y, Scale(factor.m[:, None], factor.e[:, None]), q_max)
    return q, scale

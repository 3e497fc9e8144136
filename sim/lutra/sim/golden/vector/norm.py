"""RMSNorm and quantisation to int8 in integers; squared-ReLU gating as one of its sources."""

from dataclasses import dataclass

import numpy as np

from lutra.sim.golden.arith.fixed import Int, bit_length, round_shift, saturate
from lutra.sim.golden.arith.quantize import SCALE_INV_127, quantize_factor, quantize_int8
from lutra.sim.golden.arith.scale import (
    Scale,
    scale_add,
    scale_from_int,
    scale_mul,
    scale_rsqrt,
)

__all__ = ["NormParams", "gate_scale", "norm_quantize", "relu2_gate"]


@dataclass(frozen=True, kw_only=True)
class NormParams:
    """Widths of the norm unit."""

    lanes: int = 8
    v_width: int = 64  # source: residual (32), attention output (32) or gate product
    gate_width: int = 20  # gate and up accumulators; their product relu(g)**2 * u then fits 58

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise ValueError(f"lanes must be positive, not {self.lanes}")
        if self.gate_width > self.v_width // 3:
            raise ValueError(
                f"gate_width must be at most {self.v_width // 3}, not {self.gate_width}"
            )


def relu2_gate(gate: Int, up: Int) -> Int:
    """Return ``relu(gate)**2 * up``, exactly."""
    positive = np.maximum(gate, 0)
    return positive * positive * up


def gate_scale(s: Scale, w_gate: Scale, w_up: Scale) -> Scale:
    """Scale of :func:`relu2_gate` on raw accumulators with activation scale ``s``."""
    s_gate = scale_mul(s, w_gate)
    return scale_mul(scale_mul(s_gate, s_gate), scale_mul(s, w_up))


def norm_quantize(
    v: Int, v_scale: Scale, gamma: Int, gamma_frac: int, inv_n: Scale, eps: Scale
) -> tuple[Int, Scale]:
    """RMSNorm of each row of ``v`` times ``gamma``, quantised to int8 with a scale per row.

    ``v`` is ``[M, N]`` (``|v| < 2**62``) in units of ``v_scale`` ``[M]``; ``gamma`` is ``[N]``
    int16 with ``gamma_frac`` fraction bits; ``inv_n`` is ``1 / N``. Returns ``q`` ``[M, N]`` in
    -127..127 and its scale ``[M]``.

    1. Block shift: ``sh = max(0, bit_length(max|v|) - 15)``, ``vs = saturate16(round(v / 2**sh))``.
    2. ``ss = sum(vs**2)``, ``y = vs * gamma``, ``y_max = max|y|``, all exact.
    3. ``s1 = v_scale * 2**sh``; ``r = rsqrt((ss * inv_n) * (s1 * s1) + eps)``.
    4. ``q = round(y * 127 / y_max)``; scale ``(s1 * r) * (y_max * (1/127) * 2**-gamma_frac)``.
    """
    v_max = np.abs(v).max(axis=-1)
    sh = np.maximum(bit_length(v_max) - 15, 0)
    vs = saturate(round_shift(v, sh[:, None]), 16)  # [M, N]
    ss = (vs * vs).sum(axis=-1)
    y = vs * gamma
    y_max = np.abs(y).max(axis=-1)

    s1 = Scale(v_scale.m, v_scale.e + np.where(v_scale.m == 0, 0, sh))
    mean_square = scale_mul(scale_mul(scale_from_int(ss), inv_n), scale_mul(s1, s1))
    r = scale_rsqrt(scale_add(mean_square, eps))
    step = scale_mul(scale_from_int(y_max), SCALE_INV_127)
    step = Scale(step.m, step.e - np.where(step.m == 0, 0, gamma_frac))
    scale = scale_mul(scale_mul(s1, r), step)

    factor = quantize_factor(y_max)
    q = quantize_int8(y, Scale(factor.m[:, None], factor.e[:, None]))
    return q, scale

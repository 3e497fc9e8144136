"""Ranges of the exponents of a packed model's scales, none of which may leave the hardware's bits.

An operation on scales in :mod:`lutra_golden.arith.scale` gives an exponent that depends on those of
its operands, and by one or two on their mantissas. So bounds of the exponents of a model's weights,
norms and sums bound those of every scale between embedding and logits.
"""

from dataclasses import dataclass

import numpy as np

from lutra_golden.arith.fixed import Int
from lutra_golden.arith.quantize import Q_MAX, q_max_of
from lutra_golden.arith.scale import SCALE, Scale, scale_from_int, scale_recip
from lutra_golden.arith.silu import SILU
from lutra_golden.errors import LutraError
from lutra_golden.model.limits import ACC_MAX
from lutra_golden.model.lowered import LoweredNorm, layer_norms, lower_norm, residual_unit
from lutra_golden.model.packed import PackedLayer, PackedModel
from lutra_golden.model.shapes import Gate
from lutra_golden.vector.heads import (
    EPS_FRAC,
    FIXED_FRAC,
    FIXED_UNIT,
    NORM_SHIFT,
    NORM_WIDTH,
    SQUARES_WIDTH,
)
from lutra_golden.vector.norm import GATE_WIDTH_MAX, SCALED_WIDTH, SOURCE_WIDTH
from lutra_golden.vector.rope import ROPE_FRAC

__all__ = ["EXPONENT_MAX", "EXPONENT_MIN", "Exponents", "head_exponents", "layer_exponents"]

EXPONENT_MIN = SCALE.e_min
"""Least exponent that the hardware's scales hold."""
EXPONENT_MAX = -SCALE.e_min - 1
"""Largest exponent that they hold."""
_LEFT = SCALED_WIDTH - 1  # bits of a magnitude after the block shift


@dataclass(frozen=True)
class Exponents:
    """Bounds of the exponents of scales that are not zero; arrays hold several cases."""

    low: Int
    high: Int

    @classmethod
    def of(cls, scale: Scale) -> "Exponents":
        """Of a known scale."""
        e = np.asarray(scale.e, np.int64)
        return cls(e, e)

    @classmethod
    def of_ints(cls, least: int, bits: int, e: int = 0) -> "Exponents":
        """Of :func:`scale_from_int` of integers from ``least`` to ``2**bits - 1``, times 2**e."""
        # the mantissa of the largest may round up to the next power of two
        return cls(np.asarray(least.bit_length() - 16 + e), np.asarray(bits - 15 + e))

    def times(self, other: "Exponents") -> "Exponents":
        """Of :func:`scale_mul`."""
        return Exponents(self.low + other.low + 15, self.high + other.high + 16)

    def plus(self, other: "Exponents") -> "Exponents":
        """Of :func:`scale_add`, where ``self`` may be zero and ``other`` is not."""
        high = np.maximum(self.high, other.high) + 1
        return Exponents(np.broadcast_to(other.low, high.shape), high)

    def rsqrt(self) -> "Exponents":
        """Of :func:`scale_rsqrt`."""
        return Exponents(-24 - (self.high >> 1), -23 - (self.low >> 1))

    def shifted(self, n: int) -> "Exponents":
        """Of scales times ``2**n``."""
        return Exponents(self.low + n, self.high + n)

    def all(self) -> "Exponents":
        """Bounds over all cases."""
        return Exponents(np.asarray(self.low.min()), np.asarray(self.high.max()))


class _Chain:
    """Checks scales of a part of a model as they follow from each other, and keeps their bounds."""

    def __init__(self, model: PackedModel, where: str) -> None:
        self._model, self._where = model, where
        self.found: dict[str, Exponents] = {}

    def keep(self, exponents: Exponents, what: str) -> Exponents:
        """``exponents``, if the hardware holds them."""
        found = self.found[what] = exponents.all()
        if not EXPONENT_MIN <= found.low <= found.high <= EXPONENT_MAX:
            reached = found.high if found.high > EXPONENT_MAX else found.low
            raise LutraError(
                f"{self._where}: the exponent of {what} can reach {reached}, scales hold "
                f"{EXPONENT_MIN}..{EXPONENT_MAX}: rescale the checkpoint and pack it again"
            )
        return exponents

    def outputs(self, s: Exponents, layer: PackedLayer, name: str) -> Exponents:
        """Of the sums of a matrix of activations with scales ``s``."""
        return self.keep(s.times(Exponents.of(layer.linear(name).scale)), f"{name}'s sums")

    def normed(self, unit: Exponents, bits: int, norm: LoweredNorm, name: str) -> Exponents:
        """Of :func:`norm_quantize` of rows in ``unit`` whose magnitudes have ``bits`` bits."""
        eps, q_max = self._model.eps, q_max_of(self._model.a_bits)
        n, gamma = len(norm.gamma), int(np.abs(norm.gamma.astype(np.int64)).max(initial=1))
        # every block shift and every exponent of the unit on its own: the norm undoes both
        shift = np.arange(bits - _LEFT + 1)
        e = np.arange(int(unit.low), int(unit.high) + 1)[:, None]
        s1 = out = self.keep(Exponents(e + shift, e + shift), f"the {name}'s input")
        if norm.normalise:
            # rows that are shifted have an element of 15 bits
            least = np.where(shift > 0, 2 * _LEFT - 1, 1)
            sums = Exponents(least - 16, np.full_like(least, 2 * _LEFT + n.bit_length() - 15))
            square = self.keep(s1.times(s1), f"the square of the {name}'s input")
            mean = sums.times(Exponents.of(norm.inv_n)).times(square)
            mean = self.keep(mean, f"the {name}'s mean square")
            if eps.m:
                mean = self.keep(mean.plus(Exponents.of(eps)), f"the {name}'s mean square")
            root = self.keep(mean.rsqrt(), f"the {name}'s root")
            out = self.keep(s1.times(root), f"the {name}'s factor")
        lowered = 0 if self._model.a_groups is None else self._model.a_groups.shift_max
        step = _step(_LEFT + gamma.bit_length(), q_max).shifted(-norm.frac - lowered)
        return self.keep(out.times(step), f"the {name}'s output").all()

    def heads(self, s: Exponents, layer: PackedLayer) -> None:
        """Of queries, keys and values, and of scores."""
        m, found = self._model, dict[str, Exponents]()
        for name, q_max in (
            ("q_proj", Q_MAX),
            ("k_proj", q_max_of(m.key_bits)),
            ("v_proj", q_max_of(m.value_bits)),
        ):
            unit = self.outputs(s, layer, name)
            if layer.bias is not None or layer.head_norms is not None:
                unit = Exponents.of(FIXED_UNIT)
            if layer.head_norms is not None and name != "v_proj":
                log2_dim = (m.head_dim - 1).bit_length()
                squares = Exponents.of_ints(1, SQUARES_WIDTH, -(EPS_FRAC + log2_dim))
                unit = squares.rsqrt().shifted(-(FIXED_FRAC - NORM_SHIFT + layer.head_norms.frac))
                unit = self.keep(unit, f"the norm of {name}'s heads")
            # two products with int16 of the rotary table
            bits = max(ACC_MAX.bit_length(), NORM_WIDTH - 2) + ROPE_FRAC + 3
            head = _step(bits, q_max).shifted(-ROPE_FRAC).times(unit)
            found[name] = self.keep(head, f"{name}'s heads")
        self.keep(found["q_proj"].times(found["k_proj"]), "scores")


def _step(bits: int, q_max: int) -> Exponents:
    """Steps of the quantisation of rows whose largest magnitude has up to ``bits`` bits."""
    return Exponents.of_ints(1, bits).times(Exponents.of(scale_recip(scale_from_int(q_max))))


def layer_exponents(model: PackedModel, i: int, layer: PackedLayer) -> dict[str, Exponents]:
    """Bounds of the exponents of every scale in layer ``i``, by what they are scales of.

    LutraError if one of them can leave the hardware's bits.
    """
    chain, norms = _Chain(model, f"layer {i}"), layer_norms(model, layer)
    unit = Exponents.of(residual_unit(model))
    chain.heads(chain.normed(unit, SOURCE_WIDTH, norms.input, "input norm"), layer)
    s = chain.normed(unit, SOURCE_WIDTH, norms.attention, "attention norm")
    chain.outputs(s, layer, "o_proj")
    s = chain.normed(unit, SOURCE_WIDTH, norms.ffn_input, "ffn input norm")
    gate, up = (chain.outputs(s, layer, name) for name in ("gate_proj", "up_proj"))
    if model.gate is Gate.RELU2:
        squared = chain.keep(gate.times(gate), "the gate's square")
        unit, bits = squared.times(up), 3 * (GATE_WIDTH_MAX - 1) + 1
    else:
        unit, bits = up.shifted(-SILU.x_frac), SILU.x_width + ACC_MAX.bit_length()
    s = chain.normed(chain.keep(unit, "gated products"), bits, norms.ffn, "ffn norm")
    chain.outputs(s, layer, "down_proj")
    return chain.found


def head_exponents(model: PackedModel) -> dict[str, Exponents]:
    """Bounds of the exponents of the last norm's scales, as :func:`layer_exponents` gives them."""
    chain, unit = _Chain(model, "the last norm"), Exponents.of(residual_unit(model))
    chain.normed(unit, SOURCE_WIDTH, lower_norm(model.norm, model.hidden_size), "last norm")
    return chain.found

"""Widths of the codes of a model's matrices, and the name of the format that they make together."""

import math
from collections.abc import Callable

from lutra.models.decoder import Decoder
from lutra.quantize import DEFAULT_GROUP, Parts, default_format, float_bits, integers_of
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.packed import format_name
from lutra_golden.model.shapes import LINEARS

__all__ = ["Widths", "expected_format"]


class Widths:
    """Matrices added up one by one.

    ``ternary`` is true if all weights are -1, 0 and 1 in one group a matrix, ``trits`` if they are
    in groups or not; ``w_bits`` are the most bits of a code, ``group`` is the largest size that
    divides all groups, 0 if there are none.
    """

    def __init__(self) -> None:
        self.ternary = self.trits = True
        self.w_bits, self.group = 1, 0
        self._bits = self._n_weights = 0

    def add(self, w: GroupedWeights, n_weights: int | None = None) -> None:
        """Add a matrix, or as many weights of matrices like it."""
        n = w.codes.size if n_weights is None else n_weights
        self._bits += w.bits * n
        self._n_weights += n
        self.ternary &= w.ternary
        self.trits = self.trits and w.trits
        self.w_bits = max(self.w_bits, w.bits)
        if w.group < w.codes.shape[1] or not w.ternary:
            self.group = math.gcd(self.group, w.group)

    def format(self, a_bits: int, a_groups: ActivationGroups | None) -> str:
        """The name of the format, with the mean of the bits of all weights."""
        return format_name(
            self._bits / self._n_weights,
            a_bits,
            ternary=self.trits,
            group=self.group or None if self.trits or self.w_bits == 1 else None,
            a_groups=a_groups,
        )


def expected_format(model: Decoder, parts: Parts, kind_of: Callable[[int, str], str]) -> str:
    """Name of the format that a checkpoint is packed in with these ``parts``, unless another is
    asked for.

    ``kind_of`` is the kind of the matrix of a layer with this name; one of each kind is looked at.
    """
    first: dict[str, tuple[int, str]] = {}
    sizes: dict[str, int] = {}
    for i in range(model.config.num_hidden_layers):
        for name in LINEARS:
            kind = kind_of(i, name)
            first.setdefault(kind, (i, name))
            sizes[kind] = sizes.get(kind, 0) + math.prod(model.config.shape_of(name))
    widths = Widths()
    for i in sorted({i for i, _ in first.values()}):
        layer = model.layers[i]
        for kind, (at, name) in first.items():
            if at == i:
                weight = layer.linear(name)
                found = integers_of(
                    weight, float_bits(None), DEFAULT_GROUP, offsets=parts.offsets, ternary=False
                )
                widths.add(found.weights, sizes[kind])
    return widths.format(default_format(model).a_bits, parts.a_groups)

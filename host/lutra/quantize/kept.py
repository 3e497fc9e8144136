"""One table of what is kept of each type of a GGUF file when its matrices are packed."""

from dataclasses import dataclass

from lutra.checkpoints.gguf_blocks import GRIDS
from lutra.formats.gguf_types import TYPES, TensorType
from lutra.quantize import DEFAULT_GROUP, float_bits
from lutra.quantize.imported import fine_steps, packed_bits
from lutra_golden.matmul.format import TERNARY_NAME

__all__ = ["KEPT", "Kept"]

_TRITS = ("TQ1_0", "PTQ1_0")
_FOURTH = ("TQ2_0", "Q2_0", "Q2_0_G128", "PQ2_0")


@dataclass(frozen=True)
class Kept:
    """Format that a type's matrices run in, and what of them is exact or rounded."""

    runs_in: str
    exact: str


def _kept(kind: TensorType) -> Kept:
    if kind.dtype is not None:
        return Kept(
            f"W{float_bits(None)} in groups of {DEFAULT_GROUP}, or the format asked for",
            "rounded, unless all weights lie on grids",
        )
    if kind.name not in GRIDS:
        return Kept("ternary", "codes and scale")
    grid = GRIDS[kind.name]
    bits = TERNARY_NAME if kind.name in _TRITS else packed_bits(grid.bits, affine=False)
    text = f"W{bits} in groups of {grid.group}"
    if grid.affine:
        bound = "2^-14" if grid.products else "2^-15"
        exact = f"codes and steps; offsets to {bound} of the largest"
        return Kept(
            f"{text} with offsets, W{packed_bits(grid.bits, affine=True)} without",
            f"{exact}, without to 1/{4 * fine_steps(grid.bits)} of a step",
        )
    if kind.name in _TRITS:
        text += ", in one group if all scales are the same"
    elif kind.name in _FOURTH:
        text += f", W{TERNARY_NAME} without its fourth code"
    return Kept(text, "codes and scales")


KEPT = {kind.name: _kept(kind) for kind in TYPES}
"""By the names of types. Scales are exact within a factor of 32 of a matrix's largest if they are
float16, and to 2**-16 of the largest otherwise."""

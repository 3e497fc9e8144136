"""Format, group and stacks that a layer is quantised to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lutra.models.decoder import DecoderLayer
from lutra.quantize.calibration import Inputs
from lutra_golden.arith.quantize import ActivationGroups

__all__ = ["Method", "Target"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """``bits`` of each matrix by its name, groups, bits and groups of activations, and the size of
    a head.

    ``act_order`` is the order in which GPTQ goes through the columns: by falling power of the
    inputs.
    """

    bits: Mapping[str, int]
    group: int
    a_bits: int
    head_dim: int
    a_groups: ActivationGroups | None = None
    act_order: bool = False


Method = Callable[[DecoderLayer, Mapping[str, Inputs], Target], DecoderLayer]
"""A layer in floating point and its inputs, to a layer whose matrices are integers."""

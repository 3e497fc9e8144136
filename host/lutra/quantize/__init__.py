"""From a checkpoint's weights to integers, layer by layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from lutra.arguments import either
from lutra.checkpoints.weights import Dense, Grouped, Integers, Ternary, Weight
from lutra.models.decoder import Decoder, DecoderLayer
from lutra.parallel import each_of
from lutra.quantize.imported import from_grouped, from_ternary, packed_bits
from lutra.quantize.rtn import round_to_nearest
from lutra.quantize.vocabulary import default_head
from lutra_golden.arith.quantize import ACTIVATION_GROUPS, ActivationGroups
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import GROUPS, W_BITS, Format
from lutra_golden.model.capabilities import Capabilities
from lutra_golden.model.shapes import LINEARS

__all__ = [
    "DEFAULT_GROUP",
    "GROUPS",
    "Parts",
    "activation_groups",
    "check_format",
    "check_groups",
    "default_format",
    "default_parts",
    "float_bits",
    "group_of",
    "integers_of",
    "quantize_layer",
    "stage_of",
]

DEFAULT_GROUP = 64


class Parts(NamedTuple):
    """Groups of activations, True if offsets of groups of weights are kept, and bits of the codes
    of embedding and head, None for int16 and five trits."""

    a_groups: ActivationGroups | None
    offsets: bool
    head_bits: int | None


_TERNARY = Format(w_bits=2, a_bits=8, ternary=True)
_FLOAT_BITS = 8


def default_format(model: Decoder, *, offsets: bool = False) -> Format:
    """The format that a model runs in if no other is asked for: the one it is in already, or eight
    bits for weights in floating point. Activations have as many as the checkpoint was made for.
    Without ``offsets`` those of groups become zero points on a grid of eight bits."""
    weight = model.layers[0].q_proj
    if isinstance(weight, Ternary):
        return _TERNARY
    bits = _FLOAT_BITS
    if isinstance(weight, Grouped):
        bits = packed_bits(weight.bits, affine=weight.offset is not None and not offsets)
        if weight.group in GROUPS and _trits(weight):
            a_bits = model.made_for_a_bits
            return Format(w_bits=bits, a_bits=a_bits, ternary=True, group=weight.group)
    return Format(w_bits=bits, a_bits=model.made_for_a_bits)


def _trits(weight: Grouped) -> bool:
    """True if all weights are -1, 0 or 1 times the scale of their group."""
    if packed_bits(weight.bits, affine=weight.offset is not None) != _TERNARY.w_bits:
        return False
    return bool((weight.zero == 1).all()) and int(weight.codes.max(initial=0)) <= 2


def float_bits(format: Format | None) -> int:
    """Bits that matrices in floating point are rounded to: those of ``format``, if one is asked
    for and it is not for ternary weights of one scale."""
    one_scale = format is None or (format.ternary and format.group is None)
    return _FLOAT_BITS if format is None or one_scale else format.w_bits


def group_of(format: Format | None, group: int | None) -> int:
    """Weights that share a scale: what ``format`` or ``group`` says; LutraError if they differ."""
    named = None if format is None else format.group
    if named is not None and group not in (None, named):
        raise LutraError(
            f"format {format} is of groups of {named}, and group is {group}: leave group out"
        )
    return named or group or DEFAULT_GROUP


def stage_of(model: Decoder) -> str:
    """Name of the work on a model, for progress: integers stay what they are, and are packed."""
    weight = model.layers[0].q_proj
    rounds = isinstance(weight, Dense) or (isinstance(weight, Grouped) and weight.order is not None)
    return "quantising" if rounds else "packing"


def default_parts(
    model: Decoder,
    format: Format | None,
    a_group: int | None,
    offsets: bool | None,
    head_bits: int | None,
    capabilities: Capabilities,
) -> Parts:
    """Parts that not every device runs; what is None is chosen here.

    A ``format`` that was asked for has none, on any device. Without one they are what is closest
    to the checkpoint of what a device with these ``capabilities`` runs, but a model that was
    trained with one scale per token keeps it. An ``a_group`` of 0 is no groups, ``head_bits`` of 0
    are no codes.
    """
    groups, chosen = activation_groups(a_group or None), format is None
    if a_group is None and chosen and capabilities.activation_groups:
        trained = model.activation_bits is not None
        groups = None if trained or default_format(model).a_bits != 8 else ActivationGroups()
    keep = (chosen and capabilities.offsets) if offsets is None else offsets
    runs = chosen and capabilities.vocabulary
    bits = default_head(model.embed_tokens, model.lm_head, head_bits, runs=runs, offsets=keep)
    return Parts(groups, keep, bits)


def check_format(model: Decoder, format: Format) -> None:
    """LutraError if the weights of a checkpoint are of another kind than ``format``."""
    one_scale = format.ternary and format.group is None
    if one_scale and not isinstance(model.layers[0].q_proj, Ternary):
        choice = ", ".join(f"W{w}A{format.a_bits}" for w in (1, "1.58g128", *W_BITS[1:]))
        raise LutraError(
            f"the weights of {model.name} are not ternary, and {format} is for ternary weights "
            f"only: use format {choice}"
        )
    if not one_scale and isinstance(model.layers[0].q_proj, Ternary):
        raise LutraError(
            f"the weights of {model.name} are ternary and would gain nothing from more bits: use "
            f"format {_TERNARY}, not {format}"
        )


def activation_groups(size: int | None) -> ActivationGroups | None:
    """Groups of ``size`` activations, None for none; LutraError if there are none of this size."""
    if size is not None and size not in ACTIVATION_GROUPS:
        raise LutraError(f"a_group must be {either(ACTIVATION_GROUPS)}, not {size}")
    return None if size is None else ActivationGroups(size=size)


def check_groups(format: Format, a_groups: ActivationGroups | None) -> None:
    """LutraError if activations of ``format`` have no groups."""
    if a_groups is not None and format.a_bits != 8:
        raise LutraError(
            f"activations of {format.a_bits} bits need no groups: leave --a-group out, or give a "
            "format with A8"
        )


def quantize_layer(
    layer: DecoderLayer,
    bits: Mapping[str, int],
    group: int,
    *,
    offsets: bool = False,
    ternary: bool = False,
) -> DecoderLayer:
    """One layer with integer weights; those in floating point are rounded to nearest, to ``bits``
    of each matrix by its name, or ``ternary`` in groups. ``offsets`` of groups stay what they are,
    or become zero points."""

    def integers(name: str) -> Integers:
        weight = layer.linear(name)
        return integers_of(weight, bits[name], group, offsets=offsets, ternary=ternary)

    return replace(layer, **dict(zip(LINEARS, each_of(integers, LINEARS), strict=True)))


def integers_of(weight: Weight, bits: int, group: int, *, offsets: bool, ternary: bool) -> Integers:
    """One matrix as :func:`quantize_layer` has it."""
    if isinstance(weight, Integers):
        return weight
    if isinstance(weight, Ternary):
        return from_ternary(weight)
    if isinstance(weight, Grouped) and weight.order is None:
        return from_grouped(weight, offsets=offsets)
    dense = weight if isinstance(weight, Dense) else Dense(weight.dequantized())
    return round_to_nearest(dense.dequantized(), bits, group, ternary=ternary)

"""Parts of packed models that not every device runs yet, and their refusal."""

from dataclasses import dataclass

from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

__all__ = ["COMMON_PARTS", "EVERY_PART", "Capabilities", "check_capabilities"]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Parts that a device runs, of those that not every device does: activations in groups, groups
    of weights with offsets, and embedding and head in codes."""

    activation_groups: bool = False
    offsets: bool = False
    vocabulary: bool = False


COMMON_PARTS = Capabilities()
"""Parts that every device runs."""
EVERY_PART = Capabilities(activation_groups=True, offsets=True, vocabulary=True)


def check_capabilities(
    model: PackedModel,
    runner: str,
    *,
    activation_groups: bool = False,
    offsets: bool = False,
    vocabulary: bool = False,
) -> None:
    """LutraError if ``model`` has a part that its runner does not name as one that it has.

    ``runner`` begins the message: ``device cuda``, ``an accelerator``.
    """
    if model.a_groups is not None and not activation_groups:
        raise LutraError(
            f"{runner} has no activations in groups yet, the model's are in groups of "
            f"{model.a_groups.size}: run it with -dev cpu, cuda or golden, or pack it again "
            "without --a-group"
        )
    if model.offsets and not offsets:
        raise LutraError(
            f"{runner} has no groups of weights with offsets yet: run the model with -dev cpu, "
            "cuda or golden, or pack it again without --offsets"
        )
    if model.vocabulary is not None and not vocabulary:
        raise LutraError(
            f"{runner} has no embedding and head of {model.vocabulary.head.stored.bits} bits yet: "
            "run the model with -dev cpu or golden, or pack it again without --head"
        )

"""Parts of packed models that not every device runs, and their refusal."""

from dataclasses import dataclass

from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

__all__ = ["COMMON_PARTS", "EVERY_PART", "Capabilities", "check_vocabulary"]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Parts that a device runs, of those that not every device does: activations in groups, groups
    of weights with offsets, and embedding and head in codes."""

    activation_groups: bool = False
    offsets: bool = False
    vocabulary: bool = False


COMMON_PARTS = Capabilities()
"""Parts that every device runs, those too whose hardware is built already."""
EVERY_PART = Capabilities(activation_groups=True, offsets=True, vocabulary=True)


def check_vocabulary(model: PackedModel, runner: str) -> None:
    """LutraError if ``model`` has embedding and head in codes, which its runner has not.

    ``runner`` begins the message: ``device cuda``, ``an accelerator``.
    """
    if model.vocabulary is not None:
        raise LutraError(
            f"{runner} has no embedding and head of {model.vocabulary.head.stored.bits} bits yet: "
            "run the model with -dev cpu or golden, or pack it again without --head"
        )

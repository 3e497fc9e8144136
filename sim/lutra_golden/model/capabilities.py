"""Parts of packed models that not every device runs."""

from dataclasses import dataclass

__all__ = ["COMMON_PARTS", "EVERY_PART", "Capabilities"]


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

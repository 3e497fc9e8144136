"""A layer's matrices: their names, their shapes, and the gate between them."""

from enum import Enum

__all__ = ["LINEARS", "Gate", "linear_shapes"]

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""A layer's matrices, under Hugging Face's names."""


class Gate(Enum):
    """Activation function of the gate in the feed-forward part."""

    RELU2 = "relu2"
    SILU = "silu"


def linear_shapes(hidden: int, intermediate: int, q: int, kv: int) -> dict[str, tuple[int, int]]:
    """Rows and depth of a layer's matrices; ``q`` and ``kv`` are the widths of all heads."""
    return {
        "q_proj": (q, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, q),
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }

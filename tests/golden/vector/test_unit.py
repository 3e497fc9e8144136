"""Parameters of the vector unit: what is refused."""

import re
from typing import Any

import pytest

from lutra_golden.vector.unit import VectorParams


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"hidden_max": 0}, ValueError, "hidden_max must be positive, not 0"),
        ({"hidden_max": 20}, ValueError, "hidden_max must be a multiple of 8 lanes, not 20"),
        ({"param_words": 48}, ValueError, "param_words must be a power of two, not 48"),
        ({"param_words": 64.0}, TypeError, "param_words must be an integer, not 64.0"),
        ({"gate_width": 1}, ValueError, "gate_width must be in 2..21, not 1"),
        ({"gate_width": 22}, ValueError, "gate_width must be in 2..21, not 22"),
        ({"qkv_bias": 1}, TypeError, "qkv_bias must be a bool, not 1"),
        ({"qk_norm": "no"}, TypeError, "qk_norm must be a bool, not 'no'"),
    ],
)
def test_illegal_values_are_refused(
    changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        VectorParams(**changes)

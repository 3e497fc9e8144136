"""Factors of a rotary embedding's frequencies, as GGUF files have them."""

from pathlib import Path

import numpy as np
import pytest

from lutra.formats.config_file import ConfigFile
from lutra.models.rope import Rope, read_rope
from lutra_golden.errors import LutraError


def test_each_pair_has_its_factor() -> None:
    factors = (1.0, 1.5, 4.0, 8.0)
    rope = Rope(theta=100.0, kind="factors", factors=factors)
    plain = Rope(theta=100.0).frequencies(8, 32)
    np.testing.assert_array_equal(rope.frequencies(8, 32), plain / np.array(factors))
    assert rope.magnitude == 1


def test_factors_in_a_configuration() -> None:
    content = {
        "max_position_embeddings": 32,
        "rope_theta": 100.0,
        "rope_parameters": {"rope_type": "factors", "factors": [1, 2.5]},
    }
    assert read_rope(ConfigFile(Path("x"), content)).factors == (1.0, 2.5)
    content["rope_parameters"] = {"rope_type": "factors", "factors": [1, "2"]}
    with pytest.raises(LutraError, match=r"^x: factors must be numbers, not '2'$"):
        read_rope(ConfigFile(Path("x"), content))
    content["rope_parameters"] = {"rope_type": "factors"}
    message = (
        "^x: rope_parameters: factors must be given with the kind 'factors', and with no other$"
    )
    with pytest.raises(LutraError, match=message):
        read_rope(ConfigFile(Path("x"), content))


@pytest.mark.parametrize(
    ("kind", "factors", "message"),
    [
        ("factors", (), "factors must be given with the kind 'factors', and with no other"),
        ("default", (1.0,), "factors must be given with the kind 'factors', and with no other"),
        ("factors", (1.0, 0.0), "factors must be positive, not 0.0"),
        ("factors", (float("nan"),), "factors must be positive, not nan"),
    ],
)
def test_bad_factors(kind: str, factors: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Rope(kind=kind, factors=factors)


def test_the_number_of_factors() -> None:
    rope = Rope(kind="factors", factors=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"^factors must be 4, not 2$"):
        rope.frequencies(8, 32)

"""The mixpe engine's model: its limits, and every product by shift and add."""

import numpy as np
import pytest

from lutra_golden.matmul.mac import Adders
from lutra_golden.matmul.mixpe import MixpeParams


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"w_width": 2}, "w_width of the mixpe engine must be 4 or 8, not 2"),
        ({"adders": 1}, "adders of the mixpe engine must be 2 (chains) or 3 (cells), not 1"),
        ({"adders": 4}, "adders of the mixpe engine must be 2 (chains) or 3 (cells), not 4"),
        ({"w_width": 8}, "max_planes must give codes of at most 8 bits, not 2"),
        ({"a_width": 9}, "a_width must be 8 or 16, not 9"),
        ({"step_rows": 4}, "step_rows must be a power of two from 8 on, not 4"),
        ({"step_depth": 0}, "step_depth must be positive, not 0"),
        (
            {"step_depth": 12},
            "depth_tile (the group) must be a multiple of step_depth, not 64 of 12",
        ),
    ],
)
def test_rejects_values(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        MixpeParams(**values)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_rejects_kinds() -> None:
    with pytest.raises(TypeError) as error:
        MixpeParams(adders="cells")  # type: ignore[arg-type]
    assert str(error.value) == "adders must be an integer, not 'cells'"


def test_sizes_of_a_word() -> None:
    params = MixpeParams()
    assert (params.adders, params.radix) == (Adders.CHAINS, 16)
    assert (params.steps, params.digit_bits) == (4, 512)
    assert MixpeParams(w_width=8, max_planes=1).digit_bits == 1024


@pytest.mark.parametrize("w_width", [4, 8])
def test_product(w_width: int) -> None:
    params = MixpeParams(w_width=w_width, max_planes=8 // w_width)
    a, digit = np.arange(-128, 128)[:, None], np.arange(params.radix)
    assert (params.product(a, digit) == np.multiply.outer(np.arange(-128, 128), digit)).all()


@pytest.mark.parametrize(("step_depth", "terms"), [(1, 1), (15, 8), (16, 8)])
def test_an_odd_activation_is_a_term_of_its_own(step_depth: int, terms: int) -> None:
    assert MixpeParams(step_depth=step_depth, depth_tile=step_depth * 4).n_terms == terms

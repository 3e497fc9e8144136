"""The mac engine's model: its limits, and every product."""

import numpy as np
import pytest

from lutra_golden.matmul.mac import Adders, MacParams, chain_latency


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"w_width": 3}, "w_width of the mac engine must be 2, 4 or 8, not 3"),
        ({"w_width": 1}, "w_width of the mac engine must be 2, 4 or 8, not 1"),
        ({"adders": 4}, "adders must be 1 (DSP), 2 (chains) or 3 (cells), not 4"),
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
        MacParams(**values)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_rejects_kinds() -> None:
    with pytest.raises(TypeError) as error:
        MacParams(adders="cells")  # type: ignore[arg-type]
    assert str(error.value) == "adders must be an integer, not 'cells'"


def test_sizes_of_a_word() -> None:
    params = MacParams()
    assert (params.adders, params.radix, params.steps, params.digit_bits) == (
        Adders.DSP,
        16,
        4,
        512,
    )
    assert MacParams(w_width=2, max_planes=4).digit_bits == 256
    assert MacParams(w_width=8, max_planes=1).digit_bits == 1024


@pytest.mark.parametrize("w_width", [2, 4, 8])
def test_product(w_width: int) -> None:
    params = MacParams(w_width=w_width, max_planes=8 // w_width)
    a, digit = np.arange(-128, 128)[:, None], np.arange(params.radix)
    assert (params.product(a, digit) == np.multiply.outer(np.arange(-128, 128), digit)).all()


@pytest.mark.parametrize(
    ("w_width", "step_depth", "rows", "cascade"), [(4, 16, 2, 16), (8, 16, 2, 4), (8, 8, 2, 4)]
)
def test_rows_share_a_dsp_while_their_sums_fit_26_bits(
    w_width: int, step_depth: int, rows: int, cascade: int
) -> None:
    params = MacParams(w_width=w_width, step_depth=step_depth, max_planes=1)
    assert (params.rows_per_dsp, params.cascade) == (rows, cascade)


@pytest.mark.parametrize(("terms", "w_width", "cycles"), [(1, 1, 1), (2, 1, 2), (8, 4, 4)])
def test_a_chain_has_two_levels_a_cycle(terms: int, w_width: int, cycles: int) -> None:
    assert chain_latency(terms, w_width) == cycles

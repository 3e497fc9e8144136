"""The least shift of a model's sums, at the ends of what an accumulator holds."""

import pytest

from lutra_golden.errors import LutraError
from lutra_golden.model.limits import ACC_MAX, SHIFT_MAX, least_shift


@pytest.mark.parametrize(
    ("peak", "shift"),
    [(0, 0), (100, 0), (101, 1), (200, 1), (201, 2), (401, 2), (402, 3), (801, 3), (804, 4)],
)
def test_no_rounded_sum_passes_the_limit(peak: int, shift: int) -> None:
    """Half up: 201 / 2 is 101, and 401 / 4 is 100."""
    assert least_shift(peak, 1, 100) == shift


def test_the_largest_activation_counts() -> None:
    assert [least_shift(100, q_max, 12700) for q_max in (127, 128, 254, 255)] == [0, 1, 1, 2]


@pytest.mark.parametrize("least", [0, 1, 3, SHIFT_MAX])
def test_it_is_not_below_what_is_asked_for(least: int) -> None:
    assert least_shift(1, 127, ACC_MAX, least) == least


def test_the_largest_shift() -> None:
    assert least_shift(ACC_MAX << SHIFT_MAX, 1, ACC_MAX) == SHIFT_MAX
    with pytest.raises(
        LutraError, match=r"^sums of up to \d+ do not fit .* a shift of 24: the mod"
    ):
        least_shift(ACC_MAX << SHIFT_MAX + 1, 1, ACC_MAX)

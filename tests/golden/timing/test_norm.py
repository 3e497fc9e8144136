"""Cycles of the norm unit; its bench measures the formula."""

import pytest

from lutra_golden.control.isa import NormSource
from lutra_golden.timing.norm import norm_cycles


@pytest.mark.parametrize(
    ("n_words", "n_tokens", "cycles", "swiglu_cycles"),
    [(32, 0, 1, 1), (32, 1, 128, 148), (32, 8, 800, 820), (40, 2, 269, 291)],
)
def test_cycles(n_words: int, n_tokens: int, cycles: int, swiglu_cycles: int) -> None:
    for source in NormSource:
        expected = swiglu_cycles if source == NormSource.SWIGLU else cycles
        assert norm_cycles(n_words, n_tokens, source) == expected


def test_long_commands_take_three_passes() -> None:
    for n_words in (35, 64, 99):
        assert norm_cycles(n_words, 5, NormSource.RESIDUAL) == 3 * n_words * 5 + 29
        assert norm_cycles(n_words, 5, NormSource.SWIGLU) == 3 * n_words * 5 + 29 + 22

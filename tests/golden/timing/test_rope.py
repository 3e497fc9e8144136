"""Cycles of rotary embedding; its bench measures the formula."""

from lutra_golden.core.configs import NANO
from lutra_golden.timing.rope import rope_cycles


def test_cycles() -> None:
    assert [rope_cycles(NANO, n) for n in (0, 1, 8)] == [1, 122, 738]
    assert rope_cycles(NANO, 1, bias=True) == 182
    assert rope_cycles(NANO, 1, qk_norm=True) == 220
    assert rope_cycles(NANO, 1, bias=True, qk_norm=True) == 312
    assert rope_cycles(NANO, 1, bias=True, centre=True) == 312

"""Cycles of the attention unit; its bench measures the formula."""

import pytest

from lutra_golden.core.configs import NANO
from lutra_golden.timing.attention import AttentionTiming

TIMING = AttentionTiming(NANO)


def test_stages() -> None:
    stages = (TIMING.weigh, TIMING.multiply, TIMING.sum, TIMING.dot, TIMING.score)
    assert stages == (6, 9, 10, 13, 16)


@pytest.mark.parametrize("n", [64, 128, 256])
def test_decode_reads_each_key_and_value_once(n: int) -> None:
    """For both heads, and a beat of scales for four positions."""
    assert TIMING.cycles(n - 1, 1) == 4 * n + n // 4 + 80


def test_pairs_of_several_cycles() -> None:
    """A smaller tree, and a cycle in which the parts are added."""
    eighth = AttentionTiming(NANO.with_(pair_cycles=8))
    assert (eighth.weigh, eighth.sum, eighth.dot, eighth.score) == (6, 10, 13, 16)
    half = AttentionTiming(NANO.with_(pair_cycles=2))
    assert (half.sum, half.dot, half.score) == (10, 14, 17)
    # of both heads, keys and values
    assert eighth.cycles(99, 1) == TIMING.cycles(99, 1) + 2 * 2 * 100 * 7


def test_cycles() -> None:
    assert TIMING.cycles(0, 0) == 1
    assert TIMING.cycles(0, 8) == 527
    assert TIMING.cycles(200, 1, window=32) == TIMING.cycles(31, 1) + 1
    assert TIMING.cycles(200, 1, first_beat=42) == TIMING.cycles(200, 1) + 40

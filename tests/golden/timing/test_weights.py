"""Weights that come before they are needed: how many, and what is waited for."""

from dataclasses import replace

import pytest

from lutra_golden.core.configs import KV260, NANO
from lutra_golden.timing.boards import BOARD_PROFILES, board_timing
from lutra_golden.timing.memory import NANO_MEMORY
from lutra_golden.timing.weights import WeightStream

ROOM = 512 + 9 * 8
"""Words that nano's ring holds, and nine bursts of eight beats."""


def test_words_come_until_there_is_no_room() -> None:
    weights = WeightStream(NANO, NANO_MEMORY)
    assert (weights.word_cycles, weights.missing_cycles) == (1, ROOM)
    weights.flow(100)
    assert (weights.ahead, weights.missing_cycles) == (100, ROOM - 100)
    weights.flow(10_000)
    assert (weights.ahead, weights.missing_cycles) == (ROOM, 0)


@pytest.mark.parametrize(
    ("ahead", "n_words", "cycles", "left"),
    [
        # all have come; more come meanwhile
        (300, 200, 210, 100 + 105),
        # the last of them 200 cycles after the beginning, then the tail
        (100, 200, 210, 0 + 5),
        (0, 200, 408, 0 + 4),
        (0, 50, 108, 0 + 4),
    ],
)
def test_a_product_ends_behind_its_last_word(
    ahead: int, n_words: int, cycles: int, left: int
) -> None:
    """A word in two cycles, an engine that needs ten cycles more than words."""
    weights = WeightStream(NANO, replace(NANO_MEMORY, rates=((1, 2), (1, 1))))
    weights.flow(2 * ahead)
    assert weights.product(n_words, n_words + 10, 8) == cycles
    assert weights.ahead == left


def test_a_full_ring_starts_late() -> None:
    """A burst of eight words is asked for once there is room, and comes after the latency."""
    weights = WeightStream(NANO, replace(NANO_MEMORY, rates=((1, 2), (1, 1))))
    weights.flow(10_000)
    late = 8 + NANO_MEMORY.read_latency + 6
    assert weights.product(3000, 3010, 8) == late + 2 * (3000 - ROOM) + 8
    weights.flow(10_000)
    assert weights.product(100, 110, 8) == 110
    assert weights.ahead == pytest.approx(ROOM - 100 + (110 - late) / 2)


def test_there_is_no_more_room_behind_a_product() -> None:
    weights = WeightStream(NANO, NANO_MEMORY)
    weights.flow(100)
    assert weights.product(10, 5000, 8) == 5000
    assert weights.ahead == ROOM


def test_the_memory_of_a_board() -> None:
    """Eight words are 15 beats of four ports of 128 bits; refresh takes 350 ns of 7.8 us."""
    memory = board_timing(BOARD_PROFILES["kv260"], KV260)
    assert memory.refreshed == pytest.approx(1 - 0.35 / 7.8, rel=0.01)
    weights = WeightStream(KV260, memory)
    assert weights.word_cycles == pytest.approx(15 / 8 / memory.refreshed)
    room = 512 + 5 * 32 / (15 / 8)
    assert weights.missing_cycles == pytest.approx(room * weights.word_cycles)
    # what the memory gives to all ports is less than they could carry
    slow = WeightStream(KV260, replace(memory, total_rate=(32, 1)))
    assert slow.word_cycles == pytest.approx(2 * weights.word_cycles)
    assert (memory.mean_read_latency, memory.mean_write_latency) == (67.5, 37.5)
    assert NANO_MEMORY.refreshed == 1

"""Greedy tokens at a time: twice as many while text does not wait for long."""

import pytest

from lutra.serving.pace import RUN_S, Pace


def grown(most: int, seconds_per_token: float, n: int) -> list[int]:
    """Tokens of the first ``n`` calls of a device with this speed."""
    pace, sizes = Pace(most), list[int]()
    for _ in range(n):
        sizes.append(pace.n_tokens)
        pace.took(pace.n_tokens, pace.n_tokens * seconds_per_token)
    return sizes


@pytest.mark.parametrize(
    ("most", "seconds", "sizes"),
    [
        (32, 0.0, [1, 2, 4, 8, 16, 32, 32]),
        (20, 0.0, [1, 2, 4, 8, 16, 20, 20]),
        (1, 0.0, [1, 1, 1]),
        (32, RUN_S / 5, [1, 2, 4, 4, 4]),
        (32, RUN_S / 4, [1, 2, 4, 4, 4]),
        (32, RUN_S / 1.5, [1, 1, 1]),
        (32, 10 * RUN_S, [1, 1, 1]),
    ],
)
def test_tokens_at_a_time(most: int, seconds: float, sizes: list[int]) -> None:
    assert grown(most, seconds, len(sizes)) == sizes


def test_a_device_that_becomes_slower_makes_fewer() -> None:
    pace = Pace(32)
    for _ in range(3):
        pace.took(pace.n_tokens, 0.0)
    assert pace.n_tokens == 8
    pace.took(8, 1.01 * RUN_S)
    assert pace.n_tokens == 4
    pace.took(4, 0.9 * RUN_S)
    assert pace.n_tokens == 4


def test_a_call_that_ended_early_counts_by_its_tokens() -> None:
    pace = Pace(32)
    pace.took(1, 0.0)
    assert pace.n_tokens == 2
    pace.took(1, 0.4 * RUN_S)
    assert pace.n_tokens == 2

"""Timing of the memory behind the ports: legal values, and profiles drawn from a seed."""

from typing import Any

import pytest

from lutra_golden.timing.memory import MemoryTiming, random_timing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stall": 1.0}, r"stall must be in \[0, 1\), not 1\.0"),
        ({"read_latency": 0}, r"read_latency must be in 1\.\.4294967295, not 0"),
        ({"rates": ((1, 1), (3, 2))}, r"beats of rates\[1\] must be in 1\.\.2, not 3"),
        ({"rates": ((1, 1 << 17),)}, r"cycles of rates\[0\] must be in 1\.\.65536, not 131072"),
        ({"rates": ()}, "rates must have one for the first port"),
        ({"total_rate": (0, 1)}, r"bytes of total_rate must be in 1\.\.4294967295, not 0"),
        ({"total_rate": (5, 0)}, r"cycles of total_rate must be in 1\.\.4294967295, not 0"),
        ({"refresh_cycles": 5}, r"refresh_cycles must be in 0\.\.0, not 5"),
        ({"seed": -1}, r"seed must be in 0\.\.4294967295, not -1"),
    ],
)
def test_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}$"):
        MemoryTiming(**options)
    with pytest.raises(TypeError, match=r"^max_outstanding must be an integer, not 1\.5$"):
        MemoryTiming(max_outstanding=1.5)  # type: ignore[arg-type]


def test_the_last_rate_is_that_of_all_ports_behind_it() -> None:
    timing = MemoryTiming(rates=((1, 2), (2, 3)))
    assert [timing.rate(port) for port in range(4)] == [(1, 2), (2, 3), (2, 3), (2, 3)]


def test_random_timing_follows_from_its_seed() -> None:
    assert [random_timing(seed) for seed in range(9)] == [random_timing(seed) for seed in range(9)]
    assert len({random_timing(seed) for seed in range(9)}) == 9

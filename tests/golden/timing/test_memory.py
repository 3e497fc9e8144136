"""Timing of the memory behind the ports: legal values, and profiles drawn from a seed."""

from typing import Any

import pytest

from lutra_golden.timing.memory import MemoryTiming, random_timing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stall": 1.0}, r"stall must be in \[0, 1\), not 1\.0"),
        ({"read_latency": 0}, r"read_latency must be in 1\.\.4294967295, not 0"),
        ({"weight_rate": (3, 2)}, r"weight_rate\[0\] must be in 1\.\.2, not 3"),
        ({"refresh_cycles": 5}, r"refresh_cycles must be in 0\.\.0, not 5"),
        ({"seed": -1}, r"seed must be in 0\.\.4294967295, not -1"),
    ],
)
def test_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}$"):
        MemoryTiming(**options)
    with pytest.raises(TypeError, match=r"^max_outstanding must be an integer, not 1\.5$"):
        MemoryTiming(max_outstanding=1.5)  # type: ignore[arg-type]


def test_random_timing_follows_from_its_seed() -> None:
    assert [random_timing(seed) for seed in range(9)] == [random_timing(seed) for seed in range(9)]
    assert len({random_timing(seed) for seed in range(9)}) == 9

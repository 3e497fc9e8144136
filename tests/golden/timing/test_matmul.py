"""Cycles of the matmul engines; their bench measures the formulas."""

import pytest

from lutra_golden.core.configs import NANO, with_engine
from lutra_golden.timing.matmul import MatmulTiming


@pytest.mark.parametrize(
    ("engine", "lead", "spacing", "latency", "cycles"),
    [
        ("ternary", 13, 15, 7, (84, 340)),
        ("lut", 8, 10, 9, (81, 337)),
        ("mixpe", 1, 8, 11, (268, 1292)),
        ("mac", 1, 8, 25, (282, 1306)),
    ],
)
def test_cycles(
    engine: str, lead: int, spacing: int, latency: int, cycles: tuple[int, int]
) -> None:
    timing = MatmulTiming(with_engine(NANO, engine).matmul)
    assert (timing.lead, timing.spacing, timing.latency) == (lead, spacing, latency)
    assert timing.empty_latency == latency  # a block drains in one cycle
    one, five = timing.cycles(4, 8, 2, 1), timing.cycles(4, 8, 2, 5, token_first=3)
    assert (one, five) == cycles

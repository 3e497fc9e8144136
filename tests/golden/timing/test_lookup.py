"""Cycles of the lookup engine; its bench measures the formulas."""

import pytest

from lutra_golden.core.configs import NANO
from lutra_golden.matmul.lookup import BITS, LookupParams
from lutra_golden.timing.lookup import LookupTiming
from lutra_golden.timing.matmul import MatmulTiming, engine_timing


def test_each_engine_has_its_cycles() -> None:
    params = LookupParams()
    assert engine_timing(params) == LookupTiming(params)
    assert engine_timing(NANO.matmul) == MatmulTiming(NANO.matmul)


@pytest.mark.parametrize(
    ("planes", "one", "two_groups"),
    [
        # 3 or 5 loads, 2, then for each pass the walk, 4 words and 3 of skew; 9 at the end
        (1, 3 + 2 + 2 * 37 - 4 + 9, 3 + 2 + 4 * 37 - 4 + 9),
        (BITS | 1, 5 + 2 + 2 * 39 - 4 + 9, 5 + 2 + 4 * 39 - 4 + 9),
        (BITS | 4, 5 + 2 + 8 * 39 - 4 + 9, 5 + 2 + 16 * 39 - 4 + 9),
    ],
)
def test_cycles(planes: int, one: int, two_groups: int) -> None:
    timing = LookupTiming(LookupParams(pass_tokens=16))
    assert (timing.skew, timing.latency, timing.empty_latency) == (3, 9, 9)
    assert (timing.spacing, timing.lead) == (36, 39)
    assert timing.cycles(2, 8, planes, 1, token_first=3) == one
    assert timing.cycles(2, 8, planes, 2, token_first=7) == two_groups

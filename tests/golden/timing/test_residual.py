"""Cycles of the residual addition and of logits; their benches measure the formulas."""

from lutra_golden.timing.residual import logits_cycles, residual_cycles


def test_cycles() -> None:
    assert [residual_cycles(32, n) for n in (0, 1, 8)] == [1, 40, 278]
    assert [logits_cycles(64, first, n) for first, n in ((5, 0), (0, 1), (7, 1))] == [3, 73, 80]

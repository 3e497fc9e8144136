"""The bench of the driver: what it counts."""

import pytest

from lutra.devices.accelerator import bench


def test_calls_of_single_and_greedy_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_BATCHES", 1)
    found = bench.measure()
    assert found["calls"] == {"write": 1, "ring": 1, "wait": 1, "read": 2}
    assert (found["n_calls"], found["greedy_n_calls"], found["greedy_tokens"]) == (5, 4, 25)
    assert found["kind"] == "measured"

"""Shares of right guesses: what was expected, what came, and what came last."""

import pytest

from lutra.serving.speculation.record import Record


def test_what_is_expected_counts_like_some_guesses() -> None:
    record = Record((0.5, 0.9), weight=4, keep=1.0)
    assert list(record.shares()) == [0.5, 0.9]
    for right in (True, True, False, True):
        record.note(1, right)
    assert record.shares() == pytest.approx([0.5, (4 * 0.9 + 3) / 8])


def test_later_guesses_count_more() -> None:
    record = Record((0.5,), weight=1, keep=0.5)
    record.note(0, True)
    record.note(0, False)
    assert record.shares() == pytest.approx([(0.5 + 0.5) / (1.5 + 1)])
    record.fade()
    assert record.shares() == pytest.approx([(0.25 + 0.5) / (0.75 + 1)])
    for _ in range(60):
        record.fade()
    assert record.shares() == pytest.approx([0.5])


def test_a_record_tells_the_one_before_it() -> None:
    common = Record((0.5,), weight=8, keep=1.0)
    first, second = (Record(common, weight=4, keep=1.0) for _ in range(2))
    for _ in range(8):
        first.note(0, True)
    assert common.shares() == pytest.approx([0.75])
    assert second.shares() == pytest.approx([0.75])
    assert first.shares() == pytest.approx([(8 + 4 * 0.75) / 12])

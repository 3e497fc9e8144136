"""The watchdog's model by hand."""

from lutra_golden.control.watchdog import expiries


def test_by_hand() -> None:
    moves = [False, False, True, False, False, False, False, False, False, False]
    assert expiries(3, moves) == [6]
    assert expiries(2, moves) == [2, 5, 8]
    assert expiries(0, moves) == []
    assert expiries(100, moves) == []
    assert expiries(1, [True] * 5) == []

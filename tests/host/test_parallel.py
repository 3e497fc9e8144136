"""Work that cores share: every item once, in order, and its errors."""

import threading

import pytest

from lutra import parallel
from lutra.parallel import each_of


@pytest.mark.parametrize("cores", [1, 2, 7])
def test_items_keep_their_order(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "available_cores", lambda: cores)
    for n in (0, 1, 2, 20):
        assert each_of(lambda i: i * i, range(n)) == [i * i for i in range(n)]


def test_cores_work_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "available_cores", lambda: 3)
    meeting = threading.Barrier(3)  # nobody leaves before all are there
    assert sorted(each_of(lambda _: meeting.wait(60), range(3))) == [0, 1, 2]


def test_an_error_is_that_of_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "available_cores", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        each_of(lambda i: 1 // i, [1, 0, 2])

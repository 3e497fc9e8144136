"""Work that cores share: every item once, in order, and its errors; threads of BLAS."""

import threading

import pytest

from lutra import parallel
from lutra.parallel import ahead, each_of, one_blas_thread


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


def test_the_next_item_is_at_work_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]

    def work(i: int) -> int:
        begun[i].set()
        return i * i

    found: list[int] = []
    for square in ahead(work, range(4)):
        if len(found) < 3:
            assert begun[len(found) + 1].wait(60)
        if len(found) < 2:
            assert not begun[len(found) + 2].is_set()  # and no more than one is kept
        found.append(square)
    assert found == [0, 1, 4, 9]
    assert list(ahead(work, [])) == []


def test_an_error_ahead_comes_when_its_item_does() -> None:
    numbers = ahead(lambda i: 1 // i, [1, 0, 1])
    assert next(numbers) == 1
    with pytest.raises(ZeroDivisionError):
        next(numbers)


def test_blas_has_one_thread_while_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    n_threads, seen = [6], list[int]()

    def put(n: int) -> None:
        n_threads[0] = n

    monkeypatch.setattr(parallel, "_open_blas", lambda: (lambda: n_threads[0], put))
    monkeypatch.setattr(parallel, "available_cores", lambda: 2)
    with one_blas_thread():
        each_of(lambda _: seen.append(n_threads[0]), range(3))
        seen.append(n_threads[0])
    assert seen == [1, 1, 1, 1]
    assert n_threads == [6]
    monkeypatch.setattr(parallel, "_open_blas", lambda: None)
    assert each_of(abs, [-1, -2]) == [1, 2]

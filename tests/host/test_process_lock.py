"""The lock of a process is taken by its threads, and new in a child."""

import os
import threading

import pytest

from lutra.process_lock import ProcessLock


def test_one_thread_at_a_time_as_often_as_it_likes() -> None:
    owner = ProcessLock()
    assert not owner.is_foreign()
    lock = owner.adopt()
    assert lock is owner.lock
    refused = list[bool]()
    with lock, owner.adopt():
        thread = threading.Thread(target=lambda: refused.append(not lock.acquire(blocking=False)))
        thread.start()
        thread.join()
    assert refused == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_adopts_it_once() -> None:
    """A child leaves what the parent held, and keeps a lock of its own."""
    owner = ProcessLock()
    read, write = os.pipe()
    with owner.lock:
        child = os.fork()
        if child == 0:
            held, foreign = owner.lock, owner.is_foreign()
            own = owner.adopt()
            said = (foreign, own is not held, owner.is_foreign(), owner.adopt() is own)
            os.write(write, repr(said).encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert answer.read() == "(True, True, False, True)"
    os.waitpid(child, 0)
    assert owner.adopt() is owner.lock

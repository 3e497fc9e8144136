"""A lock that belongs to one process and does not outlive a fork."""

import os
import threading

__all__ = ["ProcessLock"]


class ProcessLock:
    """The lock by which the threads of one process take turns.

    A fork copies it as it is, taken for ever if a thread of the parent held it: in the child,
    :meth:`adopt` gives a new one.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        """The process that the lock belongs to."""
        self.lock = threading.RLock()

    def is_foreign(self) -> bool:
        """True in a process that was forked from the one that the lock belongs to."""
        return os.getpid() != self.pid

    def adopt(self) -> threading.RLock:
        """The lock of this process: a new one if the old one is foreign."""
        if self.is_foreign():
            self.lock, self.pid = threading.RLock(), os.getpid()
        return self.lock

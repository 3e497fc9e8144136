"""Entry point of ``lutra`` and ``python -m lutra``: Ctrl-C ends it in one line from the start.

SIGTERM ends it with what it has started.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns the exit code."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        # an exception amid imports would leave as a traceback, or as another exception
        signal.signal(signal.SIGINT, _leave)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # so that what a command has started, such as compilers, ends with it
        signal.signal(signal.SIGTERM, _terminate)
    _keep_freed_memory()
    from lutra.commands.cli import main as run

    try:
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return 130


def _keep_freed_memory() -> None:
    """Have glibc keep up to 64 MiB that were freed for the next arrays of up to 4 MiB.

    Otherwise packing spends a quarter of its time on the system's giving the same pages again.
    """
    trim, map_from = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    with suppress(OSError, AttributeError, TypeError):  # another C library, or none to open
        ctypes.CDLL(None).mallopt(map_from, 4 << 20)
        ctypes.CDLL(None).mallopt(trim, 64 << 20)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())

"""A lock on a board, which one process drives at a time."""

import errno
import os
import tempfile
from pathlib import Path

from lutra.devices.base import DeviceError

__all__ = ["BoardLock"]


class BoardLock:
    """Lock of the board ``name``, released by the system when its process ends in any way."""

    def __init__(self, name: str) -> None:
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        self._path = Path(tempfile.gettempdir()) / f"lutra-{safe}.lock"
        self._file: int | None = None

    def acquire(self, device: str) -> None:
        """Take the lock for ``device``; DeviceError names the process that has it."""
        # there is none where there are no boards
        import fcntl

        file = self._open(device)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(file, 32).decode("ascii", "replace").strip()
            os.close(file)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise DeviceError(
                    f"device {device} cannot be locked by {self._path} ({error.strerror}): set "
                    "TMPDIR to a folder of a local disk"
                ) from None
            who = f"process {holder}" if holder else "another process"
            raise DeviceError(
                f"device {device} is in use by {who}: wait until it is done, or end it"
            ) from None
        self._file = file
        try:
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()}\n".encode())
        except OSError:
            pass  # another user's file: it locks, but does not say whose

    def _open(self, device: str) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        for more in (os.O_CREAT, 0):
            try:
                return os.open(self._path, flags | more, 0o666)
            except PermissionError:
                flags &= ~os.O_RDWR
            except OSError as error:
                raise DeviceError(
                    f"device {device} cannot be locked by {self._path} ({error.strerror}): remove "
                    "that file"
                ) from None
        raise DeviceError(
            f"device {device} cannot be locked by {self._path}, which may not be opened: remove "
            "that file"
        )

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

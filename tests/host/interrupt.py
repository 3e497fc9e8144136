"""Interrupts in chosen lines of a module, as a signal may come in any."""

import sys
from linecache import getline
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupt"]


class Interrupt:
    """While entered, raises KeyboardInterrupt in line ``left`` of those of a file that run.

    ``left`` counts down; above 0 afterwards, fewer lines have run.
    """

    def __init__(self, file_name: str, left: int) -> None:
        self._file_name, self.left = file_name, left

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        file_name = frame.f_code.co_filename
        if not file_name.endswith(self._file_name):
            return None
        line = getline(file_name, frame.f_lineno)
        # where a block ends, no signal comes between its last line and the release
        self.left -= event == "line" and not line.lstrip().startswith("with ")
        if self.left == 0:
            raise KeyboardInterrupt
        return self

    def __enter__(self) -> "Interrupt":
        sys.settrace(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sys.settrace(None)

"""Meetings of the C library, whose parties wait by spinning, and shares as it takes them."""

import ctypes
import weakref
from collections.abc import Generator
from contextlib import contextmanager

from lutra.devices.cpu.interface import CRange, CShare
from lutra.devices.cpu.library import library, pointer
from lutra.devices.shares import Meeting, PartyLeft, Share
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

__all__ = ["CpuMeeting", "share_for"]

_MEET = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)


class CpuMeeting(Meeting):
    """A meeting of devices that all run in the C library: no thread of Python is woken for it."""

    def __init__(self, model: PackedModel, rows: int, parties: int) -> None:
        super().__init__(model, rows, parties)
        self.place: int | None = library().lutra_cpu_meeting_new(parties)
        """Address of the library's meeting."""
        if not self.place:
            raise LutraError("device cpu has no memory for a meeting: use a smaller model")
        self._free = weakref.finalize(self, library().lutra_cpu_meeting_free, self.place)
        self._free.atexit = False

    def wait(self) -> None:
        """Wait for all parties; PartyLeft if one has left."""
        if not library().lutra_cpu_meet(self.place):
            raise PartyLeft("another device of the share has failed")

    def leave(self) -> None:
        """Come no more, so that the others do not wait for ever."""
        library().lutra_cpu_meeting_leave(self.place)

    def close(self) -> None:
        """Release the library's memory."""
        self._free()
        self.place = None


@contextmanager
def share_for(share: Share) -> Generator[CShare]:
    """A share as the library takes it; at a meeting in Python it is called back to wait there."""
    rows, meeting = share.rows, share.meeting
    errors: list[BaseException] = []

    def meet(_: int | None) -> int:
        try:
            meeting.wait()
        except BaseException as error:  # it cannot pass through C
            errors.append(error)
            return 0
        return 1

    back = _MEET(meet)
    place = None
    call = ctypes.cast(back, ctypes.c_void_p).value
    if isinstance(meeting, CpuMeeting):
        place = meeting.place
        call = ctypes.cast(library().lutra_cpu_meet, ctypes.c_void_p).value
    arrays = meeting.arrays
    try:
        yield CShare(
            sums=pointer(arrays["heads"]),
            attended=pointer(arrays["attention"]),
            back=pointer(arrays["hidden"]),
            gated=pointer(arrays["inner"]),
            meet=call,
            place=place,
            queries=CRange.of(rows.queries),
            keys=CRange.of(rows.keys),
            heads=CRange.of(rows.heads),
            hidden=CRange.of(rows.hidden),
            inner=CRange.of(rows.inner),
            vocab=CRange.of(rows.vocabulary),
        )
    except PartyLeft:
        if errors:
            raise errors[0] from None
        raise

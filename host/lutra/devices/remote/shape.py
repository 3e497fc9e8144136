"""The shape of a link: latency and bandwidth of one that is not there, and its loss."""

import socket
import threading
import time
import weakref
from math import inf

from lutra.devices.accelerator.agent import LinkError, Stream, socket_stream

__all__ = ["LinkShape"]

_PIECE = 1 << 16  # bytes that wait for their time together; connections take turns between them
_LOST = "the link was lost"


class LinkShape:
    """Makes links of TCP as slow as one of ``bytes_per_s`` in each direction, which all of them
    share, whose messages take ``latency_s`` more; and loses them.

    ``lose_at`` is the number of the event at which all are lost; events are messages that are sent,
    and answers that arrive.
    """

    def __init__(self, *, latency_s: float = 0.0, bytes_per_s: float = inf) -> None:
        self.latency_s, self.bytes_per_s = latency_s, bytes_per_s
        self.lose_at: int | None = None
        self.events = 0
        """Messages and answers so far."""
        self.n_bytes = 0
        """Bytes so far, in both directions."""
        self.lost = False
        self._free_at = {"out": 0.0, "in": 0.0}
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[_ShapedStream] = weakref.WeakSet()

    def stream(self, connection: socket.socket) -> Stream:
        """The bytes of a socket, on this link; LinkError while it is lost."""
        if self.lost:
            raise LinkError(_LOST)
        stream = _ShapedStream(connection, self)
        self._streams.add(stream)
        return stream

    def lose(self) -> None:
        """Lose all connections; no other comes about until :meth:`mend`."""
        self.lost = True
        for each in list(self._streams):
            each.shut()

    def mend(self) -> None:
        """Let connections come about again, and lose none."""
        self.lost, self.lose_at, self.events = False, None, 0

    # -- for the streams

    def happen(self) -> None:
        """Count an event; LinkError if the link is lost with it, or is."""
        with self._lock:
            number, self.events = self.events, self.events + 1
        if self.lose_at is not None and number >= self.lose_at:
            self.lose()
        if self.lost:
            raise LinkError(_LOST)

    def carry(self, direction: str, n_bytes: int) -> None:
        """Take the time of so many bytes, behind those of others."""
        with self._lock:
            self.n_bytes += n_bytes
            start = max(time.monotonic(), self._free_at[direction])
            end = self._free_at[direction] = start + n_bytes / self.bytes_per_s
        left = end - time.monotonic()
        if left > 0:
            time.sleep(left)


class _ShapedStream(Stream):
    def __init__(self, connection: socket.socket, shape: LinkShape) -> None:
        plain = socket_stream(connection)
        super().__init__(plain.reads, plain.reads, plain.shut)
        self._link, self._answered = shape, True

    def send(self, data: bytes, seconds: float) -> None:
        self._link.happen()
        time.sleep(self._link.latency_s)
        rest = memoryview(data)
        for first in range(0, len(rest), _PIECE):
            piece = rest[first : first + _PIECE]
            self._link.carry("out", len(piece))
            super().send(bytes(piece), seconds)
        self._answered = False

    def fill(self, seconds: float) -> bool:
        before = len(self._buffer)
        if not super().fill(seconds):
            return False
        if not self._answered:
            self._answered = True
            self._link.happen()
            time.sleep(self._link.latency_s)
        self._link.carry("in", len(self._buffer) - before)
        return True

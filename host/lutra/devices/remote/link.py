"""Links from a host to a lender: as many as calls are under way at a time, lost together."""

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.closing import Closing
from lutra.devices.accelerator.agent import (
    AgentError,
    Greeting,
    LinkError,
    Stream,
    read_key,
    socket_stream,
)
from lutra.devices.accelerator.board_link import Address, BoardLink
from lutra.devices.base import DeviceError
from lutra.devices.hardware import LENT_SCHEME
from lutra.devices.pages import NoRoom
from lutra.devices.remote.wire import BODY_MAX, FAULT, NO_ROOM, Message, pack, unpack
from lutra_golden.errors import LutraError

__all__ = ["LENDER", "LENT_PORT", "DeviceLinks", "LentAddress"]

LENDER = Greeting("lender", 1, "run the same Lutra on both machines", tagged=True)
"""The greeting of lenders."""
LENT_PORT = 7215
_CLIENT_BYTES, _HELLO_S = 16, 20.0


class LentAddress(Address):
    """Way to a device that is lent elsewhere: ``lutra://host[:port]``, or through SSH
    ``lutra://user@host[:port]``."""

    scheme, what, usual_port = LENT_SCHEME, "a device that is lent", LENT_PORT
    greeting, key_variable = LENDER, "LUTRA_DEVICE_KEY"
    start = "run `lutra lend` there (docs/serving.md)"


class DeviceLinks(Closing):
    """Links to the lender at ``address``, with the shared ``key``: its bytes, or the file that
    ``LUTRA_DEVICE_KEY`` names. When one drops all are lost, and with them what is there."""

    def __init__(
        self,
        address: LentAddress,
        key: bytes | None,
        wrapped: Callable[[socket.socket], Stream] = socket_stream,
    ) -> None:
        self._address, self._key, self._wrapped = address, key, wrapped
        self._client = os.urandom(_CLIENT_BYTES).hex()
        self._lock = threading.Lock()
        self._free: list[BoardLink] = []
        self._taken: set[BoardLink] = set()
        self.lost: str | None = None
        """The reason why the links are lost."""
        self.dropped: deque[int] = deque()
        """Numbers of sessions that nobody has any more; the next message says so."""

    def close(self) -> None:
        """End the links."""
        self._lose("it was closed")

    def ask(
        self,
        what: str,
        fields: Mapping[str, object],
        arrays: Sequence[NDArray[np.generic]] = (),
        *,
        seconds: float,
    ) -> Message:
        """The answer to a message, which ``what`` waits for: DeviceError if the link is lost or the
        device fails, LutraError if it refuses."""
        link: BoardLink | None = None
        try:
            link = self._take()
            drop = [self.dropped.popleft() for _ in range(len(self.dropped))]
            body = pack({**fields, "drop": drop}, arrays)
            found, values = unpack(link.ask(body, seconds, BODY_MAX))
        except LinkError as error:
            self._lose(str(error), link)
            raise DeviceError(f"{what} waits for {self._address}: {error}") from None
        except BaseException:
            # an answer may be on its way that nobody waits for
            self._lose("it was interrupted", link)
            raise
        self._give_back(link)
        self._raise(found)
        return found, values

    def _raise(self, found: Mapping[str, Any]) -> None:
        if "error" in found:
            error, kind = str(found["error"]), found["kind"]
            if kind == FAULT:
                raise DeviceError(f"{self._address}: {error}")
            raise NoRoom(error) if kind == NO_ROOM else LutraError(error)

    def _take(self) -> BoardLink:
        with self._lock:
            if self.lost is not None:
                raise LinkError(self.lost)
            if self._free:
                self._taken.add(link := self._free.pop())
                return link
        link = BoardLink(self._address, self._shared_key(), self._wrapped)
        try:
            with self._lock:
                if self.lost is not None:
                    raise LinkError(self.lost)
                self._taken.add(link)
            hello = pack({"op": "hello", "client": self._client})
            found, _ = unpack(link.ask(hello, _HELLO_S, BODY_MAX))
            self._raise(found)
        except BaseException:
            self._end(link)
            raise
        return link

    def _give_back(self, link: BoardLink) -> None:
        with self._lock:
            if self.lost is None:
                self._taken.discard(link)
                self._free.append(link)
                return
        self._end(link)

    def _end(self, link: BoardLink) -> None:
        with self._lock:
            self._taken.discard(link)
        link.close()

    def _shared_key(self) -> bytes | None:
        if self._key is not None:
            return self._key
        path = os.environ.get(self._address.key_variable)
        try:
            return read_key(Path(path)) if path else None
        except AgentError as error:
            raise LinkError(str(error)) from None

    def _lose(self, reason: str, own: BoardLink | None = None) -> None:
        """Lose all links; those that are taken are ended by who has them."""
        with self._lock:
            if self.lost is None:
                self.lost = reason
            free, self._free = self._free, []
            taken = list(self._taken)
        for each in taken:
            each.shut()
        for each in free if own is None else [*free, own]:
            self._end(each)

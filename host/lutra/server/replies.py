"""Replies over HTTP: JSON, and streams of events, to clients that may go away meanwhile."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lutra.server.errors import CLOSING, FAILED, ApiError

__all__ = ["EventStream", "Json", "event", "until_gone"]

T = TypeVar("T")
_DONE = b"data: [DONE]\n\n"


class Json(Response):
    """JSON in ASCII, which any text is sent in."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """The body."""
        return json.dumps(content, separators=(",", ":")).encode()


def event(content: object) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


async def until_gone(
    receive: Receive, work: Coroutine[Any, Any, T], seconds: float, arrived: float
) -> T:
    """The result of ``work``, which is cancelled if the client goes away (ConnectionError), or when
    its request, which ``arrived`` then by :func:`time.perf_counter`, took ``seconds``
    (ApiError)."""
    tasks = task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    left = max(arrived + seconds - time.perf_counter(), 0.0)
    try:
        await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ConnectionAbortedError("the client has gone")
        raise ApiError(
            408, f"the answer took more than {seconds:g} s: ask for fewer tokens", code="timeout"
        )
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(send: Send, last: bytes) -> None:
    await send({"type": "http.response.body", "body": last, "more_body": False})


class EventStream(Response):
    """Server-sent events, made as they are sent, up to ``seconds`` after the request ``arrived``;
    what is ``held`` is released at the end."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Iterable[bytes], None],
        seconds: float,
        arrived: float,
        held: ExitStack,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._seconds, self._arrived, self._held = events, seconds, arrived, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events; an error is the last one, so that no stream ends as if it were whole."""
        with self._held:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await until_gone(receive, self._send(send), self._seconds, self._arrived)
                last = _DONE
            except ApiError as error:
                last = event(error.body)
            except ConnectionError:
                return
            except asyncio.CancelledError:
                await _end(send, event(ApiError(503, CLOSING, code="closing").body))
                raise
            except Exception:
                await _end(send, event(ApiError(500, FAILED, code="internal_error").body))
                raise  # for the log
        await _end(send, last)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events) as found:
            async for events in found:
                if body := b"".join(events):
                    await send({"type": "http.response.body", "body": body, "more_body": True})

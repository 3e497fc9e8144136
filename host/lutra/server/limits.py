"""Limits on those who ask a server, and on how much, before the body of a request is parsed."""

import asyncio
import hmac
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lutra.server.errors import ApiError

__all__ = ["Guard", "Limits", "send_error"]

_OPEN = ("/", "/health")
"""Paths without a key: the page, which asks its reader for it, and what watches the process."""
_BODIES = 16  # largest bodies that are in memory at a time


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server.

    ``parallel`` completions are on the device at a time, ``queue`` more wait; a body has at most
    ``body_bytes`` and is there within ``body_seconds``. An answer has ``tokens`` at most and takes
    ``seconds``, waiting included.
    """

    parallel: int = 16
    queue: int = 256
    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    tokens: int | None = None
    seconds: float = 600.0


class Guard:
    """Lets requests through to ``app`` that have the ``key``, if there is one, and a whole body.

    ``hosts`` are the names that the server may be asked under, None for any: a web page whose name
    was made to lead here (DNS rebinding) asks under its own.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, key: str | None, hosts: Collection[str] | None
    ) -> None:
        self._app, self._limits, self._hosts = app, limits, hosts
        self._key = None if key is None else key.encode()
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._check(scope["path"], headers)
            reading = self._read(headers, receive, body)
            try:
                await asyncio.wait_for(reading, self._limits.body_seconds)
            except asyncio.TimeoutError:
                seconds = self._limits.body_seconds
                raise ApiError(408, f"the body was not there after {seconds:g} s") from None
            await self._app(scope, _replay(bytes(body), receive), send)
        except ApiError as error:
            await send_error(error, send)
        except ConnectionError:
            pass  # nobody is there to be told
        finally:
            self._bytes -= len(body)

    def _check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuse who may not ask."""
        host = _name(headers.get(b"host", b""))
        if self._hosts is not None and host not in self._hosts:
            raise ApiError(
                403,
                f"the server is not asked under the name {host!r}: use 127.0.0.1 or localhost, or "
                "start it with --api-key",
                code="host",
            )
        if self._key is None or path in _OPEN:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
            raise ApiError(
                401,
                "the API key is wrong or missing: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(
        self, headers: Mapping[bytes, bytes], receive: Receive, body: bytearray
    ) -> None:
        """Put the body into ``body``."""
        most = self._limits.body_bytes
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > most:
            raise _too_large(most)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionAbortedError
            part = message.get("body", b"")
            body += part
            self._bytes += len(part)
            if len(body) > most:
                raise _too_large(most)
            if self._bytes > _BODIES * most:
                raise ApiError(
                    429, "too many requests are arriving at once: ask again",
                    headers={"Retry-After": "1"},
                )  # fmt: skip
            more = message.get("more_body", False)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most:,} bytes: send less", code="too_large")


def _name(host: bytes) -> str:
    """The name in a Host header, without its port."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives ``body`` first, then what comes behind it."""
    first = True

    async def replay() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def send_error(error: ApiError, send: Send) -> None:
    """Answer with an error."""
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= {name.lower(): value for name, value in error.headers.items()}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})

"""A server's life: it listens, loads its model, answers, and ends in good order."""

import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from lutra.closing import Closing
from lutra_golden.errors import LutraError

__all__ = ["GRACE_S", "HttpServer", "address", "is_loopback", "listen", "local_names", "until_told"]

GRACE_S = 10.0
"""Seconds in which requests under way may come to their end when a server is told to end."""
_LOG = logging.getLogger("lutra.server")
_LOCAL = ("localhost", "127.0.0.1", "::1")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at ``host`` and ``port``, any free one if that is 0."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = found[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise LutraError(
            f"host {host!r} is none of this machine ({error}): give --host 127.0.0.1, or 0.0.0.0 "
            "for all networks"
        ) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise LutraError(
                f"port {port} of {host} is in use: end the program that has it, or give another "
                "one (--port, 0 for any)"
            ) from None
        raise LutraError(
            f"the server cannot listen at {host}, port {port} ({os.strerror(error.errno or 0)}): "
            "give another --host or --port"
        ) from None
    return listening


def is_loopback(host: str) -> bool:
    """True if only programs of this machine reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def local_names(host: str) -> Sequence[str]:
    """Names that a server at the loopback address ``host`` is asked under."""
    return (*_LOCAL, host)


def address(listening: socket.socket) -> str:
    """The URL of a socket that listens."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer(Closing):
    """Serves ``app`` at a listening socket, in a thread of its own, until it is closed."""

    def __init__(self, app: ASGIApp, listening: socket.socket, grace: float = GRACE_S) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level=logging.CRITICAL,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=max(round(grace), 1),
        )
        self._server, self._listening = uvicorn.Server(config), listening
        self._thread = threading.Thread(target=self._run, name="lutra http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more requests; those under way end, or are cancelled after the grace."""
        self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listening]))


@contextmanager
def until_told() -> Generator[Callable[[], None]]:
    """Waits for SIGINT or SIGTERM within the block; the second one ends the process at once."""
    told = threading.Event()

    def hear(number: int, _frame: FrameType | None) -> None:
        if told.is_set():
            os._exit(128 + number)
        told.set()
        print("ending: requests under way may finish", file=sys.stderr, flush=True)

    before = {each: signal.signal(each, hear) for each in (signal.SIGINT, signal.SIGTERM)}

    def wait() -> None:
        while not told.wait(1.0):  # signals are heard between two waits
            pass

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

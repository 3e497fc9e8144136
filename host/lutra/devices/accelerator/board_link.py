"""Links to what is lent elsewhere, an agent's board above all: by TCP, or through SSH."""

import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO, ClassVar, TypeVar

from lutra.devices.accelerator.agent import (
    AGENT,
    BODY_MAX,
    PORT,
    Frames,
    Greeting,
    LinkError,
    Stream,
    keep_alive,
    printable,
    socket_stream,
)
from lutra.devices.hardware import BOARD_SCHEME
from lutra_golden.errors import LutraError
from lutra_golden.machine import command_of

__all__ = ["Address", "BoardAddress", "BoardLink", "complaint", "end_ssh", "ssh_command"]

_A = TypeVar("_A", bound="Address")

_COMMAND = ".lutra/agent --stdio"
_CONNECT_S, _SEND_S = 5.0, 60.0
_LINE_MAX, _LINES = 1 << 12, 64  # of what a login may say before the agent does
_NO_PROGRAM = 127  # exit status of a shell that finds no program
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PLACE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")


def ssh_command() -> list[str]:
    """The client of SSH, ``ssh`` or what ``LUTRA_SSH`` names, and its options.

    It asks nothing, and ends a link that is silent for 15 seconds.
    """
    options = ("BatchMode=yes", "ConnectTimeout=5", "ServerAliveInterval=5")
    command = command_of("LUTRA_SSH", "ssh", "a client of SSH")
    return [*command, "-T", *(part for each in options for part in ("-o", each))]


def complaint(errors: IO[bytes]) -> str:
    """Last line of what a client of SSH, and what it started, had to say."""
    errors.seek(0)
    lines = errors.read(1 << 16).decode("utf-8", "replace").split("\n")
    return printable(next((line for line in reversed(lines) if line.strip()), "").strip())


@dataclass(frozen=True)
class Address:
    """Way to a service: ``scheme://host[:port]`` is TCP, ``scheme://user@host:port`` a port of the
    host's loopback, through SSH.

    A kind of services has its ``greeting``, the ``what`` of its addresses, the port that is meant
    where none is given, the variable that names its key, and how it is started.
    """

    scheme: ClassVar[str]
    what: ClassVar[str]
    usual_port: ClassVar[int]
    greeting: ClassVar[Greeting]
    key_variable: ClassVar[str]
    start: ClassVar[str]

    host: str
    port: int | None = None
    user: str | None = None

    @classmethod
    def parse(cls: type[_A], text: str) -> _A:
        """Parse an address that begins with the scheme."""
        user, at, place = text.removeprefix(cls.scheme).rpartition("@")
        found = _PLACE.fullmatch(place)
        host, port = found.groups() if found else ("", None)
        if (
            not (host.startswith("[") or _NAME.fullmatch(host))
            or (at and not _NAME.fullmatch(user))
            or not 0 < int(port or cls.usual_port) < 1 << 16
        ):
            raise LutraError(
                f"{cls.what} is {cls.scheme}host, {cls.scheme}host:port or "
                f"{cls.scheme}user@host, not {text!r}"
            )
        return cls(host.strip("[]"), int(port) if port else None, user if at else None)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return self.scheme + ("" if self.user is None else f"{self.user}@") + host + port

    @property
    def ssh(self) -> Sequence[str]:
        """Command whose standard input and output are the link."""
        port = self.usual_port if self.port is None else self.port
        return [*ssh_command(), "-W", f"127.0.0.1:{port}", "--", f"{self.user}@{self.host}"]


class BoardAddress(Address):
    """Way to a board's agent; ``board://user@host`` is one that SSH starts."""

    scheme, what, usual_port = BOARD_SCHEME, "a board", PORT
    greeting, key_variable = AGENT, "LUTRA_BOARD_KEY"
    start = "start it on the board (docs/agent.md)"

    @property
    def lives(self) -> bool:
        """True if the agent outlives a link, and with it what it has in memory."""
        return self.user is None or self.port is not None

    @property
    def ssh(self) -> Sequence[str]:
        """Command whose standard input and output are the link."""
        if self.port is not None:
            return super().ssh
        target = f"{self.user}@{self.host}"
        return [*ssh_command(), "--", target, os.environ.get("LUTRA_BOARD_COMMAND") or _COMMAND]


class BoardLink:
    """A link to an agent, from greeting to end; LinkError if there is none, or it drops.

    ``wrapped`` makes the stream of a link of TCP of its socket.
    """

    def __init__(
        self,
        address: Address,
        key: bytes | None,
        wrapped: Callable[[socket.socket], Stream] = socket_stream,
    ) -> None:
        self._resources, self._address, self._wrapped = ExitStack(), address, wrapped
        self._ssh: tuple[subprocess.Popen[bytes], IO[bytes]] | None = None
        self._target = f"{address.user}@{address.host}"
        try:
            if address.user is None:
                self._stream = self._connected(address)
            else:
                self._stream = self._logged_in(address)
            self._frames = self._greeted(key)
        except BaseException:
            self.close()
            raise

    def ask(self, body: bytes, seconds: float, limit: int = BODY_MAX) -> bytes:
        """Send a message and return the answer to it, of ``limit`` bytes at most."""
        self._stream.send(self._frames.pack(body), max(_SEND_S, seconds))
        return self._frames.receive(self._stream, time.monotonic() + seconds, limit)

    def shut(self) -> None:
        """Let whoever waits for an answer learn that none comes; the link is still to be closed."""
        self._stream.shut()
        if self._ssh is not None:
            self._ssh[0].terminate()

    def close(self) -> None:
        """End it."""
        self._resources.close()

    def _connected(self, address: Address) -> Stream:
        port = address.usual_port if address.port is None else address.port
        try:
            connection = socket.create_connection((address.host, port), _CONNECT_S)
            self._resources.enter_context(connection)
            keep_alive(connection)
        except (OSError, UnicodeError) as error:  # the latter of a name that no host can have
            why = getattr(error, "strerror", None) or error
            raise LinkError(
                f"no {self._service} answers at port {port} ({why}): {address.start}"
            ) from None
        return self._wrapped(connection)

    @property
    def _service(self) -> str:
        return self._address.greeting.service

    def _logged_in(self, address: Address) -> Stream:
        errors = self._resources.enter_context(tempfile.TemporaryFile())
        try:
            process = subprocess.Popen(
                address.ssh,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # an interrupt of this program does not end the link
            )
        except OSError as error:
            raise LinkError(f"ssh cannot be started ({error.strerror}): install it") from None
        self._ssh = process, errors
        self._resources.callback(end_ssh, process)
        assert process.stdout is not None and process.stdin is not None
        return Stream(process.stdout.fileno(), process.stdin.fileno())

    def _greeted(self, key: bytes | None) -> Frames:
        """Exchange versions and nonces."""
        version, lock, nonce = self._first_words()
        greeting, variable = self._address.greeting, self._address.key_variable
        if version != str(greeting.protocol):
            raise LinkError(
                f"the {self._service} speaks version {printable(version)} of the protocol, this "
                f"Lutra {greeting.protocol}: {greeting.advice}"
            )
        if lock == "key" and key is None:
            raise LinkError(
                f"the {self._service} asks for a key: set {variable} to a copy of its file"
            )
        if lock != "key" and key is not None:
            raise LinkError(
                f"the {self._service} has no key: start it with --key, or unset {variable}"
            )
        return greeting.answer(self._stream, key, nonce)

    def _first_words(self) -> Sequence[str]:
        """Version, kind of lock and nonce in the line that a service begins with."""
        deadline = time.monotonic() + 2 * _CONNECT_S
        try:
            for _ in range(_LINES):
                words = self._stream.line(_LINE_MAX, deadline).split()
                if words[:1] == [f"lutra-{self._service}"] and len(words) == 4:
                    return words[1:]
        except LinkError as error:
            said = self._complaint() or str(error)
            if self._ssh is not None and self._ssh[0].returncode == _NO_PROGRAM:
                said += f": put the agent there with `lutra deploy {self._target} --agent`"
            raise LinkError(said) from None
        raise LinkError(f"what answers is no {self._service}")

    def _complaint(self) -> str:
        """Last line of what ssh and the agent that it started had to say."""
        if self._ssh is None:
            return ""
        process, errors = self._ssh
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        return complaint(errors)


def end_ssh(process: subprocess.Popen[bytes]) -> None:
    """End a link, and the client that has it."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.terminate()
    process.wait()

"""Links to the agents of boards: by TCP, or through SSH."""

import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO

from lutra.devices.accelerator.agent import (
    PORT,
    PROTOCOL,
    Frames,
    LinkError,
    Stream,
    keep_alive,
    printable,
    socket_stream,
)
from lutra.devices.hardware import BOARD_SCHEME
from lutra_golden.errors import LutraError
from lutra_golden.machine import command_of

__all__ = ["BoardAddress", "BoardLink", "complaint", "end_ssh", "ssh_command"]

_COMMAND = ".lutra/agent --stdio"
_CONNECT_S, _SEND_S = 5.0, 60.0
_LINE_MAX, _LINES = 1 << 12, 64  # of what a login may say before the agent does
_NONCE_BYTES = 16
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
class BoardAddress:
    """Way to a board's agent.

    ``board://host[:port]`` is TCP, ``board://user@host`` an agent that SSH starts, and
    ``board://user@host:port`` one at a loopback port of the board, through SSH.
    """

    host: str
    port: int | None = None
    user: str | None = None

    @classmethod
    def parse(cls, text: str) -> "BoardAddress":
        """Parse an address that begins with :data:`~lutra.devices.hardware.BOARD_SCHEME`."""
        user, at, place = text.removeprefix(BOARD_SCHEME).rpartition("@")
        found = _PLACE.fullmatch(place)
        host, port = found.groups() if found else ("", None)
        if (
            not (host.startswith("[") or _NAME.fullmatch(host))
            or (at and not _NAME.fullmatch(user))
            or not 0 < int(port or PORT) < 1 << 16
        ):
            raise LutraError(
                f"a board is {BOARD_SCHEME}host, {BOARD_SCHEME}host:port or "
                f"{BOARD_SCHEME}user@host, not {text!r}"
            )
        return cls(host.strip("[]"), int(port) if port else None, user if at else None)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return BOARD_SCHEME + ("" if self.user is None else f"{self.user}@") + host + port

    @property
    def lives(self) -> bool:
        """True if the agent outlives a link, and with it what it has in memory."""
        return self.user is None or self.port is not None

    @property
    def ssh(self) -> Sequence[str]:
        """Command whose standard input and output are the link."""
        target = f"{self.user}@{self.host}"
        if self.port is not None:
            return [*ssh_command(), "-W", f"127.0.0.1:{self.port}", "--", target]
        return [*ssh_command(), "--", target, os.environ.get("LUTRA_BOARD_COMMAND") or _COMMAND]


class BoardLink:
    """A link to an agent, from greeting to end; LinkError if there is none, or it drops."""

    def __init__(self, address: BoardAddress, key: bytes | None) -> None:
        self._resources = ExitStack()
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

    def ask(self, body: bytes, seconds: float) -> bytes:
        """Send a message and return the answer to it."""
        self._stream.send(self._frames.pack(body), _SEND_S)
        return self._frames.receive(self._stream, time.monotonic() + seconds)

    def close(self) -> None:
        """End it."""
        self._resources.close()

    def _connected(self, address: BoardAddress) -> Stream:
        port = PORT if address.port is None else address.port
        try:
            connection = socket.create_connection((address.host, port), _CONNECT_S)
            self._resources.enter_context(connection)
            keep_alive(connection)
        except (OSError, UnicodeError) as error:  # the latter of a name that no host can have
            why = getattr(error, "strerror", None) or error
            raise LinkError(
                f"no agent answers at port {port} ({why}): start it on the board (docs/agent.md)"
            ) from None
        return socket_stream(connection)

    def _logged_in(self, address: BoardAddress) -> Stream:
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
        version, lock, nonce = self._agent()
        if version != str(PROTOCOL):
            raise LinkError(
                f"the agent speaks version {printable(version)} of the protocol, this Lutra "
                f"{PROTOCOL}: copy this Lutra's agent to the board"
            )
        if lock == "key" and key is None:
            raise LinkError("the agent asks for a key: set LUTRA_BOARD_KEY to a copy of its file")
        if lock != "key" and key is not None:
            raise LinkError("the agent has no key: start it with --key, or unset LUTRA_BOARD_KEY")
        own = os.urandom(_NONCE_BYTES).hex()
        self._stream.send(f"lutra-host {PROTOCOL} {own}\n".encode(), _CONNECT_S)
        return Frames(key, f"{nonce} {own}".encode(), b"host", b"agent")

    def _agent(self) -> Sequence[str]:
        """Version, kind of lock and nonce in the line that an agent begins with."""
        deadline = time.monotonic() + 2 * _CONNECT_S
        try:
            for _ in range(_LINES):
                words = self._stream.line(_LINE_MAX, deadline).split()
                if words[:1] == ["lutra-agent"] and len(words) == 4:
                    return words[1:]
        except LinkError as error:
            said = self._complaint() or str(error)
            if self._ssh is not None and self._ssh[0].returncode == _NO_PROGRAM:
                said += f": put the agent there with `lutra deploy {self._target} --agent`"
            raise LinkError(said) from None
        raise LinkError("what answers is no agent")

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

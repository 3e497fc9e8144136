"""The agent of a board: lends its accelerator's registers and memory to one Lutra at a time.

One file, Python's standard library only, Python 3.8 and later: copy it to the board and start it
there. docs/agent.md has the protocol; :mod:`lutra.devices.accelerator.board` speaks it.
"""

from __future__ import annotations

import abc
import argparse
import fcntl
import hashlib
import hmac
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable, Generator, Iterator, NoReturn, Protocol, Sequence

__all__ = [
    "AGENT",
    "BODY_MAX",
    "FAILED",
    "HELD",
    "LOST",
    "NEW_SESSION",
    "OK",
    "OPENED",
    "OPERATIONS",
    "PORT",
    "PROTOCOL",
    "READABLE",
    "REGION",
    "REGISTERS",
    "REGISTER_BYTES",
    "SESSION_BYTES",
    "WRITABLE",
    "ZERO_MAX",
    "Accelerator",
    "Agent",
    "AgentError",
    "BoardAccelerator",
    "Frames",
    "Greeting",
    "LinkError",
    "RefusedError",
    "Served",
    "Stream",
    "await_interrupt",
    "held_fabric",
    "keep_alive",
    "load_bitstream",
    "main",
    "make_key",
    "printable",
    "read_key",
    "refusal",
    "serve_port",
    "serve_tcp",
    "socket_stream",
]

PROTOCOL = 1
"""Version of the protocol."""
PORT = 7214
BODY_MAX = (1 << 20) + (1 << 12)
"""Bytes of the longest message, without header and tag."""
ZERO_MAX = 1 << 26
"""Bytes that one operation zeros at most."""

# operations, each with its fixed fields; WRITE_MEMORY and WRITE_REGISTERS are followed by data
OPERATIONS = {
    "OPEN": (1, struct.Struct("<16s")),
    "READ_REGISTERS": (2, struct.Struct("<IH")),
    "WRITE_REGISTERS": (3, struct.Struct("<IH")),
    "READ_MEMORY": (4, struct.Struct("<QI")),
    "WRITE_MEMORY": (5, struct.Struct("<QI")),
    "ZERO_MEMORY": (6, struct.Struct("<QI")),
    "WAIT": (7, struct.Struct("<IIII")),
    "RESET": (8, struct.Struct("<")),
    "BYE": (9, struct.Struct("<")),
}
OK, FAILED, LOST, HELD = 0, 1, 2, 3
"""First byte of an answer: results follow, or a line of text.

LOST: no such session any more; HELD: another host has the accelerator.
"""
SESSION_BYTES = 16
NEW_SESSION = bytes(SESSION_BYTES)
OPENED = struct.Struct("<16sBIH")
"""Answer to OPEN: session, 1 if its memory is as it was, bytes of registers, number of regions."""
REGION = struct.Struct("<QQ")
"""Address and bytes of a region of memory."""

# a part of the register map (docs/registers.md), which tests compare with the whole
REGISTERS = {
    "IDENT": 0x000,
    "CONTROL": 0x010,
    "STATUS": 0x014,
    "IRQ_ENABLE": 0x018,
    "IRQ_STATUS": 0x01C,
}
"""Registers that the agent itself uses."""
# elsewhere the accelerator answers SLVERR, which a processor takes for a fault of its own
READABLE = (
    (0x000, 0x010),
    (0x014, 0x030),
    (0x034, 0x044),
    (0x048, 0x068),
    (0x100, 0x460),
    (0x500, 0x700),
)
"""First offset, and the one behind the last, of registers that can be read."""
WRITABLE = (
    (0x010, 0x014),
    (0x018, 0x034),
    (0x038, 0x044),
    (0x048, 0x050),
    (0x054, 0x058),
    (0x05C, 0x060),
    (0x100, 0x200),
    (0x500, 0x700),
)
IDENT = 0x4152544C
CONTROL_ABORT, STATUS_BUSY, STATUS_DRAINING = 2, 1, 32
REGISTER_BYTES = 0x700
_PAGE_BYTES = 4096  # least that can be mapped

_HEADER = struct.Struct("<IQ")
_REFUSED = 0xFFFFFFFF  # in the place of a length: a line of text follows, and the link ends
_TAG_BYTES = 32
_KEY_BYTES = 32
_KEY_FILE_MAX = 1024
_NONCE_BYTES = 16
_HELLO_MAX = 128
_TEXT_MAX = 300
_FIRST_MAX = 64  # bytes of the first message: it may come from anybody
_HANDSHAKE_S, _MESSAGE_S, _ABORT_S, _TAKEOVER_S = 5.0, 60.0, 1.0, 5.0
_FREE_S = 3.0  # that an agent which ends has to free the board
_WAIT_MAX_S = 1.0
_MOMENT_S = 1e-4
_LOOK_S = 0.02  # between looks at a run whose interrupt does not come
_LINKS = 8  # at a time; all but one of them are only told so
_CLOSED = "the other end closed the link"
_BITSTREAM_MAX = 1 << 28
_FPGA_MANAGER = Path("sys/class/fpga_manager/fpga0")


class AgentError(Exception):
    """A line for whoever is at the other end, or started the agent."""


class LinkError(AgentError):
    """The link cannot be used any more."""


class RefusedError(LinkError):
    """The other end ended the link, and said why."""


# -- the link


class Stream:
    """Bytes from and to the other end of a link, by file descriptors, within limits of time."""

    def __init__(self, reads: int, writes: int, shut: Callable[[], object] | None = None) -> None:
        self.reads, self._writes, self._shut = reads, writes, shut
        self._buffer = bytearray()
        for descriptor in {reads, writes}:
            os.set_blocking(descriptor, False)

    def shut(self) -> None:
        """End the link; whoever reads it learns so."""
        if self._shut is not None:
            with suppress(OSError):
                self._shut()

    @property
    def waiting(self) -> bool:
        """True if bytes have come that were not taken yet."""
        return bool(self._buffer)

    def fill(self, seconds: float) -> bool:
        """Wait for more bytes; True if some came."""
        if not _ready(self.reads, select.POLLIN, seconds):
            return False
        try:
            data = os.read(self.reads, 1 << 18)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            raise LinkError(_CLOSED) from None
        except OSError as error:
            raise LinkError(f"the link dropped ({_reason(error)})") from None
        if not data:
            raise LinkError(_CLOSED)
        self._buffer += data
        return True

    def take(self, n_bytes: int, deadline: float) -> bytes:
        """The next bytes, before the monotonic clock is at ``deadline``."""
        while len(self._buffer) < n_bytes:
            self._await(deadline)
        data = bytes(self._buffer[:n_bytes])
        del self._buffer[:n_bytes]
        return data

    def line(self, limit: int, deadline: float) -> str:
        """The next line, of ``limit`` bytes at most."""
        while b"\n" not in self._buffer[:limit]:
            if len(self._buffer) >= limit:
                raise LinkError(f"no line within {limit} bytes")
            self._await(deadline)
        data = self.take(self._buffer.index(b"\n") + 1, deadline)
        return data.decode("ascii", "replace").strip()

    def _await(self, deadline: float) -> None:
        if not self.fill(deadline - time.monotonic()) and time.monotonic() >= deadline:
            raise LinkError("the other end sent nothing in time")

    def send(self, data: bytes, seconds: float) -> None:
        """Send all of ``data`` within that time."""
        rest, deadline = memoryview(data), time.monotonic() + seconds
        while rest:
            if not _ready(self._writes, select.POLLOUT, deadline - time.monotonic()):
                raise LinkError("the other end takes no more bytes")
            rest = rest[self._write(rest) :]

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self._writes, data)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            raise LinkError(_CLOSED) from None
        except OSError as error:
            raise LinkError(f"the link dropped ({_reason(error)})") from None


def _ready(descriptor: int, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(max(0, int(seconds * 1000))))


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class Frames:
    """Messages of a link: length, number, body, and with a key a tag over all three.

    The key of a link is made of the shared one and both ends' nonces, so that no message of another
    link fits; the number and the direction are under the tag, so that none fits twice.
    """

    def __init__(self, key: bytes | None, nonces: bytes, sends: bytes, receives: bytes) -> None:
        self._key = None if key is None else hmac.new(key, nonces, hashlib.sha256).digest()
        self._directions = sends, receives
        self._n_sent = self._n_received = 0

    def pack(self, body: bytes) -> bytes:
        """The next message to send."""
        header = _HEADER.pack(len(body), self._n_sent)
        self._n_sent += 1
        return header + body + self._tag(self._directions[0], header, body)

    def receive(self, stream: Stream, deadline: float, limit: int = BODY_MAX) -> bytes:
        """Body of the next message; LinkError if it is not the one that the other end sent."""
        header = stream.take(_HEADER.size, deadline)
        length, number = _HEADER.unpack(header)
        if length == _REFUSED:
            text = stream.take(min(number, _TEXT_MAX), deadline)
            raise RefusedError(printable(text.decode("utf-8", "replace")))
        if length > limit:
            raise LinkError(f"a message of {length} bytes came, {limit} are the most")
        body = stream.take(length, deadline)
        tag = stream.take(0 if self._key is None else _TAG_BYTES, deadline)
        if not hmac.compare_digest(tag, self._tag(self._directions[1], header, body)):
            raise LinkError("a message has a wrong tag: the keys differ, or it was changed")
        if number != self._n_received:
            raise LinkError(f"message {number} came in the place of {self._n_received}")
        self._n_received += 1
        return body

    def _tag(self, direction: bytes, header: bytes, body: bytes) -> bytes:
        if self._key is None:
            return b""
        tag = hmac.new(self._key, direction, hashlib.sha256)
        tag.update(header)
        tag.update(body)
        return tag.digest()


class Greeting:
    """First lines of a link: the ``service`` that is here, the version of its ``protocol``, and
    random numbers of both ends. ``advice`` is what to do where versions differ.

    A service whose links are ``tagged`` has tags on open ones, too, by an empty key: they find what
    was damaged, and keep nobody out.
    """

    def __init__(self, service: str, protocol: int, advice: str, *, tagged: bool = False) -> None:
        self.service, self.protocol = service, protocol
        self.advice, self._tagged = advice, tagged

    def serve(self, stream: Stream, key: bytes | None) -> Frames:
        """Greet a host."""
        nonce = os.urandom(_NONCE_BYTES).hex()
        lock = "open" if key is None else "key"
        line = f"lutra-{self.service} {self.protocol} {lock} {nonce}\n"
        stream.send(line.encode(), _HANDSHAKE_S)
        words = stream.line(_HELLO_MAX, time.monotonic() + _HANDSHAKE_S).split()
        if len(words) != 3 or words[0] != "lutra-host":
            raise LinkError("the other end is no Lutra")
        if words[1] != str(self.protocol):
            raise LinkError(
                f"the {self.service} speaks version {self.protocol} of the protocol, the host "
                f"{printable(words[1])}: {self.advice}"
            )
        return Frames(self._lock(key), f"{nonce} {words[2]}".encode(), self._name, b"host")

    def answer(self, stream: Stream, key: bytes | None, nonce: str) -> Frames:
        """Greet a service that has sent ``nonce``, as its host."""
        own = os.urandom(_NONCE_BYTES).hex()
        stream.send(f"lutra-host {self.protocol} {own}\n".encode(), _HANDSHAKE_S)
        return Frames(self._lock(key), f"{nonce} {own}".encode(), b"host", self._name)

    @property
    def _name(self) -> bytes:
        return self.service.encode()

    def _lock(self, key: bytes | None) -> bytes | None:
        return b"" if key is None and self._tagged else key


AGENT = Greeting("agent", PROTOCOL, "copy the agent of the host's Lutra to the board")
"""The greeting of agents."""


def refusal(text: str) -> bytes:
    """The message that ends a link with a line of text."""
    data = text.encode()[:_TEXT_MAX]
    return _HEADER.pack(_REFUSED, len(data)) + data


def printable(text: str) -> str:
    """One line without control characters."""
    return "".join(each if each.isprintable() else " " for each in text)[:_TEXT_MAX]


def make_key(path: Path) -> None:
    """Write a new shared key, for its owner's eyes only."""
    try:
        descriptor = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise AgentError(f"the key {path} cannot be written ({_reason(error)})") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(os.urandom(_KEY_BYTES).hex() + "\n")


def read_key(path: Path) -> bytes:
    """The shared key in a file, which nobody else may read."""
    try:
        with open(str(path), "rb") as file:
            others = os.fstat(file.fileno()).st_mode & 0o077
            text = file.read(_KEY_FILE_MAX)
    except OSError as error:
        raise AgentError(f"the key {path} cannot be read ({_reason(error)})") from None
    if others:
        raise AgentError(f"the key {path} can be read by others: run `chmod 600 {path}`")
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise AgentError(
            f"the key {path} is not {2 * _KEY_BYTES} hexadecimal digits: make one with --make-key"
        )
    return key


# -- the hardware


class Accelerator(abc.ABC):
    """Access to an accelerator: 32-bit registers, memory, and the end of a run.

    Offsets and ranges are checked before they come here. ``regions`` are addresses and bytes.
    """

    regions: Sequence[tuple[int, int]] = ()

    @abc.abstractmethod
    def read_register(self, offset: int) -> int:
        """Read a register."""

    @abc.abstractmethod
    def write_register(self, offset: int, value: int) -> None:
        """Write a register."""

    @abc.abstractmethod
    def read(self, address: int, n_bytes: int) -> bytes:
        """Read memory that the accelerator may have written."""

    @abc.abstractmethod
    def write(self, address: int, data: bytes) -> None:
        """Write memory so that the accelerator sees it."""

    @abc.abstractmethod
    def pause(self, wake: int, seconds: float) -> None:
        """Wait for the interrupt, for bytes at the descriptor ``wake``, or for that long."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release it."""


class BoardAccelerator(Accelerator):
    """Accelerator of this board: registers by UIO or /dev/mem, memory by u-dma-buf.

    ``uio`` and ``buffers`` are names of devices; ``registers`` is the address of the registers,
    which are then mapped by /dev/mem and have no interrupt. ``root`` is a folder that stands for
    the root of the file system.
    """

    def __init__(
        self,
        uio: str | None = None,
        registers: int | None = None,
        buffers: Sequence[str] = (),
        root: Path = Path("/"),
    ) -> None:
        self._root = root
        self._interrupt: int | None = None
        self._descriptors: list[int] = []
        try:
            self._words = self._map_mem(registers) if registers is not None else self._map_uio(uio)
            ident = self.read_register(REGISTERS["IDENT"])
            if ident != IDENT:
                raise AgentError(
                    f"the registers begin with {ident:#010x} instead of {IDENT:#010x}: no Lutra "
                    "accelerator is there, load its bitstream with --bitstream"
                )
            found = buffers or sorted(path.name for path in self._class("u-dma-buf"))
            if not found:
                raise AgentError(
                    "there is no contiguous memory in /sys/class/u-dma-buf: load u-dma-buf, for "
                    "example `modprobe u-dma-buf udmabuf0=0x10000000`"
                )
            self._buffers = [self._open_buffer(name) for name in found]
        except BaseException:
            self.close()
            raise
        self.regions = [(buffer.address, buffer.size) for buffer in self._buffers]

    def _class(self, name: str) -> list[Path]:
        return list((self._root / "sys/class" / name).glob("*"))

    def _open(self, path: str, flags: int = 0, *, exclusive: bool = True) -> int:
        try:
            descriptor = os.open(str(self._root / path), os.O_RDWR | flags)
        except OSError as error:
            raise AgentError(
                f"/{path} cannot be opened ({_reason(error)}): run the agent as root, or give its "
                "user the right to"
            ) from None
        self._descriptors.append(descriptor)
        if exclusive:
            _lock(descriptor, fcntl.LOCK_EX, f"/{path}")
        return descriptor

    def _map_uio(self, name: str | None) -> memoryview:
        names = [path for path in self._class("uio") if name in (None, path.name)]
        if name is None:
            names = [path for path in names if "lutra" in _text(path / "name")]
        if len(names) != 1:
            raise AgentError(
                f"{len(names)} devices in /sys/class/uio are called "
                f"{'*lutra*' if name is None else name}, not one: load the bitstream's device "
                "tree, or give --uio or --registers"
            )
        size, offset = (_number(names[0] / "maps/map0" / each) for each in ("size", "offset"))
        if size < _PAGE_BYTES or offset % 4:
            raise AgentError(
                f"map 0 of {names[0].name} has {size} bytes at offset {offset}, not "
                f"{_PAGE_BYTES} or more: correct the device tree"
            )
        descriptor = self._open(f"dev/{names[0].name}")
        words = _map(descriptor, offset + _PAGE_BYTES, 0, names[0].name)
        if not os.path.isfile(str(self._root / "dev" / names[0].name)):
            self._interrupt = descriptor  # a file has none
        return memoryview(words)[offset:].cast("I")

    def _map_mem(self, address: int) -> memoryview:
        if address % mmap.PAGESIZE:
            raise AgentError(f"--registers must be a multiple of {mmap.PAGESIZE}, not {address:#x}")
        for line in _text(self._root / "proc/iomem").splitlines():
            limits, _, what = line.strip().partition(" : ")
            first, _, last = limits.partition("-")
            if what == "System RAM" and int(first, 16) <= address <= int(last, 16):
                raise AgentError(f"{address:#x} is memory of the system, not registers")
        return memoryview(
            _map(
                self._open("dev/mem", os.O_SYNC, exclusive=False),
                _PAGE_BYTES,
                address,
                "/dev/mem",
            )
        ).cast("I")

    def _open_buffer(self, name: str) -> _Buffer:
        folder = self._root / "sys/class/u-dma-buf" / name
        address, size = (_number(folder / each) for each in ("phys_addr", "size"))
        if address % mmap.PAGESIZE or size < 1 or size > min(sys.maxsize, 1 << 32):
            raise AgentError(
                f"{name} has {size} bytes at {address:#x}: its driver is not u-dma-buf"
            )
        descriptor = self._open(f"dev/{name}")
        return _Buffer(folder, address, size, _map(descriptor, size, 0, name))

    def read_register(self, offset: int) -> int:
        """Read a register, by one access of 32 bits."""
        return self._words[offset // 4]

    def write_register(self, offset: int, value: int) -> None:
        """Write a register, by one access of 32 bits.

        A slice of the map would be copied in pieces as the C library likes, some of them twice: a
        doorbell must not ring twice.
        """
        self._words[offset // 4] = value

    def read(self, address: int, n_bytes: int) -> bytes:
        """Read memory, past the cache of the processor."""
        return self._of(address).read(address, n_bytes)

    def write(self, address: int, data: bytes) -> None:
        """Write memory, past the cache of the processor."""
        self._of(address).write(address, data)

    def _of(self, address: int) -> _Buffer:
        return next(each for each in self._buffers if 0 <= address - each.address < each.size)

    def pause(self, wake: int, seconds: float) -> None:
        """Wait for the interrupt if there is one, otherwise a moment."""
        if self._interrupt is None:
            time.sleep(min(seconds, _MOMENT_S))
        else:
            await_interrupt(self._interrupt, wake, seconds)

    def close(self) -> None:
        """Give the devices back."""
        for descriptor in self._descriptors:
            with suppress(OSError):  # maps keep the descriptor, and with it the lock
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)
        self._descriptors.clear()


def await_interrupt(uio: int, wake: int, seconds: float) -> bool:
    """Wait for an interrupt of the device ``uio``, or for bytes at ``wake``; True if it came."""
    os.write(uio, struct.pack("=I", 1))  # enables it again
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    poll.register(uio, select.POLLIN)
    came = uio in dict(poll.poll(max(1, int(seconds * 1000))))
    if came:
        os.read(uio, 4)
    return came


class _Buffer:
    """A contiguous piece of memory of the driver u-dma-buf."""

    def __init__(self, folder: Path, address: int, size: int, memory: mmap.mmap) -> None:
        self.address, self.size, self._memory = address, size, memory
        self._for_cpu, self._for_device = folder / "sync_for_cpu", folder / "sync_for_device"

    def read(self, address: int, n_bytes: int) -> bytes:
        first = address - self.address
        self._sync(self._for_cpu, first, n_bytes)
        return self._memory[first : first + n_bytes]

    def write(self, address: int, data: bytes) -> None:
        first = address - self.address
        self._memory[first : first + len(data)] = data
        self._sync(self._for_device, first, len(data))

    def _sync(self, path: Path, first: int, n_bytes: int) -> None:
        """Give a range to the processor or to the accelerator, which cleans the cache."""
        begin, end = first & ~63, min(first + n_bytes + 63 & ~63, self.size)
        # bytes by the sixteen; below them the direction, 0 is both, and a 1
        with open(str(path), "w") as file:
            file.write(f"0x{begin:08X}{end - begin & 0xFFFFFFF0 | 1:08X}")


def _map(descriptor: int, size: int, offset: int, name: str) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, size, offset=offset)
    except (OSError, ValueError, OverflowError) as error:
        raise AgentError(f"{size} bytes of {name} cannot be mapped ({error})") from None


def _text(path: Path) -> str:
    try:
        with open(str(path)) as file:
            return file.read(1 << 16).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int:
    try:
        return int(_text(path), 0)
    except ValueError:
        raise AgentError(f"{path} has no number: is its driver loaded?") from None


def _lock(descriptor: int, kind: int, name: str) -> None:
    """Lock a file of the board; an agent that ends is waited for."""
    deadline = time.monotonic() + _FREE_S
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline:
                raise AgentError(f"another agent uses {name}: end it first") from None
            time.sleep(_LOOK_S)


@contextmanager
def held_fabric(bitstream: Path | None, root: Path = Path("/")) -> Generator[None]:
    """Keep other agents from loading the fabric; load it, if ``bitstream`` says with what.

    Agents that load nothing share it. AgentError if one of them is there, and this one would load.
    """
    try:
        descriptor = os.open(str(root / _FPGA_MANAGER / "state"), os.O_RDONLY)
    except OSError:  # no FPGA manager: nothing that another agent could load with
        descriptor = -1
    try:
        if descriptor >= 0:
            _lock(descriptor, fcntl.LOCK_SH if bitstream is None else fcntl.LOCK_EX, "the fabric")
        if bitstream is not None:
            load_bitstream(bitstream, root)
            if descriptor >= 0:
                _lock(descriptor, fcntl.LOCK_SH, "the fabric")
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def load_bitstream(path: Path, root: Path = Path("/")) -> None:
    """Load the fabric by the FPGA manager, from a .bit or .bin file."""
    try:
        if path.stat().st_size > _BITSTREAM_MAX:
            raise AgentError(f"{path} is too large for a bitstream")
        data = path.read_bytes()
        manager = root / _FPGA_MANAGER
        name = "lutra.bin"
        (root / "lib/firmware" / name).write_bytes(_configuration(path, data))
        (manager / "flags").write_text("0")
        (manager / "firmware").write_text(name)
    except OSError as error:
        raise AgentError(f"the bitstream {path} cannot be loaded ({error})") from None
    state = _text(manager / "state")
    if state != "operating":
        raise AgentError(f"the FPGA manager is '{state}' after {path}: see `dmesg`")


def _configuration(path: Path, data: bytes) -> bytes:
    """Bytes that the FPGA manager takes: of a .bit file the configuration, its words turned."""
    if path.suffix != ".bit":
        return data
    at = 2 + int.from_bytes(data[:2], "big") + 2  # a field of constants, then the number 1
    while at < len(data):
        key = data[at : at + 1]
        if key == b"e":
            size = int.from_bytes(data[at + 1 : at + 5], "big")
            words = data[at + 5 : at + 5 + size]
            if len(words) != size or size % 4:
                break
            turned = bytearray(size)
            for i in range(4):
                turned[i::4] = words[3 - i :: 4]
            return bytes(turned)
        at += 3 + int.from_bytes(data[at + 1 : at + 3], "big")
    raise AgentError(f"{path} is no whole .bit file: build it again")


# -- the agent


class _Fields:
    """Operations of a message, field by field."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = memoryview(body), 0

    @property
    def left(self) -> int:
        return len(self._body) - self._at

    def take(self, n_bytes: int) -> memoryview:
        if n_bytes > self.left:
            raise LinkError("a message ends within an operation")
        self._at += n_bytes
        return self._body[self._at - n_bytes : self._at]

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self.take(form.size))


class Agent:
    """Lends ``accelerator`` to one host at a time, over any number of links.

    A host whose link ends is aborted. It finds the memory as it was when it comes back with the
    same session, unless another one has come first.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        key: bytes | None = None,
        log: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._accelerator, self._key, self._log = accelerator, key, log
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._session = b""
        self._holder: tuple[Stream, str] | None = None
        self._operations = {
            2: self._read_registers,
            3: self._write_registers,
            4: self._read_memory,
            5: self._write_memory,
            6: self._zero_memory,
        }
        self.abort()

    def serve(self, stream: Stream, peer: str) -> None:
        """Serve a link to its end."""
        try:
            frames = AGENT.serve(stream, self._key)
            deadline = time.monotonic() + _HANDSHAKE_S
            first = _Fields(frames.receive(stream, deadline, _FIRST_MAX))
            code, form = OPERATIONS["OPEN"]
            if first.left != 1 + form.size or first.take(1)[0] != code:
                raise LinkError("the first message does not open the accelerator")
            with self._held(stream, peer, bytes(first.take(SESSION_BYTES))) as answer:
                stream.send(frames.pack(answer), _MESSAGE_S)
                last = self._obey(stream, frames) if answer[0] == OK else b""
            if last:  # when it is free for the next host
                stream.send(frames.pack(last), _MESSAGE_S)
        except LinkError as error:
            self._log(f"{peer}: {error}")
            with suppress(LinkError):
                stream.send(refusal(str(error)), 1.0)
        finally:
            stream.shut()

    @contextmanager
    def _held(self, stream: Stream, peer: str, session: bytes) -> Generator[bytes]:
        """Hold the accelerator; the answer to OPEN says if that is so."""
        taken, holder = False, None
        with self._lock:
            known = hmac.compare_digest(session, self._session)
            if known or session == NEW_SESSION:
                holder = self._holder
                if holder is not None and known:
                    holder[0].shut()  # the same host: its link dropped without a word
                taken = self._turn.acquire(timeout=_TAKEOVER_S if known else 0)
            if taken:
                self._holder = stream, peer
        if not taken and not known and session != NEW_SESSION:
            yield bytes([LOST]) + b"it was started again, or lent to another host since"
            return
        if not taken:
            yield bytes([HELD]) + f"held by {holder[1] if holder else 'another'}".encode()
            return
        self._log(f"{peer}: {'comes back' if known else 'holds the accelerator'}")
        try:
            if not known:
                self._session = os.urandom(SESSION_BYTES)
            self.abort()
            self._accelerator.write_register(REGISTERS["IRQ_ENABLE"], 1)
            regions = self._accelerator.regions
            opened = OPENED.pack(self._session, known, REGISTER_BYTES, len(regions))
            yield bytes([OK]) + opened + b"".join(REGION.pack(*each) for each in regions)
        finally:
            self.abort()
            self._holder = None
            self._turn.release()
            self._log(f"{peer}: gone")

    def abort(self) -> bool:
        """End whatever the accelerator does; True if it obeys."""
        accelerator, deadline = self._accelerator, time.monotonic() + _ABORT_S
        accelerator.write_register(REGISTERS["CONTROL"], CONTROL_ABORT)
        while accelerator.read_register(REGISTERS["STATUS"]) & (STATUS_BUSY | STATUS_DRAINING):
            if time.monotonic() > deadline:
                self._log("the accelerator does not end its run")
                return False
            time.sleep(_MOMENT_S)
        return True

    def _obey(self, stream: Stream, frames: Frames) -> bytes:
        """Carry out messages until the host goes; the answer to the one that says so."""
        while True:
            while not stream.waiting:
                stream.fill(60.0)
            fields = _Fields(frames.receive(stream, time.monotonic() + _MESSAGE_S))
            try:
                results = b"".join(self._carry_out(fields, stream))
                answer = bytes([OK]) + results
            except LinkError:
                raise
            except (AgentError, OSError) as error:
                answer = bytes([FAILED]) + str(error).encode()
            if not self._session:
                return answer
            stream.send(frames.pack(answer), _MESSAGE_S)

    def _carry_out(self, fields: _Fields, stream: Stream) -> Iterator[bytes]:
        room = BODY_MAX - 1
        while fields.left:
            code = fields.take(1)[0]
            if code in self._operations:
                result = self._operations[code](fields)
            elif code == OPERATIONS["WAIT"][0]:
                if not self._wait(fields, stream):
                    yield b"\0"
                    return
                result = b"\1"
            elif code == OPERATIONS["RESET"][0]:
                if not self.abort():
                    raise AgentError(
                        "the accelerator does not end its run: start the agent with --bitstream"
                    )
                result = b""
            elif code == OPERATIONS["BYE"][0]:
                self._session, result = b"", b""
            else:
                raise LinkError(f"a message has the unknown operation {code}")
            room -= len(result)
            if room < 0:
                raise AgentError(f"the answer exceeds {BODY_MAX} bytes: read less at once")
            yield result

    def _read_registers(self, fields: _Fields) -> bytes:
        offset, count = fields.unpack(OPERATIONS["READ_REGISTERS"][1])
        read = self._accelerator.read_register
        at = _offsets(READABLE, offset, count)
        return struct.pack(f"<{count}I", *(read(each) for each in at))

    def _write_registers(self, fields: _Fields) -> bytes:
        offset, count = fields.unpack(OPERATIONS["WRITE_REGISTERS"][1])
        words = struct.unpack(f"<{count}I", fields.take(4 * count))
        for at, word in zip(_offsets(WRITABLE, offset, count), words):
            self._accelerator.write_register(at, word)
        return b""

    def _read_memory(self, fields: _Fields) -> bytes:
        address, n_bytes = fields.unpack(OPERATIONS["READ_MEMORY"][1])
        self._check(address, n_bytes, BODY_MAX - 1)
        return self._accelerator.read(address, n_bytes)

    def _write_memory(self, fields: _Fields) -> bytes:
        address, n_bytes = fields.unpack(OPERATIONS["WRITE_MEMORY"][1])
        data = fields.take(n_bytes)
        self._check(address, n_bytes, BODY_MAX)
        self._accelerator.write(address, bytes(data))
        return b""

    def _zero_memory(self, fields: _Fields) -> bytes:
        address, n_bytes = fields.unpack(OPERATIONS["ZERO_MEMORY"][1])
        self._check(address, n_bytes, ZERO_MAX)
        step = 1 << 20
        for first in range(0, n_bytes, step):
            self._accelerator.write(address + first, bytes(min(step, n_bytes - first)))
        return b""

    def _check(self, address: int, n_bytes: int, most: int) -> None:
        """Refuse what is not within one region."""
        if not 0 < n_bytes <= most:
            raise AgentError(f"an operation may have 1 to {most} bytes, not {n_bytes}")
        for base, size in self._accelerator.regions:
            if base <= address and address + n_bytes <= base + size:
                return
        raise AgentError(f"{n_bytes} bytes at {address:#x} lie outside the agent's memory")

    def _wait(self, fields: _Fields, stream: Stream) -> bool:
        """Wait until a register, masked, is a limit or less; False if it is not.

        An interrupt that comes late, twice or never only changes when the register is looked at.
        The host's next message ends the wait, and so does the end of its link.
        """
        offset, mask, limit, milliseconds = fields.unpack(OPERATIONS["WAIT"][1])
        _offsets(READABLE, offset, 1)
        accelerator = self._accelerator
        deadline = time.monotonic() + min(milliseconds / 1000, _WAIT_MAX_S)
        while True:
            # in this order: an end behind the look raises the interrupt again
            accelerator.write_register(REGISTERS["IRQ_STATUS"], 1)
            if accelerator.read_register(offset) & mask <= limit:
                return True
            left = deadline - time.monotonic()
            if left <= 0 or stream.waiting or stream.fill(0):
                return False
            accelerator.pause(stream.reads, min(left, _LOOK_S))


def _offsets(ranges: Sequence[tuple[int, int]], offset: int, count: int) -> range:
    """Offsets of registers; AgentError unless they are all in one of ``ranges``."""
    end = offset + 4 * count
    if offset % 4 or not count or not any(a <= offset and end <= b for a, b in ranges):
        raise AgentError(f"{count} registers at {offset:#x} are not the accelerator's")
    return range(offset, end, 4)


# -- starting it


class Served(Protocol):
    """A service at one end of links."""

    def serve(self, stream: Stream, peer: str) -> None:
        """Serve a link to its end."""


def serve_tcp(
    served: Served,
    listener: socket.socket,
    log: Callable[[str], object],
    n_links: int = _LINKS,
) -> None:
    """Serve links of TCP, each in a thread, up to ``n_links`` at a time, until ``listener`` is
    closed."""
    links = threading.BoundedSemaphore(n_links)

    def serve(connection: socket.socket, peer: str) -> None:
        try:
            with connection:
                keep_alive(connection)
                served.serve(socket_stream(connection), peer)
        finally:
            links.release()

    while listener.fileno() >= 0:
        try:
            connection, address = listener.accept()
        except OSError as error:  # a link that is gone already, or too many open files
            log(f"no link ({_reason(error)})")
            time.sleep(0.1)
            continue
        peer = f"{address[0]}:{address[1]}"
        if links.acquire(blocking=False):
            threading.Thread(target=serve, args=(connection, peer), daemon=True).start()
        else:
            log(f"{peer}: too many links")
            connection.close()


def socket_stream(connection: socket.socket) -> Stream:
    """The bytes of a socket."""
    descriptor = connection.fileno()
    return Stream(descriptor, descriptor, lambda: connection.shutdown(socket.SHUT_RDWR))


def keep_alive(connection: socket.socket) -> None:
    """Send small messages at once; learn within half a minute that the other end is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = ("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)
    # bytes that nobody acknowledges keep those from being sent
    for name, value in (*options, ("TCP_USER_TIMEOUT", 25_000)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _serve_stdio(agent: Agent) -> None:
    """Serve the link at standard input and output, which nothing else may write to."""
    reads, writes = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    agent.serve(Stream(reads, writes), "standard input")


def serve_port(
    served: Served,
    address: str,
    port: int,
    log: Callable[[str], object],
    n_links: int = _LINKS,
) -> None:
    """Serve links to a port of TCP."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family)
    except (OSError, OverflowError) as error:
        raise AgentError(f"{address} port {port} cannot be listened at ({error})") from None
    with listener:
        log(f"listens at {address} port {listener.getsockname()[1]}")
        serve_tcp(served, listener, log, n_links)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Lend this board's Lutra accelerator to a Lutra elsewhere (docs/agent.md)."
    )
    parser.add_argument("--stdio", action="store_true", help="serve standard input, for SSH")
    parser.add_argument("--port", type=int, default=PORT, help=f"TCP port (default {PORT})")
    parser.add_argument("--listen", metavar="ADDRESS", help="address other than loopback")
    parser.add_argument("--key", type=Path, metavar="FILE", help="shared key that hosts must have")
    parser.add_argument("--make-key", type=Path, metavar="FILE", help="write a new key, and end")
    parser.add_argument("--bitstream", type=Path, metavar="FILE", help=".bit or .bin to load first")
    parser.add_argument("--uio", metavar="NAME", help="UIO device, like uio0 (default *lutra*)")
    parser.add_argument(
        "--registers",
        type=lambda text: int(text, 0),
        metavar="ADDRESS",
        help="address of the registers, for /dev/mem",
    )
    parser.add_argument(
        "--buffer", action="append", default=[], metavar="NAME", help="u-dma-buf (default all)"
    )
    parser.add_argument(
        "--root", type=Path, default=Path("/"), help="folder to find /dev and /sys in, for tests"
    )
    return parser


def main(
    arguments: Sequence[str] | None = None,
    opened: Callable[..., Accelerator] = BoardAccelerator,
) -> int:
    """Run the agent; ``opened`` opens the accelerator."""
    args = _parser().parse_args(arguments)

    def log(text: str) -> None:
        print(f"lutra agent: {text}", file=sys.stderr, flush=True)

    def stop(*_: object) -> NoReturn:
        raise SystemExit(0)

    try:
        if args.make_key is not None:
            make_key(args.make_key)
            return 0
        if args.listen is not None and args.key is None:
            raise AgentError("--listen needs a shared key: add --key FILE (see --make-key)")
        key = None if args.key is None else read_key(args.key)
        with held_fabric(args.bitstream, args.root):
            accelerator = opened(args.uio, args.registers, args.buffer, args.root)
            signal.signal(signal.SIGTERM, stop)
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(signal.SIGHUP, stop)
            agent = Agent(accelerator, key, log)
            try:
                if args.stdio:
                    _serve_stdio(agent)
                else:
                    serve_port(agent, args.listen or "127.0.0.1", args.port, log)
            finally:
                agent.abort()
                accelerator.close()
        return 0
    except AgentError as error:
        log(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

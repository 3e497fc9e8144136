"""A board as a transport: the accelerator that an agent on the board lends to this process."""

import logging
import math
import os
import struct
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lutra.devices.accelerator.agent import (
    BODY_MAX,
    HELD,
    LOST,
    NEW_SESSION,
    OK,
    OPENED,
    OPERATIONS,
    REGION,
    ZERO_MAX,
    AgentError,
    LinkError,
    printable,
    read_key,
)
from lutra.devices.accelerator.board_link import BoardAddress, BoardLink
from lutra.devices.accelerator.transport import Heap
from lutra.devices.base import DeviceError
from lutra_golden.control.descriptor import DOORBELL_BYTES, QUEUE_DEPTH
from lutra_golden.control.failure import describe_units
from lutra_golden.control.registers import (
    CONTROL_ABORT,
    CONTROL_START,
    COUNTERS,
    REGISTERS,
    STATUS_BUSY,
)
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import ADDRESS_WIDTH

__all__ = ["BoardTransport"]

_log = logging.getLogger(__name__)

_FREE_S = 3.0  # that another host has to give the accelerator back
_SAY_S, _AGAIN_S = 0.5, 0.05  # until that is said; between attempts
_ANSWER_S = 20.0  # beside what an operation may take
_SLICE_S = 0.5  # of a wait, which the agent ends at the latest
_PIECE = BODY_MAX - (1 << 12)  # bytes of memory in a message
_POSTED_MAX = 1 << 16  # bytes of operations that wait for one with an answer
_AFTER_MAX = 8  # reads that are made with the next wait
_NOT_OVER = b"\0"  # answer to a wait: what comes behind it was left out
_Read = tuple[int, int]  # address and bytes of a part of memory


class BoardTransport:
    """The accelerator of a board, through its agent.

    Writes wait until something is to be read, so that a token takes one message: the descriptor,
    the doorbell, the wait, and what was read after the last one. ``key`` is the file of the key
    that the agent shares, that of ``LUTRA_BOARD_KEY`` if left out.

    When the link drops, a call fails with one line; the next one connects again and finds memory
    as it was, if the agent still runs and has been lent to nobody else.
    """

    verify_load = True

    def __init__(self, address: BoardAddress, key: Path | None = None) -> None:
        self.name = str(address)
        self.emulated: str | None = None
        path = os.environ.get("LUTRA_BOARD_KEY") if key is None else key
        self._address, self._key_path = address, Path(path) if path else None
        self._link: BoardLink | None = None
        self._session, self._lost = NEW_SESSION, "it is closed"
        self._heaps: dict[int, Heap] = {}
        self._pid = os.getpid()
        # an interrupt ends the wait for an answer here, not the order of messages there
        self._worker: ThreadPoolExecutor | None = None
        # operations without an answer, and which of them must be repeated if their link drops
        self._posted: list[tuple[bytes, bool]] = []
        self._posted_bytes = 0
        self._rung = 0  # doorbells that were not waited for
        self._started = False
        self._after: list[_Read] = []  # what was read since the last wait
        self._fetched: dict[_Read, bytes] = {}
        self.n_messages = 0
        """Messages sent so far, each of which waits for an answer."""

    # -- memory

    def find(self) -> None:
        """See that an agent answers; whoever has its accelerator keeps it."""
        self._linked().close()

    def open(self, config: AcceleratorConfig, n_bytes: int) -> None:
        """Connect; the memory is what the board has, however many bytes would be good."""
        self.close()
        self._pid, self._worker = os.getpid(), ThreadPoolExecutor(1, "board")
        regions = self._connect(NEW_SESSION)
        if any(base + size > 1 << ADDRESS_WIDTH for base, size in regions):
            raise DeviceError(
                f"{self.name}: its memory is beyond the accelerator's {ADDRESS_WIDTH} bits of "
                "address: give the agent a lower buffer"
            )
        self._heaps = {base: Heap(size) for base, size in regions}

    def allocate(self, n_bytes: int, bank: int = 0) -> int:
        """Address of memory, in the first region that has room; there is one bank."""
        refused = DeviceError(f"{self.name} has no memory: {self._lost}")
        for base, heap in self._heaps.items():
            try:
                return base + heap.allocate(n_bytes)
            except DeviceError as error:
                refused = error
        raise refused

    def free(self, address: int) -> None:
        """Give memory back."""
        for base in sorted(self._heaps, reverse=True):
            if base <= address:
                self._heaps[base].free(address - base)
                return

    def write(self, address: int, data: bytes) -> None:
        """Write to memory."""
        view = memoryview(data)
        for first in range(0, len(view), _PIECE):
            piece = view[first : first + _PIECE]
            operation = _operation("WRITE_MEMORY", address + first, len(piece)) + piece
            self._post(operation, "memory to be written")

    def zero(self, address: int, n_bytes: int) -> None:
        """Write zeros to memory."""
        for first in range(0, n_bytes, ZERO_MAX):
            size = min(ZERO_MAX, n_bytes - first)
            self._ask(_operation("ZERO_MEMORY", address + first, size), 0, "memory to be zeroed")

    def read(self, address: int, n_bytes: int) -> bytes:
        """Read memory."""
        if len(self._after) < _AFTER_MAX and n_bytes + sum(n for _, n in self._after) <= _PIECE:
            self._after.append((address, n_bytes))
        fetched = self._fetched.pop((address, n_bytes), None)
        if fetched is not None:
            return fetched
        parts: list[bytes] = []
        for first in range(0, n_bytes, _PIECE):
            size = min(_PIECE, n_bytes - first)
            operation = _operation("READ_MEMORY", address + first, size)
            parts.append(self._ask(operation, size, "memory to be read"))
        return b"".join(parts)

    # -- registers and runs

    def write_register(self, name: str, value: int, index: int = 0) -> None:
        """Write a register."""
        self._write_word(name, value, index, again=name != "CONTROL")
        if name == "CONTROL" and value & CONTROL_ABORT:
            self._rung, self._started = 0, False

    def read_register(self, name: str, index: int = 0) -> int:
        """Read a register."""
        (value,) = self._read_words(name, 1, index)
        return value

    def start(self) -> None:
        """Begin a run."""
        self._write_word("CONTROL", CONTROL_START)
        self._started = True

    def ring(self, address: int) -> None:
        """Queue a descriptor."""
        if self._rung > QUEUE_DEPTH and self.read_register("PENDING") > QUEUE_DEPTH:
            raise DeviceError(f"{QUEUE_DEPTH} descriptors wait already: wait for one of them first")
        self._write_word("DOORBELL", address // DOORBELL_BYTES)
        self._rung += 1

    def wait(self, timeout_s: float | None) -> int | None:
        """Wait for the end of the first descriptor, or of the run that was started."""
        if self._rung:
            until = REGISTERS["PENDING"].address, 0xFFFFFFFF, self._rung - 1
        elif self._started:
            until = REGISTERS["STATUS"].address, STATUS_BUSY, 0
        else:
            raise DeviceError(f"{self.name} waits for a start")
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        reads, self._after = self._after, []
        cycles = _operation("READ_REGISTERS", REGISTERS["COUNTER"].address, 2)
        cycles += b"".join(_operation("READ_MEMORY", *each) for each in reads)
        n_bytes = 9 + sum(size for _, size in reads)
        while True:
            seconds = min(_SLICE_S, max(end - time.monotonic(), 0))
            wait = _operation("WAIT", *until, int(1000 * seconds))
            answer = self._ask(wait + cycles, n_bytes, "the end of a run", or_=_NOT_OVER)
            if answer[0]:
                break
            if time.monotonic() >= end:
                raise DeviceError(
                    f"device {self.name} is not done after {timeout_s} s: "
                    f"{describe_units(self.read_register('UNIT_STATE'))}"
                )
        self._rung, self._started = max(self._rung - 1, 0), False
        at = 9
        for each in reads:
            self._fetched[each] = answer[at : at + each[1]]
            at += each[1]
        low, high = struct.unpack("<II", answer[1:9])
        return low | high << 32

    def reset(self) -> None:
        """End what the accelerator does; where the link has dropped, the agent does so itself."""
        self._rung, self._started = 0, False
        if self._link is not None:
            self._ask(_operation("RESET"), 0, "the accelerator to be reset")

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run."""
        words = self._read_words("COUNTER", 2 * len(COUNTERS))
        pairs = zip(words[::2], words[1::2], strict=True)
        return {name: low | high << 32 for name, (low, high) in zip(COUNTERS, pairs, strict=True)}

    def close(self) -> None:
        """Give the accelerator back to the agent, and disconnect."""
        link, self._link = self._link, None
        worker, self._worker = self._worker, None
        self._forget("it is closed")
        if self._pid != os.getpid():
            return  # the link is the parent's, and so is the thread
        if link is not None and worker is not None:
            with suppress(LinkError):  # the agent frees it in any case
                worker.submit(link.ask, _operation("BYE"), _ANSWER_S).result()
            link.close()
        if worker is not None:
            worker.shutdown()

    # -- messages

    def _write_word(self, name: str, value: int, index: int = 0, *, again: bool = False) -> None:
        operation = _operation("WRITE_REGISTERS", REGISTERS[name].address + 4 * index, 1)
        self._post(operation + struct.pack("<I", value), f"{name} to be written", again=again)

    def _read_words(self, name: str, count: int, index: int = 0) -> tuple[int, ...]:
        operation = _operation("READ_REGISTERS", REGISTERS[name].address + 4 * index, count)
        words = self._ask(operation, 4 * count, f"{name} to be read")
        return struct.unpack(f"<{count}I", words)

    def _post(self, operation: bytes, what: str, *, again: bool = True) -> None:
        """Leave an operation for the next message, unless these become many bytes."""
        self._fetched.clear()
        if self._posted_bytes + len(operation) > BODY_MAX:
            self._ask(b"", 0, what)
        self._posted.append((operation, again))
        self._posted_bytes += len(operation)
        if self._posted_bytes > _POSTED_MAX:
            self._ask(b"", 0, what)

    def _ask(self, operation: bytes, n_bytes: int, what: str, *, or_: bytes | None = None) -> bytes:
        """Send what is posted and ``operation``; its answer, of ``n_bytes`` or ``or_``."""
        self._fetched.clear()
        if self._posted_bytes + len(operation) > BODY_MAX:
            self._ask(b"", 0, what)
        if self._link is None:
            self._connect_again()
        answer = self._exchange(b"".join(each for each, _ in self._posted) + operation, what)
        self._posted, self._posted_bytes = [], 0
        if answer[:1] != bytes([OK]):
            raise DeviceError(f"device {self.name}: {_text(answer)}")
        if len(answer) != 1 + n_bytes and answer[1:] != or_:
            self._drop()
            raise self._strange(answer)
        return answer[1:]

    def _strange(self, answer: bytes) -> DeviceError:
        return DeviceError(
            f"device {self.name} gives an answer of {len(answer)} bytes that fits no question: "
            "copy this Lutra's agent to the board"
        )

    def _exchange(self, body: bytes, what: str) -> bytes:
        assert self._link is not None and self._worker is not None
        self.n_messages += 1
        try:
            return self._worker.submit(self._link.ask, body, _ANSWER_S).result()
        except LinkError as error:
            self._drop()
            raise DeviceError(f"device {self.name}, waiting for {what}: {error}") from None
        except BaseException:
            self._keep()
            raise

    def _connect(self, session: bytes) -> list[tuple[int, int]]:
        """Open the accelerator, for a new session or a known one; its regions of memory."""
        answer = self._opened_when_free(session)
        if answer[:1] != bytes([OK]):
            self._drop()
            if answer[:1] == bytes([LOST]):
                self._forget(_text(answer))
                raise self._gone()
            raise DeviceError(f"device {self.name}: {_text(answer)}")
        opened, regions = answer[1 : 1 + OPENED.size], answer[1 + OPENED.size :]
        if len(opened) < OPENED.size or len(regions) % REGION.size:
            self._drop()
            raise self._strange(answer)
        self._session, _, _, _ = OPENED.unpack(opened)
        return list(REGION.iter_unpack(regions))

    def _opened_when_free(self, session: bytes) -> bytes:
        """The agent's answer to OPEN; a host that is about to go is waited for."""
        began, is_said = time.monotonic(), False
        while True:
            try:
                self._link = self._linked()
            except DeviceError:
                self._keep()
                raise
            answer = self._exchange(_operation("OPEN", session), "the accelerator to be opened")
            if answer[:1] != bytes([HELD]):
                return answer
            self._drop()
            waited, held = time.monotonic() - began, f"device {self.name} is {_text(answer)}"
            if waited >= _FREE_S:
                raise DeviceError(f"{held}: wait until it is done, or end it")
            if waited >= _SAY_S and not is_said:
                is_said = True
                _log.warning("%s, which is waited for, %g s at most", held, _FREE_S)
            time.sleep(_AGAIN_S)

    def _linked(self) -> BoardLink:
        """A link to the agent."""
        try:
            key = None if self._key_path is None else read_key(self._key_path)
            return BoardLink(self._address, key)
        except AgentError as error:
            raise DeviceError(f"device {self.name}: {error}") from None

    def _connect_again(self) -> None:
        """Find the session again whose link dropped."""
        if self._session == NEW_SESSION:
            raise self._gone()
        self._connect(self._session)

    def _drop(self) -> None:
        """Give a link up."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self._keep()
        if not self._address.lives:
            self._forget("its agent ended with the link")

    def _keep(self) -> None:
        """Keep of the operations that may not have been carried out those that must be."""
        self._posted = [each for each in self._posted if each[1]]
        self._posted_bytes = sum(len(operation) for operation, _ in self._posted)
        self._rung, self._started = 0, False

    def _forget(self, reason: str) -> None:
        """Forget the session, and all that is in memory."""
        self._session, self._lost, self._heaps = NEW_SESSION, reason, {}
        self._posted, self._posted_bytes, self._after = [], 0, []
        self._fetched.clear()
        self._rung, self._started = 0, False

    def _gone(self) -> DeviceError:
        return DeviceError(
            f"device {self.name} no longer has the model ({self._lost}): load it again"
        )


def _operation(name: str, *fields: int | bytes) -> bytes:
    code, form = OPERATIONS[name]
    return bytes([code]) + form.pack(*fields)


def _text(answer: bytes) -> str:
    return printable(answer[1:].decode("utf-8", "replace"))

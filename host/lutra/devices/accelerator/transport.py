"""Transports: how the driver reaches an accelerator and its memory."""

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

from lutra.compile.fit import round_up
from lutra.devices.base import DeviceError
from lutra_golden.control.registers import CONTROL_ABORT, STATUS_BUSY, STATUS_DRAINING
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import BOUNDARY_BYTES

__all__ = [
    "PAGE",
    "DoorbellTransport",
    "FindableTransport",
    "Heap",
    "RegisterTransport",
    "Transport",
    "abort",
    "read_pair",
]

PAGE = BOUNDARY_BYTES
"""Bytes of a page: what allocations begin at and are rounded up to."""
_ABORT_READS = 1000  # of STATUS, until an aborted run must be over


class Transport(Protocol):
    """A way to an accelerator: its memory, and the end of a run.

    Runs are started by its registers (:class:`RegisterTransport`), by descriptors
    (:class:`DoorbellTransport`), or by either.

    Whatever goes wrong on the way is a :class:`~lutra.devices.base.DeviceError` with one line.
    """

    name: str
    emulated: str | None
    """The board that is simulated, None if what runs is no board or is one."""
    verify_load: bool
    """True if the driver is to have the accelerator sum up what was loaded, as boards are."""

    def open(self, config: AcceleratorConfig, n_bytes: int) -> None:
        """Connect to an accelerator of ``config`` with ``n_bytes`` of memory or more."""
        ...

    def allocate(self, n_bytes: int, bank: int = 0) -> int:
        """Address of ``n_bytes`` of memory of a bank, at the beginning of a page."""
        ...

    def free(self, address: int) -> None:
        """Give back what :meth:`allocate` gave."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Write to memory."""
        ...

    def zero(self, address: int, n_bytes: int) -> None:
        """Write zeros to memory."""
        ...

    def read(self, address: int, n_bytes: int) -> bytes:
        """Read memory, all of which must have been written."""
        ...

    def wait(self, timeout_s: float | None) -> int | None:
        """Wait for the interrupt that ends a run; returns its clock cycles, None if unknown.

        DeviceError, with the name of what is waiting, after ``timeout_s`` or where the transport
        sees that the run hangs.
        """
        ...

    def reset(self) -> None:
        """End what the accelerator does, whatever that is; memory stays, registers do not."""
        ...

    def close(self) -> None:
        """Disconnect; a second call does nothing."""
        ...


@runtime_checkable
class RegisterTransport(Transport, Protocol):
    """A way to an accelerator whose registers can be reached."""

    def write_register(self, name: str, value: int, index: int = 0) -> None:
        """Write a register of :data:`~lutra_golden.control.registers.REGISTERS`."""
        ...

    def read_register(self, name: str, index: int = 0) -> int:
        """Read a register."""
        ...

    def start(self) -> None:
        """Start the run that the registers describe; its end is not yet signalled."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run; empty where there are none."""
        ...


@runtime_checkable
class DoorbellTransport(Transport, Protocol):
    """A way to an accelerator that takes descriptors."""

    def ring(self, address: int) -> None:
        """Queue the descriptor at ``address``; :meth:`wait` waits for the one that came first.

        DeviceError if too many wait already.
        """
        ...


@runtime_checkable
class FindableTransport(Transport, Protocol):
    """A way to something that may not be here."""

    def find(self) -> None:
        """See that it is here, in a moment, and take nothing of it; LutraError says what is missing
        if it is not."""
        ...


def read_pair(transport: RegisterTransport, name: str) -> int:
    """A register of two words."""
    return transport.read_register(name) | transport.read_register(name, 1) << 32


def abort(transport: Transport) -> bool:
    """Abort the run that is under way; true if it is over soon."""
    if not isinstance(transport, RegisterTransport):
        return False
    try:
        transport.write_register("CONTROL", CONTROL_ABORT)
        status = (transport.read_register("STATUS") for _ in range(_ABORT_READS))
        return any(not each & (STATUS_BUSY | STATUS_DRAINING) for each in status)
    except DeviceError:
        return False


class Heap:
    """Address allocator for ``n_bytes`` of memory from ``base`` on: first fit, whole pages."""

    def __init__(self, n_bytes: int, base: int = 0) -> None:
        self._n_bytes, self._base = n_bytes, base
        self._used: dict[int, int] = {}
        self._tickets: dict[int, int] = {}
        self._n_allocated = 0

    def allocate(self, n_bytes: int) -> int:
        """Lowest address with room for ``n_bytes``."""
        size, at = round_up(max(n_bytes, 1), PAGE), 0
        # a collection of garbage may free a session's memory at any point of this
        for first in sorted(self._used):
            if first - at >= size:
                break
            at = first + self._used.get(first, 0)
        if at + size > self._n_bytes:
            raise DeviceError(
                f"the accelerator's memory has no {size:,} bytes in a row: {self.free_bytes:,} of "
                f"{self._n_bytes:,} bytes are free"
            )
        self._n_allocated += 1
        self._tickets[at] = self._n_allocated
        self._used[at] = size
        return self._base + at

    def ticket(self, address: int) -> int:
        """Number of the allocation at ``address``, which no other has."""
        return self._tickets[address - self._base]

    def free(self, address: int, ticket: int | None = None) -> None:
        """Give back what begins at ``address``; nothing if another allocation is there now."""
        at = address - self._base
        if ticket is None or ticket == self._tickets.get(at):
            self._used.pop(at, None)

    def keep(self, addresses: Collection[int]) -> None:
        """Give back all but what begins at ``addresses``: what an interrupt has lost, too."""
        for at in list(self._used):
            if at + self._base not in addresses:
                self._used.pop(at, None)

    @property
    def free_bytes(self) -> int:
        """Bytes that are not taken."""
        return self._n_bytes - sum(self._used.values())

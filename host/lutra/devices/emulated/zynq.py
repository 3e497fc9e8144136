"""The processor's side of an emulated Zynq UltraScale+: interrupts, clocks, and caches."""

from __future__ import annotations

import asyncio
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lutra.devices.emulated.board import BoardFault, EmulatedBoard

__all__ = ["Cached", "Clocks", "InterruptController", "Uio"]

_LINE = 64  # bytes of a cache line
_SLICE_CYCLES = 5000
_PENDING, _ENABLE, _ACKNOWLEDGE, _SET, _CLEAR, _MASTER = 0x04, 0x08, 0x0C, 0x10, 0x14, 0x1C
_ON = 3  # of the master enable register: hardware interrupts reach the processor


class InterruptController:
    """An AXI interrupt controller with one input that is sensitive to its level (PG099).

    An acknowledgement while the input is still high is followed by the next interrupt.
    """

    def __init__(self, board: EmulatedBoard) -> None:
        self._board = board
        self._status = self._enabled = self._master = 0

    def reset(self) -> None:
        """Be as it is when the fabric was loaded."""
        self._status = self._enabled = self._master = 0

    @property
    def output(self) -> bool:
        """State of the line to the processor."""
        self._status |= int(self._board.level)
        return bool(self._status & self._enabled) and self._master == _ON

    def read(self, offset: int) -> int:
        """Read a register."""
        self._status |= int(self._board.level)
        if offset == _PENDING:
            return self._status & self._enabled
        raise BoardFault(f"the interrupt controller is read at {offset:#x}")

    def write(self, offset: int, value: int) -> None:
        """Write a register."""
        if offset == _ACKNOWLEDGE:
            self._status &= ~value
        elif offset == _ENABLE:
            self._enabled = value & 1
        elif offset == _SET:
            self._enabled |= value & 1
        elif offset == _CLEAR:
            self._enabled &= ~value
        elif offset == _MASTER:
            self._master = value
        else:
            raise BoardFault(f"the interrupt controller is written at {offset:#x}")


class Event(Protocol):
    """Something that waits for an interrupt."""

    def set(self) -> None: ...


class Uio:
    """The side of a UIO device that PYNQ sees: ``add_event``.

    While somebody waits, the board's clock runs, a slice at a time, in the loop that waits.
    """

    def __init__(self, board: EmulatedBoard, controller: InterruptController) -> None:
        self._board, self._controller = board, controller
        self.wait_events: list[Event] = []
        """Those who wait, by the name that PYNQ has for them."""
        self._running = False

    def add_event(self, event: Event, _number: int) -> None:
        """Set ``event`` at the next interrupt."""
        self.wait_events.append(event)
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._step)

    def forget(self) -> None:
        """Forget who waits, as the system does when their process has ended."""
        self.wait_events.clear()

    def _step(self) -> None:
        self._running = False
        if not self.wait_events:
            return
        board, comes = self._board, False
        faults = board.faults
        if faults.extra_interrupts:
            faults.extra_interrupts -= 1
            comes = True
        elif self._controller.output:
            # the kernel takes its time
            comes = board.random.random() < 0.5
        else:
            board.advance(board.random.randint(_SLICE_CYCLES // 2, _SLICE_CYCLES))
        if comes and self._controller.output and faults.lost_interrupts:
            comes = False
        if comes:
            events, self.wait_events = self.wait_events, []
            for each in events:
                each.set()
        if self.wait_events and not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._step)


class Clocks:
    """Registers of the clock generators that PYNQ reads and writes, by address.

    At power-up the fabric has 100 MHz.
    """

    # offsets in CRL_APB and CRF_APB (UG1087); PLL: feedback divider in 14:8, halved by bit 16
    _CRL, _CRF = 0xFF5E_0000, 0xFD1A_0000
    _FABRIC = 0xFF5E_00C0
    _PLLS = (_CRL + 0x20, _CRL + 0x30, _CRF + 0x20, _CRF + 0x2C, _CRF + 0x38)

    def __init__(self, board: EmulatedBoard) -> None:
        self._board = board
        self._words = dict[int, int]()
        self._words |= dict.fromkeys(self._PLLS, 90 << 8 | 1 << 16)
        self._words |= {self._FABRIC + 4 * i: 1 << 24 | 1 << 16 | 15 << 8 for i in range(4)}

    def __contains__(self, address: int) -> bool:
        return address in self._words

    def read(self, address: int) -> int:
        """Read a register."""
        return self._words[address]

    def write(self, address: int, value: int) -> None:
        """Write a register."""
        if not (self._board.faults.slow_clock and address == self._FABRIC):
            self._words[address] = value


class Cached:
    """A buffer as a processor sees it that caches all of it until it is told otherwise.

    Whole cache lines go to memory and come from it, so that a line which both sides write to shows.
    """

    def __init__(self, board: EmulatedBoard, address: int, n_bytes: int) -> None:
        self.address, self.n_bytes = address, n_bytes
        self._board = board
        self.host: NDArray[np.uint8] = np.zeros(n_bytes, np.uint8)
        """The processor's copy."""

    def flush(self, offset: int, n_bytes: int) -> None:
        """Write the processor's copy of a range to memory."""
        first, end = self._lines(offset, n_bytes)
        self._board.simulator.write(self.address + first, self.host[first:end])

    def invalidate(self, offset: int, n_bytes: int) -> None:
        """Take a range from memory, which must have been written.

        A single line may be taken for the sake of some of it.
        """
        simulator = self._board.simulator
        if n_bytes > _LINE:
            simulator.read(self.address + offset, n_bytes)
        first, end = self._lines(offset, n_bytes)
        data = simulator.peek(self.address + first, end - first)
        self.host[first:end] = np.frombuffer(data, np.uint8)

    def _lines(self, offset: int, n_bytes: int) -> tuple[int, int]:
        first, end = offset // _LINE * _LINE, -(-(offset + n_bytes) // _LINE) * _LINE
        return first, min(end, self.n_bytes)

"""A board that is not here: the Verilated accelerator, its memory and interrupt, and faults."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lutra.devices.accelerator.transport import Heap
from lutra.devices.base import DeviceError
from lutra_golden.control.registers import REGISTERS
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Response
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_golden.timing.boards import BoardProfile, board_timing

if TYPE_CHECKING:
    from lutra_sim.rtl.device import Simulator

__all__ = ["BoardFault", "EmulatedBoard", "Faults"]

Progress = Callable[[str, float], None]
_ACCESS_CYCLES = (20, 400)  # of the fabric, while the processor reads or writes a register
_NAMES = {
    register.address + 4 * index: (name, index)
    for name, register in REGISTERS.items()
    for index in range(register.count)
}
"""Registers by address."""


class BoardFault(RuntimeError):
    """An access that the board cannot do; on a real one the process would be killed."""


@dataclass
class Faults:
    """Faults that are injected, beside those of the memory ports.

    With ``lost_interrupts`` none reaches the driver; ``extra_interrupts`` are how many are still to
    come for no reason; ``slow_clock`` leaves the fabric's clock as it was at power-up;
    ``reset_after`` resets the accelerator so many clock cycles from now; ``short_buffers`` gives
    half of the bytes that were asked for; ``hole_bytes`` is the largest piece of memory in a row.
    """

    lost_interrupts: bool = False
    extra_interrupts: int = 0
    slow_clock: bool = False
    reset_after: int | None = None
    short_buffers: bool = False
    hole_bytes: int | None = None


class EmulatedBoard:
    """A board in this process. What is on it stays when a driver leaves.

    Latencies of registers, interrupts and memory are drawn from ``seed``. A clock cycle passes
    only while the processor waits or accesses a register.
    """

    def __init__(
        self, board: BoardProfile, *, seed: int = 0, progress: Progress | None = None
    ) -> None:
        self.board, self.faults, self.random = board, Faults(), random.Random(seed)
        self.level = False
        """State of the interrupt line."""
        self._seed, self._progress = seed, progress
        self._simulator: Simulator | None = None
        self._heap = Heap(board.buffer_bytes)
        self._sizes: dict[int, int] = {}

    @property
    def simulator(self) -> Simulator:
        """The accelerator that is on the fabric."""
        if self._simulator is None:
            raise BoardFault("nothing is on the fabric: load a bitstream first")
        return self._simulator

    # -- the fabric

    def program(self, config: AcceleratorConfig) -> None:
        """Put an accelerator of ``config`` on the fabric; memory stays as it is."""
        self.level = False
        before = self._simulator
        if before is not None and before.config.fingerprint == config.fingerprint:
            self.reset()
            return
        self._simulator = self._build(config)
        self.reset()
        if before is not None:
            for address, n_bytes in self._sizes.items():
                self._simulator.write(address, before.peek(address, n_bytes))
            before.close()

    def _build(self, config: AcceleratorConfig) -> Simulator:
        from lutra_sim.rtl.build import BuildError
        from lutra_sim.rtl.device import RtlError, Simulator
        from lutra_sim.rtl.toolchain import ToolchainError

        board = self.board
        try:
            return Simulator(
                config,
                board.buffer_base + board.buffer_bytes,
                board_timing(board, config, self._seed),
                watchdog_cycles=0,
                progress=self._progress,
            )
        except ModuleNotFoundError as error:
            raise LutraError(
                f"the emulated board needs {error.name}, which is not installed: run "
                f"`{install_command('sim')}`"
            ) from None
        except (BuildError, RtlError, ToolchainError) as error:
            raise DeviceError(str(error)) from None

    def advance(self, n_cycles: int) -> bool:
        """Let the clock run, up to the interrupt; its level."""
        faults = self.faults
        if faults.reset_after is not None:
            n_cycles = min(n_cycles, faults.reset_after)
            faults.reset_after -= n_cycles
            if not faults.reset_after:
                faults.reset_after = None
                self.reset()
                return self.level
        self.level = self.simulator.run(max(n_cycles, 1))
        return self.level

    def reset(self) -> None:
        """Reset the fabric in whatever it does, as its reset line would."""
        simulator = self.simulator
        simulator.reset()
        # what the simulator's own host enables, and no reset line does
        simulator.write_register("IRQ_ENABLE", 0)
        self.level = False

    def disturb(
        self, port: int, at: int | None, response: int | None = Response.SLVERR,
        *, writes: bool = False,
    ) -> None:  # fmt: skip
        """Spoil a transfer of a memory port; see :meth:`Simulator.disturb`."""
        self.simulator.disturb(port, at, response, writes=writes)

    # -- registers

    def read(self, address: int) -> int:
        """Read the register at an offset, by AXI4-Lite."""
        self.advance(self.random.randint(*_ACCESS_CYCLES))
        return self.simulator.read_register(*self._register(address))

    def write(self, address: int, value: int) -> None:
        """Write the register at an offset, by AXI4-Lite."""
        self.advance(self.random.randint(*_ACCESS_CYCLES))
        name, index = self._register(address)
        self.simulator.write_register(name, value, index)
        self.level = self.simulator.run(1)

    def _register(self, address: int) -> tuple[str, int]:
        if address not in _NAMES:
            raise BoardFault(f"there is no register at {address:#x}: the bus answers SLVERR")
        return _NAMES[address]

    # -- memory

    def allocate(self, n_bytes: int) -> tuple[int, int]:
        """Address of a buffer, and its bytes; BoardFault if there are not so many in a row."""
        hole = self.faults.hole_bytes
        if hole is not None and n_bytes > hole:
            raise BoardFault(f"BO allocation failed: no {n_bytes} bytes in a row")
        try:
            address = self.board.buffer_base + self._heap.allocate(n_bytes)
        except DeviceError as error:
            raise BoardFault(f"BO allocation failed: {error}") from None
        self._sizes[address] = n_bytes
        return address, n_bytes // 2 if self.faults.short_buffers else n_bytes

    def free(self, address: int) -> None:
        """Give a buffer back."""
        if self._sizes.pop(address, None) is not None:
            self._heap.free(address - self.board.buffer_base)

    @property
    def n_buffers(self) -> int:
        """Buffers that are not given back."""
        return len(self._sizes)

    def close(self) -> None:
        """Take the board away."""
        simulator, self._simulator = self._simulator, None
        if simulator is not None:
            simulator.close()

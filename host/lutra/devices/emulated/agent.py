"""An agent without a board: it lends an accelerator that is interpreted or simulated here.

python -m lutra.devices.emulated.agent
lutra run -dev board://127.0.0.1 -n 8
"""

import argparse
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from lutra.devices.accelerator.agent import Accelerator, AgentError, main
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import DeviceError
from lutra.progress import StepProgress
from lutra_golden.control.descriptor import DOORBELL_BYTES
from lutra_golden.control.registers import CONTROL_ABORT, CONTROL_START, REGISTERS, STATUS_BUSY
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import CONFIGS
from lutra_golden.errors import LutraError

__all__ = ["BASE", "InterpretedAccelerator", "RtlAccelerator"]

BASE = 0x4_0000
"""Address of the memory."""
_BYTES = 256 << 20
_CYCLES = 5000  # that pass at a time while the agent waits
_NAMES = {
    register.address + 4 * index: (name, index)
    for name, register in REGISTERS.items()
    for index in range(register.count)
}
"""Registers by address."""


class InterpretedAccelerator(Accelerator):
    """The interpreter, which carries a run out while the agent waits for its end."""

    def __init__(self, config: AcceleratorConfig, n_bytes: int = _BYTES) -> None:
        self.transport, self.regions = InterpretedTransport(), ((BASE, n_bytes),)
        self.transport.open(config, BASE + n_bytes)
        self._started = False

    def read_register(self, offset: int) -> int:
        """Read a register."""
        name, index = _NAMES[offset]
        doorbells = self.transport.interpreter.doorbells
        if name == "PENDING":
            return len(doorbells)
        if name in ("IRQ_STATUS", "UNIT_STATE", "COUNTER"):
            return 0
        busy = STATUS_BUSY * bool(doorbells or self._started) if name == "STATUS" else 0
        return self.transport.read_register(name, index) | busy

    def write_register(self, offset: int, value: int) -> None:
        """Write a register."""
        name, index = _NAMES[offset]
        if name == "DOORBELL":
            self.transport.ring(value * DOORBELL_BYTES)
        elif name == "CONTROL" and value & CONTROL_START:
            self.transport.start()
            self._started = True
        elif name not in ("IRQ_ENABLE", "IRQ_STATUS"):
            self.transport.write_register(name, value, index)
            self._started &= not (name == "CONTROL" and value & CONTROL_ABORT)

    def read(self, address: int, n_bytes: int) -> bytes:
        """Read memory."""
        with _faults():
            return self.transport.read(address, n_bytes)

    def write(self, address: int, data: bytes) -> None:
        """Write memory."""
        self.transport.write(address, data)

    def pause(self, wake: int, seconds: float) -> None:
        """Carry the run out."""
        with _faults():
            self.transport.wait(None)
        self._started = False

    def close(self) -> None:
        """Take it away."""
        self.transport.close()


class RtlAccelerator(Accelerator):
    """The Verilated accelerator, whose clock runs while the agent waits."""

    def __init__(self, config: AcceleratorConfig, n_bytes: int = _BYTES) -> None:
        self.regions = ((BASE, n_bytes),)
        with StepProgress() as progress:
            self.transport = RtlTransport(progress=progress)
            self.transport.open(config, BASE + n_bytes)

    def read_register(self, offset: int) -> int:
        """Read a register by AXI4-Lite."""
        with _faults():
            return self.transport.read_register(*_NAMES[offset])

    def write_register(self, offset: int, value: int) -> None:
        """Write a register by AXI4-Lite."""
        name, index = _NAMES[offset]
        with _faults():
            self.transport.write_register(name, value, index)

    def read(self, address: int, n_bytes: int) -> bytes:
        """Read memory."""
        with _faults():
            return self.transport.read(address, n_bytes)

    def write(self, address: int, data: bytes) -> None:
        """Write memory."""
        self.transport.write(address, data)

    def pause(self, wake: int, seconds: float) -> None:
        """Let the clock run."""
        from lutra_sim.rtl.device import RtlError

        try:
            self.transport.simulator.run(_CYCLES)
        except RtlError as error:
            raise AgentError(str(error)) from None

    def close(self) -> None:
        """Take it away."""
        self.transport.close()


@contextmanager
def _faults() -> Generator[None]:
    """Turn faults of the device into lines for the other end."""
    try:
        yield
    except DeviceError as error:
        raise AgentError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lutra.devices.emulated.agent",
        description="Lend an accelerator without a board. Options of the agent, such as --port, "
        "--listen, --key and --stdio, do what they do on a board.",
    )
    parser.add_argument(
        "--rtl", action="store_true", help="simulate the RTL instead of interpreting programs"
    )
    parser.add_argument(
        "--config", choices=CONFIGS, default="nano", help="configuration (default nano)"
    )
    return parser


def _main(arguments: Sequence[str]) -> int:
    args, rest = _parser().parse_known_args(arguments)
    kind = RtlAccelerator if args.rtl else InterpretedAccelerator

    def opened(*_: object) -> Accelerator:
        try:
            return kind(CONFIGS[args.config])
        except LutraError as error:
            raise AgentError(str(error)) from None

    return main(rest, opened)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))

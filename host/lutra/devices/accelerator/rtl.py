"""The simulated RTL as a transport: the accelerator itself, one clock cycle after another."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lutra.devices.accelerator.transport import Heap
from lutra.devices.base import DeviceError
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_golden.timing.memory import NANO_MEMORY, MemoryTiming

if TYPE_CHECKING:
    from lutra_sim.rtl.device import Simulator

__all__ = ["RtlTransport"]

Progress = Callable[[str, float], None]
_WITHOUT = "device auto runs without it: -dev auto"


class RtlTransport:
    """The Verilated accelerator in this process, and the memory behind it.

    ``timing`` is how that memory behaves; ``wave`` writes a waveform, of the cycles ``wave_cycles``
    only if given; one that is ``traceable`` begins traces later. Building the simulator, when it is
    opened, needs the extra ``sim``, a C++ compiler, make and perl.
    """

    name = "rtl"
    emulated: str | None = None
    verify_load = False

    def __init__(
        self,
        *,
        timing: MemoryTiming = NANO_MEMORY,
        wave: Path | None = None,
        wave_cycles: tuple[int, int] | None = None,
        traceable: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._timing, self._progress, self._traceable = timing, progress, traceable
        self._wave, self._wave_cycles = wave, wave_cycles
        self._simulator: Simulator | None = None
        self._heap = Heap(0)
        self.max_cycles: int | None = None
        """Cycles after which a run is given up; None is never."""

    @property
    def simulator(self) -> "Simulator":
        """The simulator, while it is open."""
        if self._simulator is None:
            raise DeviceError("the simulated accelerator is closed: load the model again")
        return self._simulator

    def open(self, config: AcceleratorConfig, n_bytes: int) -> None:
        """Build the simulator of ``config`` if there is none yet, and start it."""
        from lutra_sim.rtl.build import BuildError
        from lutra_sim.rtl.device import RtlError, Simulator
        from lutra_sim.rtl.toolchain import ToolchainError

        self.close()
        try:
            self._simulator = Simulator(
                config,
                n_bytes,
                self._timing,
                trace_path=self._wave,
                trace_cycles=self._wave_cycles,
                traceable=self._traceable,
                progress=self._progress,
            )
        except ModuleNotFoundError as error:
            raise LutraError(
                f"device rtl needs {error.name}, which is not installed: run "
                f"`{install_command('sim')}`; {_WITHOUT}"
            ) from None
        except ToolchainError as error:
            raise LutraError(f"{error}; {_WITHOUT}") from None
        except (BuildError, RtlError) as error:
            raise DeviceError(str(error)) from None
        self._heap = Heap(n_bytes)

    def allocate(self, n_bytes: int, bank: int = 0) -> int:
        """Address of memory; there is one bank."""
        return self._heap.allocate(n_bytes)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._heap.free(address)

    def write(self, address: int, data: bytes) -> None:
        """Write to memory."""
        with _faults():
            self.simulator.write(address, data)

    def zero(self, address: int, n_bytes: int) -> None:
        """Write zeros to memory."""
        with _faults():
            self.simulator.zero(address, n_bytes)

    def read(self, address: int, n_bytes: int) -> bytes:
        """Read memory."""
        with _faults():
            return self.simulator.read(address, n_bytes)

    def write_register(self, name: str, value: int, index: int = 0) -> None:
        """Write a register by AXI4-Lite."""
        with _faults():
            self.simulator.write_register(name, value, index)

    def read_register(self, name: str, index: int = 0) -> int:
        """Read a register by AXI4-Lite."""
        with _faults():
            return self.simulator.read_register(name, index)

    def start(self) -> None:
        """Begin a run."""
        with _faults():
            self.simulator.start()

    def ring(self, address: int) -> None:
        """Queue a descriptor."""
        with _faults():
            self.simulator.ring(address)

    def wait(self, timeout_s: float | None) -> int | None:
        """Simulate until the interrupt; a watchdog counts cycles without progress."""
        with _faults():
            return self.simulator.wait(self.max_cycles, timeout_s=timeout_s)

    def reset(self) -> None:
        """Reset the accelerator and the ports of its memory."""
        with _faults():
            self.simulator.reset()

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run."""
        with _faults():
            return self.simulator.counters()

    def close(self) -> None:
        """Release the simulator; a waveform is complete afterwards."""
        simulator, self._simulator = self._simulator, None
        if simulator is not None:
            with _faults():
                simulator.close()


@contextmanager
def _faults() -> Generator[None]:
    """Turn errors of the simulator into faults of the device."""
    from lutra_sim.rtl.device import RtlError

    try:
        yield
    except RtlError as error:
        raise DeviceError(str(error)) from None

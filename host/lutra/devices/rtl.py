"""The Verilated accelerator as a device: the same program, on the RTL itself."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lutra.compile.program import Program
from lutra.devices.base import DeviceError, Limits, TileResult, check_tile
from lutra_golden.arith.scale import scale_to_float, unpack_scale
from lutra_golden.control.registers import STATUS_SATURATED
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_golden.timing.memory import NANO_MEMORY, MemoryTiming

if TYPE_CHECKING:
    from lutra_sim.rtl.device import RtlDevice as Simulator

__all__ = ["RtlDevice"]

Progress = Callable[[str, float], None]


class RtlDevice:
    """Runs programs on the simulated RTL, one clock cycle after another.

    ``timing`` is how the memory behind it behaves; ``wave`` writes a waveform, of the cycles
    ``wave_cycles`` only if given. Building the simulator, at the first :meth:`load`, needs the
    extra ``sim``, a C++ compiler, make and perl.
    """

    name = "rtl"

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        timing: MemoryTiming = NANO_MEMORY,
        wave: Path | None = None,
        wave_cycles: tuple[int, int] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._config, self._timing, self._progress = config, timing, progress
        self._wave, self._wave_cycles = wave, wave_cycles
        self._program: Program | None = None
        self._simulator: Simulator | None = None

    def _open(self) -> "Simulator":
        if self._simulator is None:
            raise LutraError("no program is loaded: call load(program) first")
        return self._simulator

    def load(self, program: Program) -> None:
        """Take a program; the KV cache starts empty."""
        try:
            from lutra_sim.rtl.build import BuildError
            from lutra_sim.rtl.device import RtlDevice as Simulator
            from lutra_sim.rtl.device import RtlError
            from lutra_sim.rtl.toolchain import ToolchainError
        except ModuleNotFoundError as error:
            raise LutraError(
                f"device rtl needs {error.name}, which is not installed: run "
                f"`{install_command('sim')}`"
            ) from None
        if program.config.fingerprint != self._config.fingerprint:
            raise LutraError(
                f"the program was made for configuration {program.config.fingerprint:016x}, the "
                f"device is {self._config.fingerprint:016x}: compile it again with "
                f"--config {self._config.name}"
            )
        self.close()
        layout = program.memory
        try:
            self._simulator = device = Simulator(
                self._config,
                layout.n_bytes,
                self._timing,
                trace_path=self._wave,
                trace_cycles=self._wave_cycles,
                progress=self._progress,
            )
            device.write(layout.program, program.code)
            device.write(layout.weights, program.weights)
            for address, n_bytes in program.zeros:
                device.zero(address, n_bytes)
            for name, value in (
                ("PROGRAM_BASE", layout.program),
                ("WEIGHT_BASE", layout.weights),
                ("KV_BASE", layout.kv),
                ("LOGITS_BASE", layout.logits),
            ):
                device.write_register(name, value & 0xFFFFFFFF)
                device.write_register(name, value >> 32, 1)
            device.write_register("PROGRAM_BYTES", len(program.code))
            device.write_register("LOGITS_STRIDE", layout.logits_stride)
        except (BuildError, ToolchainError, RtlError) as error:
            raise DeviceError(str(error)) from None
        self._program = program

    def run_tile(self, tokens: Sequence[int], position: int, logits_from: int) -> TileResult:
        """Process ``tokens`` from ``position``; see :class:`~lutra.devices.base.Device`."""
        from lutra_sim.rtl.device import RtlError

        device, program = self._open(), self._program
        assert program is not None
        check_tile(Limits.of(program), tokens, position, logits_from)
        n, layout = len(tokens), program.memory
        try:
            for m, token in enumerate(tokens):
                device.write_register("TOKEN", token, m)
            device.write_register("POSITION", position)
            device.write_register("N_TOKENS", n)
            device.write_register("LOGITS_FROM", logits_from)
            cycles = device.start_and_wait()
            wanted = range(logits_from, n)
            rows = [
                np.frombuffer(
                    device.read(layout.logits + m * layout.logits_stride, 4 * program.vocab_size),
                    "<i4",
                ).astype(np.int64)
                for m in wanted
            ]
            scale = unpack_scale([device.read_register("SCALE", m) for m in wanted])
            argmax = [device.read_register("ARGMAX", m) for m in wanted]
            saturated = bool(device.read_register("STATUS") & STATUS_SATURATED)
        except RtlError as error:
            raise DeviceError(str(error)) from None
        return TileResult(
            logits=np.array(rows, np.int64).reshape(len(rows), program.vocab_size),
            scale=scale_to_float(scale) * program.head_scale,
            argmax=np.array(argmax, np.int64),
            cycles=cycles,
            saturated=saturated,
        )

    def write_memory(self, address: int, data: bytes) -> None:
        """Write into the device's memory (fault injection, tests)."""
        self._open().write(address, data)

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last tile."""
        return self._open().counters()

    def close(self) -> None:
        """Release the simulator; a waveform is complete afterwards."""
        if self._simulator is None:
            return
        from lutra_sim.rtl.device import RtlError

        simulator, self._simulator = self._simulator, None
        try:
            simulator.close()
        except RtlError as error:
            raise DeviceError(str(error)) from None

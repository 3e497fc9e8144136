"""Devices by name, and the fastest that is here."""

from collections.abc import Callable
from pathlib import Path

from lutra.host.devices.base import ModelDevice, ProgramDevice
from lutra.host.devices.cpu.device import CpuDevice
from lutra.host.devices.golden import GoldenDevice
from lutra.host.devices.rtl import RtlDevice
from lutra.host.errors import LutraError
from lutra.sim.golden.core.config import AcceleratorConfig

__all__ = ["DEVICES", "choose_device"]

DEVICES = ("auto", "cpu", "golden", "rtl")
"""Names of devices; ``auto`` is the fastest that is here."""


def choose_device(
    name: str,
    config: Callable[[], AcceleratorConfig],
    *,
    threads: int | None = None,
    wave: Path | None = None,
    wave_cycles: tuple[int, int] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[ProgramDevice | ModelDevice, list[str]]:
    """The device of this name, and for ``auto`` a line on each faster one that can not be used.

    ``config`` is asked by accelerators only.
    """
    if name not in DEVICES:
        raise LutraError(f"device must be {_either(DEVICES)}, not {name!r}")
    if threads is not None and threads < 1:
        raise LutraError(f"threads must be 1 or more, not {threads}")
    if wave is not None and wave.suffix not in (".vcd", ".fst"):
        raise LutraError(f"a waveform file must end in .vcd or .fst, not {wave.name!r}")
    if name == "rtl":
        return RtlDevice(config(), wave=wave, wave_cycles=wave_cycles, progress=progress), []
    if wave is not None:
        raise LutraError("a waveform needs the RTL: add --device rtl")
    if name == "golden":
        return GoldenDevice(), []
    try:
        return CpuDevice(threads, progress), []
    except LutraError as error:
        if name == "cpu":
            raise
        return GoldenDevice(), [f"{error}; until then the device golden runs, in NumPy"]


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"

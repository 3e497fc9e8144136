"""Devices by name, and the fastest that is here."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lutra.devices.base import ModelDevice, ProgramDevice
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.cuda.device import CudaDevice
from lutra.devices.golden import GoldenDevice
from lutra.devices.rtl import RtlDevice
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_kernels import gpu_count, interpreted

__all__ = ["DEVICES", "choose_device", "next_best", "notes_on"]

Progress = Callable[[str, float], None]

DEVICES = ("auto", "cuda", "cpu", "golden", "rtl")
"""Names of devices; ``auto`` is the fastest that is here."""


def _golden(_threads: int | None, _progress: Progress | None) -> ProgramDevice:
    return GoldenDevice()


def _cuda(_threads: int | None, progress: Progress | None) -> ModelDevice:
    return CudaDevice(progress)


_PROCESSORS: Mapping[str, Callable[[int | None, Progress | None], ProgramDevice | ModelDevice]] = {
    "cuda": _cuda,
    "cpu": CpuDevice,
    "golden": _golden,
}
"""Devices that need no configuration to choose them, the fastest first."""


def choose_device(
    name: str,
    config: Callable[[], AcceleratorConfig],
    *,
    threads: int | None = None,
    wave: Path | None = None,
    wave_cycles: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> tuple[ProgramDevice | ModelDevice, list[str]]:
    """The device of this name, and for ``auto`` why each faster one can not be used.

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
    if name == "auto":
        return next_best(None, threads=threads, progress=progress)
    return _PROCESSORS[name](threads, progress), []


def next_best(
    after: str | None,
    reasons: Sequence[str] = (),
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[ProgramDevice | ModelDevice, list[str]]:
    """The fastest device that is here, of those slower than ``after``.

    ``reasons`` why others are not used come back with those of this call. That a machine has no GPU
    needs none.
    """
    names = list(_PROCESSORS)
    for name in names[0 if after is None else names.index(after) + 1 :]:
        if name == "cuda" and not gpu_count() and not interpreted():
            continue
        try:
            found = _PROCESSORS[name](threads, progress)
        except LutraError as error:
            reasons = [*reasons, str(error)]
            continue
        return found, list(reasons)
    raise AssertionError("the golden device is always here")


def notes_on(device: ProgramDevice | ModelDevice, reasons: Sequence[str]) -> list[str]:
    """A line for the user on each reason why ``device`` had to be taken."""
    runs = f"device {device.name} runs instead" + (
        ", in NumPy" if isinstance(device, GoldenDevice) else ""
    )
    return [f"{reason}; {runs}" for reason in reasons]


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"

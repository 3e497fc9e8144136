"""Devices that are processors: they run packed models themselves, without a compiler or a board."""

from collections.abc import Callable, Mapping

from lutra.devices.base import Device
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.cuda.device import CudaDevice
from lutra.devices.golden import GoldenDevice

__all__ = ["PROCESSORS"]

Progress = Callable[[str, float], None]


def _golden(_threads: int | None, _progress: Progress | None) -> Device:
    return GoldenDevice()


def _cpu(threads: int | None, progress: Progress | None) -> Device:
    return CpuDevice(threads, progress)


def _cuda(_threads: int | None, progress: Progress | None) -> Device:
    return CudaDevice(progress)


PROCESSORS: Mapping[str, Callable[[int | None, Progress | None], Device]] = {
    "cuda": _cuda,
    "cpu": _cpu,
    "golden": _golden,
}
"""Devices that run packed models themselves, the fastest first."""

"""Devices that are processors: they run packed models themselves, without a compiler or a board."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lutra.devices.base import Device
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.cuda.device import CudaDevice
from lutra.devices.golden import GoldenDevice
from lutra_golden.model.capabilities import Capabilities

__all__ = ["PROCESSORS", "Processor"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Processor:
    """A way to make a device, which may take long and raises LutraError where it cannot be, and
    the parts of packed models that the device runs."""

    make: Callable[[int | None, Progress | None], Device]
    capabilities: Capabilities


def _golden(_threads: int | None, _progress: Progress | None) -> Device:
    return GoldenDevice()


def _cpu(threads: int | None, progress: Progress | None) -> Device:
    return CpuDevice(threads, progress)


def _cuda(_threads: int | None, progress: Progress | None) -> Device:
    return CudaDevice(progress)


PROCESSORS: Mapping[str, Processor] = {
    "cuda": Processor(_cuda, CudaDevice.capabilities),
    "cpu": Processor(_cpu, CpuDevice.capabilities),
    "golden": Processor(_golden, GoldenDevice.capabilities),
}
"""Devices that run packed models themselves, the fastest first."""

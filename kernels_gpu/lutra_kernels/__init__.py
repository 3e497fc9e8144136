"""Triton kernels and their wrappers: the accelerator's arithmetic on a GPU, bit for bit.

Nothing here imports Triton or torch before a kernel's module is imported.
"""

import ctypes
import os
import sys
from importlib import import_module
from importlib.util import find_spec

from lutra_golden.install import install_command

__all__ = ["gpu_count", "gpu_memory_rate", "interpreted", "interpreter_missing", "missing"]

_NEEDED = "compute capability 8.0 or higher is required"


# attributes of a device by their numbers in cuda.h: kHz, and bits
_MEMORY_CLOCK_RATE, _MEMORY_BUS_WIDTH = 36, 37


def gpu_count() -> int:
    """Number of CUDA devices that the driver reports, 0 without a driver; fast."""
    driver, count = _driver(), ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def gpu_memory_rate() -> float:
    """Bytes per second that the memory of the first CUDA device can deliver, as the driver reports
    its clock and width; 0 without one."""
    driver = _driver()
    device, clock, width = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), 0):
        return 0.0
    for value, attribute in ((clock, _MEMORY_CLOCK_RATE), (width, _MEMORY_BUS_WIDTH)):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return 0.0
    # both edges of the clock bring data
    return 2 * clock.value * 1e3 * width.value / 8


def _driver() -> ctypes.CDLL | None:
    """The CUDA driver, started; None if there is none."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver


def interpreted() -> bool:
    """True if kernels run in Triton's interpreter, which needs no GPU."""
    return os.environ.get("TRITON_INTERPRET", "") in ("1", "true", "on", "yes")


def interpreter_missing() -> str | None:
    """Reason why kernels cannot run in Triton's interpreter, in one line; None if they can."""
    if find_spec("triton") is None:
        return f"Triton is not installed: run `{install_command('gpu')}`"
    return None


def missing() -> str | None:
    """Reason why kernels cannot run on a CUDA device here, in one line; None if they can."""
    if not gpu_count():
        return f"no CUDA device found: install an NVIDIA GPU and its driver ({_NEEDED})"
    try:
        torch = import_module("torch")
        import_module("triton")
    except ImportError as error:
        return f"{error}: run `{install_command('gpu')}`"
    if not torch.cuda.is_available():
        return (
            "PyTorch finds no CUDA device, perhaps because it was built without CUDA: install a "
            "CUDA build, see https://pytorch.org"
        )
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, and {_NEEDED}: use another GPU"
    return None

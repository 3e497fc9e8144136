"""Triton kernels and their wrappers: the accelerator's arithmetic on a GPU, bit for bit.

Nothing here imports Triton or torch before a kernel's module is imported.
"""

import ctypes
import os
import sys
from importlib import import_module
from importlib.util import find_spec

from lutra_golden.install import install_command

__all__ = ["gpu_count", "interpreted", "interpreter_missing", "missing"]

_NEEDED = "compute capability 8.0 or higher is required"


def gpu_count() -> int:
    """Number of CUDA devices that the driver reports, 0 without a driver; fast."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


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

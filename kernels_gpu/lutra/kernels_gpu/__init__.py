"""Triton kernels and their wrappers: the accelerator's arithmetic on a GPU, bit for bit.

Nothing here imports Triton or torch before a kernel's module is imported.
"""

from importlib import import_module

__all__ = ["UNAVAILABLE", "missing"]

UNAVAILABLE = "install lutra[gpu]"
"""What mends a missing Triton or torch."""


def missing() -> str | None:
    """Why kernels cannot run on a CUDA device here, in one line; None if they can."""
    try:
        torch = import_module("torch")
        import_module("triton")
    except ImportError as error:
        return f"{error}: {UNAVAILABLE}"
    if not torch.cuda.is_available():
        return "no CUDA device: a driver and a GPU of compute capability 8.0 or higher are needed"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"compute capability must be 8.0 or higher, not {major}.{minor}"
    return None

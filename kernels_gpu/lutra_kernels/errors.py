"""One-line errors for machines without a suitable GPU, or with too little GPU memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from lutra_kernels import missing
from lutra_kernels.arrays import INTERPRETED

__all__ = ["GpuUnavailable", "naming_memory", "require_gpu"]


class GpuUnavailable(RuntimeError):
    """The GPU cannot be used or cannot hold the model; the message says why and what to do."""


def require_gpu() -> None:
    """Raise unless kernels run here: on a GPU, or in the interpreter."""
    reason = None if INTERPRETED else missing()
    if reason is not None:
        raise GpuUnavailable(reason)


@contextmanager
def naming_memory(what: str, advice: str) -> Iterator[None]:
    """Turn an allocation that fails within into a :class:`GpuUnavailable` that names ``what``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # compared by name, so that torch need not be imported
        if type(error).__name__ not in ("OutOfMemoryError", "MemoryError"):
            raise
        raise GpuUnavailable(f"the GPU has too little memory for {what}: {advice}") from error

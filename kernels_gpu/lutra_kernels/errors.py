"""What a machine without a fitting GPU, or with too small a one, raises: one line that tells."""

from collections.abc import Iterator
from contextlib import contextmanager

from lutra_kernels import missing
from lutra_kernels.arrays import INTERPRETED

__all__ = ["GpuUnavailable", "naming_memory", "require_gpu"]


class GpuUnavailable(RuntimeError):
    """The GPU can not be used, or does not hold the model; the message says why and what helps."""


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
        # torch's own class, which needs no import to be told by its name
        if type(error).__name__ not in ("OutOfMemoryError", "MemoryError"):
            raise
        raise GpuUnavailable(f"the GPU has too little memory for {what}: {advice}") from error

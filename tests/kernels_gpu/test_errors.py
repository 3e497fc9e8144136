"""Errors on a machine without a GPU; this process does not interpret kernels."""

import pytest

pytest.importorskip("triton")

from lutra_kernels import errors
from lutra_kernels.errors import GpuUnavailable, naming_memory, require_gpu


class OutOfMemoryError(RuntimeError):
    """Same name as torch's own class."""


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "INTERPRETED", False)
    monkeypatch.setattr(errors, "missing", lambda: "no CUDA device: get one")
    with pytest.raises(GpuUnavailable, match=r"^no CUDA device: get one$"):
        require_gpu()
    monkeypatch.setattr(errors, "INTERPRETED", True)
    require_gpu()


def test_too_little_memory() -> None:
    expected = r"^the GPU has too little memory for a cache of 9 positions: use a shorter context$"
    for error in (OutOfMemoryError("CUDA out of memory. Tried"), MemoryError()):
        with (
            pytest.raises(GpuUnavailable, match=expected),
            naming_memory("a cache of 9 positions", "use a shorter context"),
        ):
            raise error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^misaligned address$"), naming_memory("x", "y"):
        raise RuntimeError("misaligned address")

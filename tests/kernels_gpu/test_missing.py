"""Reasons why kernels cannot run here, one line each; needs neither Triton nor torch."""

import ctypes
from types import SimpleNamespace

import pytest

import lutra_kernels as kernels_gpu
from lutra.devices.choose import choose_device
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_kernels import gpu_count, gpu_memory_rate, interpreter_missing, missing


def torch_with(available: bool, capability: tuple[int, int]) -> SimpleNamespace:
    cuda = SimpleNamespace(is_available=lambda: available, get_device_capability=lambda: capability)
    return SimpleNamespace(cuda=cuda)


@pytest.mark.parametrize(
    ("count", "torch", "expected"),
    [
        (
            0,
            None,
            "no CUDA device found: install an NVIDIA GPU and its driver (compute capability ",
        ),
        (1, None, f"no module torch: run `{install_command('gpu')}`"),
        (1, torch_with(False, (9, 0)), "PyTorch finds no CUDA device, perhaps because it was bui"),
        (1, torch_with(True, (7, 5)), "the GPU has compute capability 7.5, and compute capability"),
        (1, torch_with(True, (8, 0)), None),
    ],
)
def test_each_reason(
    count: int,
    torch: SimpleNamespace | None,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def import_module(name: str) -> SimpleNamespace:
        if torch is None:
            raise ImportError(f"no module {name}")
        return torch

    monkeypatch.setattr(kernels_gpu, "gpu_count", lambda: count)
    monkeypatch.setattr(kernels_gpu, "import_module", import_module)
    reason = missing()
    assert reason is None if expected is None else (reason or "").startswith(expected)


def test_the_interpreter_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_gpu, "find_spec", lambda name: name != "triton" or None)
    assert interpreter_missing() == f"Triton is not installed: run `{install_command('gpu')}`"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(LutraError, match=r"^device cuda cannot be used, Triton is not installed: "):
        choose_device("cuda")
    device, (reason,) = choose_device("auto")
    assert device.name != "cuda" and "Triton is not installed" in reason
    device.close()
    monkeypatch.setattr(kernels_gpu, "find_spec", lambda name: object())
    assert interpreter_missing() is None


class Driver:
    """A driver that returns ``status`` and reports ``count`` devices with HBM of an H100."""

    def __init__(self, status: int, count: int) -> None:
        self._status, self._count = status, count

    def cuInit(self, _flags: int) -> int:
        return self._status

    def cuDeviceGetCount(self, found: object) -> int:
        ctypes.cast(found, ctypes.POINTER(ctypes.c_int))[0] = self._count
        return 0

    def cuDeviceGet(self, _found: object, ordinal: int) -> int:
        return 101 * (ordinal >= self._count)

    def cuDeviceGetAttribute(self, found: object, attribute: int, _device: object) -> int:
        value = {36: 2_619_000, 37: 5120}[attribute]
        ctypes.cast(found, ctypes.POINTER(ctypes.c_int))[0] = value
        return 0


@pytest.mark.parametrize(("status", "count", "expected"), [(0, 2, 2), (0, 0, 0), (100, 2, 0)])
def test_devices_of_the_driver(
    status: int, count: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Driver(status, count))
    assert gpu_count() == expected
    # 3.35 TB/s as NVIDIA states it
    assert gpu_memory_rate() == pytest.approx(3.352e12 if expected else 0, rel=1e-3)


def test_no_driver_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Driver:
        raise OSError(f"{name}: not found")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert (gpu_count(), gpu_memory_rate()) == (0, 0)

"""Devices of this machine, and what each can run."""

from collections.abc import Callable
from importlib.util import find_spec

from lutra.compile.configure import configure
from lutra.compile.fit import check_fit
from lutra.devices.accelerator.bitstreams import default_bitstreams
from lutra.devices.base import available_memory
from lutra.devices.boards import BOARD_DRIVERS, no_bitstream, usable
from lutra.devices.cpu.choice import choose_targets
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.cuda.device import CudaDevice, describe_gpu
from lutra.devices.estimate import token_bytes
from lutra_golden.core.configs import CONFIGS
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_golden.model.packed import PackedModel
from lutra_kernels import interpreted
from lutra_sim.rtl.toolchain import ToolchainError, check_toolchain

__all__ = ["capacity", "check_capacity", "describe"]

Progress = Callable[[str, float], None]


def describe(name: str, progress: Progress | None = None) -> str:
    """Describe a device; LutraError says why it cannot be used."""
    if name == "cuda":
        CudaDevice(progress)
        return describe_gpu()
    if name == "cpu":
        threads = CpuDevice(progress=progress).threads
        few, many = choose_targets(threads)
        return f"{threads} threads, decode by {few}, prefill by {many}"
    if name == "rtl":
        return _describe_rtl()
    if name in BOARD_DRIVERS:
        return BOARD_DRIVERS[name].describe()
    if name == "interpreted":
        return "the accelerator's program, instruction by instruction, in NumPy"
    return "the specification, in NumPy"


def _describe_rtl() -> str:
    if find_spec("amaranth") is None:
        raise LutraError(
            f"device rtl needs amaranth, which is not installed: run `{install_command('sim')}`"
        )
    try:
        check_toolchain()
    except ToolchainError as error:
        raise LutraError(str(error)) from None
    return "the accelerator, simulated from its RTL"


def capacity(name: str) -> str:
    """Models that a device can run: sizes of models, or configurations."""
    if name in BOARD_DRIVERS:
        driver = BOARD_DRIVERS[name]
        found = default_bitstreams(driver.suffix)
        if not found:
            return no_bitstream(driver).removeprefix(f"device {name} ")
        names = [f"{each.config or 'unknown'} ({each.path.name})" for each in found]
        return f"bitstreams of {', '.join(names)}"
    if name in ("interpreted", "rtl"):
        return f"configurations {', '.join(CONFIGS)}, enlarged for models that need it"
    return f"models whose weights and caches fit {_gib(_memory(name))}"


def check_capacity(name: str, model: PackedModel) -> None:
    """Refuse a model that a device of this machine will not load, as far as that can be known."""
    if name in BOARD_DRIVERS:
        usable(BOARD_DRIVERS[name], model)
    if name in ("interpreted", "rtl"):
        check_fit(model, configure(model))
    needed, free = token_bytes(model), _memory(name)
    if needed > free:
        raise LutraError(
            f"device {name} has {_gib(free)} free, the weights of {model.name} are "
            f"{_gib(needed)}: use a smaller model"
        )


def _memory(name: str) -> int:
    """Bytes that weights of a model may take."""
    if name == "cuda" and not interpreted():
        from lutra_kernels.arrays import free_bytes

        return free_bytes()
    return available_memory()


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"

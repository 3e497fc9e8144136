"""``lutra devices``: the devices of this machine, and which one ``auto`` takes."""

import argparse
import json
from importlib.util import find_spec

from lutra.commands.options import add_json
from lutra.devices.accelerator.pynq import describe_board
from lutra.devices.accelerator.xrt import describe_card
from lutra.devices.choose import DEVICES, next_best
from lutra.devices.cpu.choice import choose_targets
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.cuda.device import CudaDevice, describe_gpu
from lutra.progress import StepProgress
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_sim.rtl.toolchain import ToolchainError, check_toolchain

__all__ = ["add_devices"]


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra devices``."""
    add_json(parser)
    parser.set_defaults(command=_devices)


def _devices(args: argparse.Namespace) -> int:
    found: dict[str, tuple[bool, str]] = {}
    with StepProgress() as progress:
        chosen = next_best(None, progress=progress)[0].name
        for name in DEVICES:
            if name == "auto":
                continue
            try:
                found[name] = True, _describe(name, progress)
            except LutraError as error:
                found[name] = False, str(error).removeprefix(f"device {name} ")
    if args.json:
        rows = [
            {"device": name, "available": here, "auto": name == chosen, "detail": detail}
            for name, (here, detail) in found.items()
        ]
        print(json.dumps(rows))
        return 0
    rows = [("device", "available", "auto", "detail")]
    for name, (here, detail) in found.items():
        rows.append((name, "yes" if here else "no", "*" if name == chosen else "", detail))
    # no table of rich: it would break the commands in the last column over several lines
    for name, here, auto, detail in rows:
        print(f"{name:<11}  {here:<9}  {auto:<4}  {detail}")
    return 0


def _describe(name: str, progress: StepProgress) -> str:
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
    if name == "pynq":
        return describe_board()
    if name == "xrt":
        return describe_card()
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

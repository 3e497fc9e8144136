"""``lutra devices``: the devices of this machine, and which one ``auto`` takes."""

import argparse
import json
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table

from lutra.commands.options import add_json
from lutra.devices.choose import DEVICES, next_best
from lutra.devices.cpu.choice import choose_targets
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.cuda.device import CudaDevice, describe_gpu
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_sim.rtl.toolchain import ToolchainError, check_toolchain

__all__ = ["add_devices"]


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra devices``."""
    add_json(parser)
    parser.set_defaults(command=_devices)


def _devices(args: argparse.Namespace) -> int:
    chosen = next_best(None)[0].name
    found: dict[str, tuple[bool, str]] = {}
    for name in DEVICES:
        if name == "auto":
            continue
        try:
            found[name] = True, _describe(name)
        except LutraError as error:
            found[name] = False, str(error).removeprefix(f"device {name} ")
    if args.json:
        rows = [
            {"device": name, "available": here, "auto": name == chosen, "detail": detail}
            for name, (here, detail) in found.items()
        ]
        print(json.dumps(rows))
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("device", "available", "auto", "detail"):
        table.add_column(heading)
    for name, (here, detail) in found.items():
        table.add_row(name, "yes" if here else "no", "*" if name == chosen else "", detail)
    Console(highlight=False, markup=False).print(table)
    return 0


def _describe(name: str) -> str:
    """Describe a device; LutraError says why it cannot be used."""
    if name == "cuda":
        CudaDevice()
        return describe_gpu()
    if name == "cpu":
        threads = CpuDevice().threads
        few, many = choose_targets(threads)
        return f"{threads} threads, decode by {few}, prefill by {many}"
    if name == "rtl":
        return _describe_rtl()
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

"""``lutra selftest``: an accelerator's memory, registers and units, and one token."""

import argparse
import json
from dataclasses import asdict

from lutra.commands.options import (
    add_board,
    add_format,
    add_group,
    add_json,
    add_kv,
    place,
    rounding,
)
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.choose import choose_device
from lutra.devices.hardware import BOARD_SCHEME
from lutra.diagnose.selftest import Check, selftest
from lutra.open_model import open_packed_model
from lutra.progress import StepProgress
from lutra_golden.core.config import ENGINES
from lutra_golden.core.configs import CONFIGS
from lutra_golden.errors import LutraError

__all__ = ["add_selftest"]

_ACCELERATORS = ("rtl", "interpreted", "pynq", "xrt")
_N_CHECKS = 7


def add_selftest(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra selftest``."""
    parser.add_argument(
        "-dev",
        "--device",
        type=_accelerator,
        metavar="{" + ",".join(_ACCELERATORS) + f",{BOARD_SCHEME}HOST" + "}",
        default="rtl",
        help="accelerator to test (default rtl, the simulated hardware)",
    )
    add_board(parser)
    parser.add_argument(
        "-m",
        "--model",
        default="tales",
        help="model whose first layer is run: folder, GGUF file, Hugging Face id, or a shipped "
        "model (default tales)",
    )
    add_format(parser, "the checkpoint's own if its weights are integers, otherwise W8A8")
    add_group(parser)
    add_kv(parser)
    parser.add_argument(
        "--config", choices=CONFIGS, help="configuration of the accelerator (default nano)"
    )
    parser.add_argument(
        "--engine", choices=tuple(ENGINES), help="matmul engine (default: the model's)"
    )
    add_json(parser)
    parser.set_defaults(command=_selftest)


def _accelerator(text: str) -> str:
    if text not in _ACCELERATORS and not text.startswith(BOARD_SCHEME):
        names = ", ".join([*_ACCELERATORS, f"{BOARD_SCHEME}HOST"])
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {names})")
    return text


def _selftest(args: argparse.Namespace) -> int:
    checks: list[Check] = []
    with StepProgress() as progress:
        device, _ = choose_device(
            args.device,
            **place(args),
            progress=progress,
        )
        if not isinstance(device, AcceleratorDevice):
            raise LutraError(f"device {device.name} is no accelerator: there is nothing to test")
        device.find()
        model = open_packed_model(args.model, **rounding(args), progress=progress)
        for check in selftest(device, model):
            checks.append(check)
            progress(f"testing {args.device}", min(0.99, len(checks) / _N_CHECKS))
    wrong = [check for check in checks if check.problem]
    if args.json:
        print(json.dumps({"device": args.device, "checks": [asdict(each) for each in checks]}))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.name:<{width}}  {check.seconds:5.1f} s  {_outcome(check)}")
    return 1 if wrong else 0


def _outcome(check: Check) -> str:
    if check.left_out:
        return f"left out: {check.left_out}"
    return "ok" if check.problem is None else f"WRONG: {check.problem}"

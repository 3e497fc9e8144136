"""``lutra selftest``: an accelerator's memory, registers and units, and one token."""

import argparse
import json
from dataclasses import asdict

from lutra.commands.options import add_format, add_group, add_json, add_kv
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.choose import choose_device
from lutra.diagnose.selftest import Check, selftest
from lutra.open_model import open_packed_model
from lutra.progress import StepProgress
from lutra_golden.core.config import ENGINES
from lutra_golden.core.configs import CONFIGS
from lutra_golden.errors import LutraError

__all__ = ["add_selftest"]


def add_selftest(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra selftest``."""
    parser.add_argument(
        "-dev",
        "--device",
        choices=_ACCELERATORS,
        default="rtl",
        help="accelerator to test (default rtl, the simulated hardware)",
    )
    parser.add_argument(
        "-m",
        "--model",
        default="tales",
        help="model whose first layer is run: folder, GGUF file, Hugging Face id, or a shipped "
        "model (default tales)",
    )
    add_format(parser, "W1.58A8 for ternary models, otherwise W4A8")
    add_group(parser)
    add_kv(parser)
    parser.add_argument("--config", choices=sorted(CONFIGS), help="configuration (default nano)")
    parser.add_argument(
        "--engine", choices=tuple(ENGINES), help="matmul engine (default: the model's)"
    )
    add_json(parser)
    parser.set_defaults(command=_selftest)


_ACCELERATORS = ("interpreted", "rtl")


def _selftest(args: argparse.Namespace) -> int:
    checks: list[Check] = []
    with StepProgress() as progress:
        device, _ = choose_device(
            args.device, config=args.config, engine=args.engine, progress=progress
        )
        if not isinstance(device, AcceleratorDevice):
            raise LutraError(f"device {device.name} is no accelerator: there is nothing to test")
        model = open_packed_model(args.model, args.format, args.group, args.kv, progress=progress)
        for check in selftest(device, model):
            progress(f"testing {args.device}", min(0.99, len(checks) / 6))
            checks.append(check)
    wrong = [check for check in checks if check.problem]
    if args.json:
        print(json.dumps({"device": args.device, "checks": [asdict(each) for each in checks]}))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            outcome = "ok" if check.problem is None else f"WRONG: {check.problem}"
            print(f"{check.name:<{width}}  {check.seconds:5.1f} s  {outcome}")
    return 1 if wrong else 0

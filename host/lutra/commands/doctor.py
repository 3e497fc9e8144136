"""``lutra doctor``: what is wrong with this machine, and the commands that mend it."""

import argparse
import json
from dataclasses import asdict

from lutra.commands.options import add_json
from lutra.devices.choose import DEVICES
from lutra.doctor.examine import examine, is_wrong
from lutra.doctor.machine import Finding, Machine
from lutra.progress import StepProgress

__all__ = ["add_doctor"]

_DEVICES = [name for name in DEVICES if name != "auto"]


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra doctor``."""
    parser.add_argument(
        "-dev",
        "--device",
        choices=_DEVICES,
        help="device that is to work (default: every one that this machine may have)",
    )
    add_json(parser)
    parser.set_defaults(command=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    machine = Machine()
    with StepProgress() as progress:
        findings = list(examine(machine, args.device, progress))
    wrong = is_wrong(findings, machine, args.device)
    if args.json:
        print(json.dumps({"wrong": wrong, "checks": [asdict(each) for each in findings]}))
        return int(wrong)
    for each in findings:
        print(_line(each))
    return int(wrong)


def _line(found: Finding) -> str:
    mend = f": {found.mend}" if found.mend else ""
    return f"{found.level.value:<8} {found.device or 'all':<6} {found.name:<16} {found.text}{mend}"

"""``lutra devices``: the devices of this machine, what each runs, and which one ``auto`` takes."""

import argparse
import json
from dataclasses import asdict, dataclass, replace

from lutra.commands.options import add_json
from lutra.devices.auto import AutoDevices
from lutra.devices.choose import DEVICES
from lutra.devices.describe import capacity, check_capacity, describe
from lutra.open_model import open_packed_model
from lutra.progress import StepProgress
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

__all__ = ["Row", "add_devices", "rows_of"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A device: ``detail`` is what it is, or why it is not ``available``.

    ``runs`` is what it can run; ``model`` is true if that includes the model that was given, and
    ``refusal`` says why it does not.
    """

    device: str
    available: bool
    detail: str
    auto: bool = False
    runs: str | None = None
    model: bool = False
    refusal: str | None = None


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra devices``."""
    parser.add_argument(
        "-m",
        "--model",
        default="tales",
        help="model that the devices are asked about: folder, GGUF file, Hugging Face id, or a "
        "shipped model (default tales)",
    )
    add_json(parser)
    parser.set_defaults(command=_devices)


def _devices(args: argparse.Namespace) -> int:
    with StepProgress() as progress:
        model = open_packed_model(args.model, progress=progress)
        rows = rows_of(model, progress)
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    # no table of rich: it would break the commands in the last column over several lines
    header = ("device", "available", "auto", model.name)
    width = max(5, len(model.name))
    print(f"{header[0]:<11}  {header[1]:<9}  {header[2]:<4}  {header[3]:<{width}}  detail")
    for row in rows:
        here, auto = "yes" if row.available else "no", "*" if row.auto else ""
        runs = "runs" if row.model else "no"
        print(f"{row.device:<11}  {here:<9}  {auto:<4}  {runs:<{width}}  {row.detail}")
        for more in (row.runs, row.refusal):
            if more:
                print(f"{'':<{32 + width}}{more}")
    return 0


def rows_of(model: PackedModel, progress: StepProgress | None = None) -> list[Row]:
    """A row for each device; ``auto`` takes the first in its order that runs ``model``."""
    rows = [_row(name, model, progress) for name in DEVICES if name != "auto"]
    able = {row.device for row in rows if row.model}
    found = AutoDevices(model, progress=progress)
    chosen = found.take().name
    while chosen not in able and found.has_more:
        chosen = found.take().name
    return [replace(row, auto=row.device == chosen) for row in rows]


def _row(name: str, model: PackedModel, progress: StepProgress | None) -> Row:
    try:
        detail = describe(name, progress)
    except LutraError as error:
        detail = str(error).removeprefix(f"device {name} ")
        return Row(device=name, available=False, detail=detail)
    runs, refusal = None, None
    try:
        runs = capacity(name)
        check_capacity(name, model)
    except LutraError as error:
        refusal = str(error).removeprefix(f"device {name} ")
    return Row(
        device=name,
        available=True,
        detail=detail,
        runs=runs,
        model=refusal is None,
        refusal=refusal,
    )

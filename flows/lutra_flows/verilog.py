"""``lutra verilog``: the accelerator as a Verilog file."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from lutra.progress import StepProgress
from lutra_golden.core.config import ENGINES
from lutra_golden.core.configs import CONFIGS, with_engine
from lutra_golden.core.ports import Top
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

__all__ = ["add_command"]


def add_command(parser: argparse.ArgumentParser) -> None:
    """Write the Verilog of an accelerator."""
    parser.add_argument(
        "--config", choices=CONFIGS, default="nano", help="configuration (default nano)"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, help="matmul engine (default: the configuration's)"
    )
    parser.add_argument(
        "--top",
        choices=[top.value for top in Top],
        default=Top.ACCELERATOR.value,
        help="top module: the accelerator with its registers, or a kernel for XRT (default "
        f"{Top.ACCELERATOR})",
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="file to write (default: standard output)"
    )
    parser.set_defaults(command=_verilog)


def _verilog(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("amaranth") is None:
        raise LutraError(f"Amaranth is not installed: run `{install_command('sim')}`")
    out: Path | None = args.out
    if out is not None and not out.parent.is_dir():
        # before the minute that it takes
        raise LutraError(f"{out.parent} is no folder: give --out in one that exists")
    config = CONFIGS[args.config]
    if args.engine is not None:
        config = with_engine(config, args.engine)
    # Amaranth takes a while to import
    from lutra_hw.core.accelerator import generate_verilog
    from lutra_hw.core.xrt import generate_xrt_verilog

    generate = generate_xrt_verilog if args.top == Top.XRT else generate_verilog
    with StepProgress() as progress, progress.waiting("generating the Verilog", 0.0):
        text = generate(config)
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")
    return 0

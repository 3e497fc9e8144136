"""Runs Vivado and Vitis where they are, and makes the set of files that goes to the board."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from lutra_flows.boards.bitstream import loadable
from lutra_flows.boards.project import script_name
from lutra_flows.boards.results import Figure, read_results, timing_met
from lutra_flows.boards.scripts import BITSTREAM, FIRMWARE, HANDOFF, OBJECT
from lutra_golden.core.boards import Board, Flow
from lutra_golden.errors import LutraError

__all__ = ["DEPLOY", "commands", "find_vivado", "run_tools"]

DEPLOY = "deploy"
_LOG = "vivado.log"


def find_vivado() -> str | None:
    """Path of Vivado, if it is on PATH."""
    return shutil.which("vivado")


def commands(board: Board) -> Sequence[Sequence[str]]:
    """Commands that a project is built with, in its folder."""
    script = script_name(board)
    if script is None:
        return []
    found = [["vivado", "-mode", "batch", "-nojournal", "-log", _LOG, "-source", script]]
    if board.flow == Flow.VITIS:
        found.append(
            ["v++", "--target", "hw", "--link", OBJECT, "--config", "link.cfg",
             "--output", "lutra.xclbin"]
        )  # fmt: skip
    return found


def run_tools(board: Board, folder: Path) -> Mapping[str, Figure] | None:
    """Build in ``folder``; the figures of the result, where Vivado reports them.

    LutraError if a tool fails or is not there, or the clock is missed.
    """
    for command in commands(board):
        if shutil.which(command[0]) is None:
            raise LutraError(
                f"{command[0]} is not on PATH: source its settings64.sh, or run "
                f"`{shlex.join(command)}` in {folder} yourself"
            )
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise LutraError(f"{command[0]} failed: see {folder / _LOG}")
    if board.flow == Flow.VITIS:
        _deploy(folder, ["lutra.xclbin"])
        return None
    figures = read_results(folder / "reports")
    values = {name: asdict(figure) for name, figure in figures.items()}
    (folder / "results.json").write_text(json.dumps(values, indent=4) + "\n", encoding="utf-8")
    if not timing_met(figures):
        slack = min(figures["setup_slack"].value, figures["hold_slack"].value)
        raise LutraError(
            f"the design misses its clock of {board.config.clock_hz / 1e6:g} MHz by {-slack:g} ns: "
            f"no files for the board were made, the figures are in {folder / 'results.json'}"
        )
    _device_tree_blob(folder)
    (folder / FIRMWARE).write_bytes(loadable((folder / BITSTREAM).read_bytes()))
    _deploy(folder, [BITSTREAM, FIRMWARE, HANDOFF, "lutra.dtbo", "results.json"])
    return figures


def _device_tree_blob(folder: Path) -> None:
    """Compile the overlay where ``dtc`` is; PYNQ does without."""
    if shutil.which("dtc"):
        command = ["dtc", "-@", "-I", "dts", "-O", "dtb", "-o", "lutra.dtbo", "lutra.dtsi"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise LutraError(f"dtc failed: {' '.join(done.stderr.split())}")


def _deploy(folder: Path, names: Sequence[str]) -> None:
    target = folder / DEPLOY
    target.mkdir(exist_ok=True)
    for name in (*names, "lutra.json"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)

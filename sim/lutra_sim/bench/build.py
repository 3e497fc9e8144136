"""Verilog of a component to a simulator that cocotb can drive, built once per text."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import cocotb_tools.config
import find_libpython
from cocotb_tools.runner import get_runner

from lutra_sim.rtl import toolchain

__all__ = ["build_simulator", "check_cocotb"]

# top-level signals suffice for benches, and everything else stays open to optimisation
_VERILATOR_ARGS = ["--no-public-flat-rw", "--public-depth", "1", "-Wno-lint", "-Wno-fatal"]
_MAKE_VARIABLES = {"OPT_FAST": "-O1", "OPT_SLOW": "-O0"}
_RUNTIME_SOURCES = ["verilated", "verilated_dpi", "verilated_threads", "verilated_vpi"]
_LOG_LINES = 40


def check_cocotb() -> None:
    """Raise :class:`ToolchainError` unless benches can be built and run here."""
    toolchain.check_toolchain()
    if find_libpython.find_libpython() is None:
        raise toolchain.ToolchainError(
            "cocotb needs the shared library of this Python and it is not installed "
            "(Debian, Ubuntu: apt install libpython3-dev; Fedora: dnf install python3-libs)"
        )


def build_simulator(name: str, text: str, *, coverage: bool = False, waves: bool = False) -> Path:
    """Build the simulator of Verilog ``text``, whose top module is ``name``.

    Returns the folder that holds the executable ``name``. An interrupted build leaves nothing
    behind that a later one would take for finished.
    """
    check_cocotb()
    runtime = _runtime_library(coverage=coverage, waves=waves)
    sha = hashlib.sha256(text.encode()).hexdigest()
    # coverage names its points by the path of the Verilog, so that path follows from its text
    source = toolchain.cache_folder() / "verilog" / sha[:20] / f"{name}.v"
    key = _key(sha, _VERILATOR_ARGS, _MAKE_VARIABLES, coverage, waves, str(runtime))
    folder = toolchain.cache_folder() / "cocotb" / f"{name}-{key}"
    with _once(folder) as scratch:
        if scratch is None:
            return folder
        source.parent.mkdir(parents=True, exist_ok=True)
        partial = scratch / source.name
        partial.write_text(text, encoding="utf-8")
        partial.replace(source)
        log = scratch / "build.log"
        with _environment(
            {**_MAKE_VARIABLES, "VM_GLOBAL_FAST": "", "USER_LDLIBS": str(runtime / "runtime.a")}
        ):
            try:
                get_runner("verilator").build(
                    sources=[source],
                    hdl_toplevel=name,
                    build_dir=scratch / "build",
                    build_args=[*_VERILATOR_ARGS, *(["--coverage-line"] if coverage else [])],
                    waves=waves,
                    log_file=log,
                )
            except (RuntimeError, SystemExit) as error:
                tail = "\n".join(log.read_text().splitlines()[-_LOG_LINES:])
                raise RuntimeError(f"building the simulator of {name} failed:\n{tail}") from error
        shutil.move(scratch / "build" / name, scratch / name)
        shutil.rmtree(scratch / "build")
    return folder


def _runtime_library(*, coverage: bool, waves: bool) -> Path:
    """Folder with ``runtime.a``: Verilator's run-time library, the larger part of any build."""
    root = _include_folder()
    sources = [*_RUNTIME_SOURCES]
    sources += ["verilated_cov"] if coverage else []
    sources += ["verilated_vcd_c"] if waves else []
    variables = toolchain.make_variables()
    flags = [
        "-Os",
        variables.get("CFG_CXXFLAGS_STD", "-std=gnu++17"),
        f"-I{root}",
        f"-I{root / 'vltstd'}",
        "-DVERILATOR=1",
        "-DVM_SC=0",
        "-DVM_TIMING=0",
        "-DVM_TRACE_FST=0",
        "-DVM_TRACE_SAIF=0",
        f"-DVM_COVERAGE={int(coverage)}",
        f"-DVM_TRACE={int(waves)}",
        f"-DVM_TRACE_VCD={int(waves)}",
    ]
    folder = toolchain.cache_folder() / "cocotb" / f"runtime-{_key(sources, flags)}"
    with _once(folder) as scratch:
        if scratch is None:
            return folder

        def compile_source(name: str) -> None:
            command = [variables["CXX"], *flags, "-c", str(root / f"{name}.cpp"), "-o", f"{name}.o"]
            _run(command, scratch)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_source, sources))
        _run(["ar", "-rcs", "runtime.a", *(f"{name}.o" for name in sources)], scratch)
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
    """Name of what is built from ``parts`` with the tools that are here."""
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
        # what a killed build left: nobody else is at it while the lock is ours
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _environment(make_variables: dict[str, str]) -> Iterator[None]:
    """The build environment as ``os.environ``, which cocotb's runner reads and passes on."""
    saved = dict(os.environ)
    os.environ.update(toolchain.build_environment())
    os.environ["MAKEFLAGS"] = toolchain.makeflags(toolchain.make_variables() | make_variables)
    os.environ.pop("WAVES", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-_LOG_LINES:])
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{tail}")

"""Building the simulator: once, by one process, and what is said where it cannot be built."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lutra_golden.control.registers import REGISTERS
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_sim.rtl import build as build_module
from lutra_sim.rtl import toolchain
from lutra_sim.rtl.build import BuildError, build, design_header
from lutra_sim.rtl.jobs import Job, JobError, run_jobs
from lutra_sim.rtl.toolchain import ToolchainError

pytest.importorskip("amaranth")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the simulators built in it need not be fast."""
    folder = tmp_path / "cache"
    (folder / "rtl").mkdir(parents=True)
    monkeypatch.setenv("LUTRA_CACHE", str(folder))
    monkeypatch.setitem(build_module._OPTIMIZE, "fast", "-O0")
    return folder


@pytest.fixture
def cache_with_runtime(
    stand_in: AcceleratorConfig, request: pytest.FixtureRequest, tmp_path: Path
) -> Path:
    """The same with Verilator's run-time library, which takes longer than all the rest."""
    build(stand_in)
    runtimes = [*(toolchain.cache_folder() / "rtl").glob("runtime-*")]
    cache = request.getfixturevalue("cache")
    for runtime in runtimes:
        shutil.copytree(runtime, cache / "rtl" / runtime.name)
    return cache


def left_behind(cache: Path) -> list[Path]:
    return [path for path in (cache / "rtl").iterdir() if "partial" in path.name]


def sh(text: str, output: Path, cost: float = 1.0) -> Job:
    """A job that runs a shell command; ``$1`` is what it must write."""
    return Job(["/bin/sh", "-c", text, "sh", Job([], output).partial], output, cost)


def test_jobs(tmp_path: Path) -> None:
    shares: list[float] = []
    jobs = [sh("echo done > $1", tmp_path / f"o{i}", cost=i + 1) for i in range(4)]
    run_jobs(jobs, environment=os.environ, n_parallel=2, on_progress=shares.append)
    assert [job.output.read_text() for job in jobs] == ["done\n"] * 4
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    # what is there is not made again
    again = [sh("exit 1", job.output, job.cost) for job in jobs]
    run_jobs(again, environment=os.environ, on_progress=shares.append)
    assert shares[-1] == 1.0


def test_a_failing_job_ends_the_others(tmp_path: Path) -> None:
    jobs = [
        sh("echo begun > $1; sleep 60", tmp_path / "slow", cost=2),
        sh("sleep 0.2; echo wrong >&2; exit 3", tmp_path / "fails"),
    ]
    first = time.monotonic()
    with pytest.raises(JobError, match=r"^fails: status 3$") as error:
        run_jobs(jobs, environment=os.environ, n_parallel=2)
    assert time.monotonic() - first < 10
    assert error.value.job.log.read_text() == "wrong\n"
    assert not jobs[0].output.exists()


def test_design_header() -> None:
    text = design_header(NANO)
    assert "LUTRA_READ_PORTS(PORT) PORT(m_axi_0, 0, 128) PORT(m_axi_1, 1, 64)\n" in text
    assert "LUTRA_WRITE_PORTS(PORT) PORT(m_axi_1, 1, 64)\n" in text
    assert "kBoundary = 4096;" in text
    assert "kBurstIncr = 1;" in text
    assert f"kUnitState = {REGISTERS['UNIT_STATE'].address};" in text
    assert '"load", "matmul", "vector", "attention", "fetch"' in text
    assert '"IDLE", "RUNNING", "WAIT_DEPENDENCY"' in text


def test_bad_trace() -> None:
    with pytest.raises(ValueError, match=r"^trace must be None, 'vcd' or 'fst', not 'txt'$"):
        build(NANO, trace="txt")


@pytest.mark.cocotb
def test_build_once(
    cache_with_runtime: Path, stand_in: AcceleratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, float]] = []
    library = build(stand_in, progress=lambda stage, share: seen.append((stage, share)))
    assert library.parent == cache_with_runtime / "rtl"
    stages = list(dict.fromkeys(stage for stage, _ in seen))
    assert stages == [
        "generating the Verilog",
        "translating the Verilog to C++",
        "compiling the simulator",
        "linking the simulator",
        "the simulator is built",
    ]
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert left_behind(cache_with_runtime) == []

    # the second time nothing runs, not even Amaranth
    monkeypatch.setattr(build_module, "_generate", None)
    monkeypatch.setattr(build_module, "run_jobs", None)
    seen.clear()
    assert build(stand_in, progress=lambda stage, share: seen.append((stage, share))) == library
    assert seen == []


@pytest.mark.cocotb
def test_the_key_covers_what_shapes_the_library(
    cache: Path, stand_in: AcceleratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        return build_module._key("text", design_header(stand_in), None, False)

    first = key()
    assert key() == first
    assert build_module._key("other text", design_header(stand_in), None, False) != first
    assert build_module._key("text", design_header(NANO), None, False) != first
    assert build_module._key("text", design_header(stand_in), "vcd", False) != first
    assert build_module._key("text", design_header(stand_in), None, True) != first
    with monkeypatch.context() as context:
        context.setattr(toolchain, "compiler_version", lambda: "another 1.0")
        assert key() != first
    with monkeypatch.context() as context:
        context.setattr(toolchain, "verilator_version", lambda: "another 1.0")
        assert key() != first


@pytest.mark.cocotb
def test_a_failed_build_goes_on_where_it_stopped(
    cache_with_runtime: Path, stand_in: AcceleratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[str] = []

    def link_fails(jobs: list[Job], **options: object) -> None:
        commands.extend(job.output.name for job in jobs if not job.output.exists())
        if jobs[0].output.suffix == ".so" and fails:
            jobs = [sh("echo 'ld: error: no luck' >&2; exit 1", jobs[0].output)]
        run_jobs(jobs, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(build_module, "run_jobs", link_fails)
    fails = True
    message = r"^building stand-in-\w+\.so failed: ld: error: no luck \(more in /.*\.log\)$"
    with pytest.raises(BuildError, match=message):
        build(stand_in)
    assert "fast0.o" in commands
    commands.clear()
    fails = False
    library = build(stand_in)
    assert library.is_file()
    assert commands == [library.name]
    assert left_behind(cache_with_runtime) == []


SCRIPT = """
    import os, sys
    from pathlib import Path
    from lutra_sim.bench.rtl import stand_in
    from lutra_sim.rtl import build
    build._generate = stand_in.generate
    build._OPTIMIZE["fast"] = "-O0"
    build._hardware_sources = lambda: Path(stand_in.__file__).read_text(encoding="utf-8")
    def progress(stage, share):
        print(stage, flush=True)
        if sys.argv[1:] and stage.startswith("compiling"):
            os.kill(os.getpid(), int(sys.argv[1]))
    print(build.build(stand_in.CONFIG, progress=progress), flush=True)
"""


def start_build(*arguments: str) -> subprocess.Popen[str]:
    """Build in a process; with a number, the process signals itself once compilers run."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.cocotb
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build(
    cache_with_runtime: Path, stand_in: AcceleratorConfig, how: int
) -> None:
    process = start_build(str(int(how)))
    process.communicate()
    assert process.returncode != 0
    assert list((cache_with_runtime / "rtl").glob("*.so")) == []
    assert build(stand_in).is_file()
    assert left_behind(cache_with_runtime) == []


@pytest.mark.cocotb
def test_two_processes_build_once(cache_with_runtime: Path, stand_in: AcceleratorConfig) -> None:
    processes = [start_build() for _ in range(2)]
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1] == str(build(stand_in))
    stages = [set(output[:-1]) for output in outputs]
    linked = ["linking the simulator" in stage for stage in stages]
    assert sorted(linked) == [False, True]
    assert "waiting for another process that builds this" in stages[linked.index(False)]
    assert left_behind(cache_with_runtime) == []


@pytest.mark.cocotb
def test_bad_verilog(
    cache: Path, stand_in: AcceleratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_generate", lambda config: ("module accelerator(;\n", {}))
    message = r"^building verilated failed: %Error: .*accelerator\.v:1:.* \(more in /.*\.log\)$"
    with pytest.raises(BuildError, match=message):
        build(stand_in)


@pytest.mark.cocotb
def test_missing_ports(
    cache_with_runtime: Path, stand_in: AcceleratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "module accelerator(input clk, input rst, output irq); endmodule\n"
    monkeypatch.setattr(build_module, "_generate", lambda config: (text, {}))
    message = r"^building harness\.o failed: .*error: .*m_axi_0___05Frdata.* \(more in /.*\.log\)$"
    with pytest.raises(BuildError, match=message):
        build(stand_in)


@pytest.mark.cocotb
def test_a_full_disk(
    cache: Path, stand_in: AcceleratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = rf"^the disk of '{cache}' is full: free about 500 MB, or set LUTRA_CACHE [^\n]*$"

    def compiler_says_so(jobs: list[Job], **options: object) -> None:
        text = "echo 'fatal error: cannot write: No space left on device' >&2; exit 1"
        run_jobs([sh(text, jobs[0].output)], environment=os.environ)

    def system_says_so(config: AcceleratorConfig) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name, replacement in (("_generate", system_says_so), ("run_jobs", compiler_says_so)):
        with monkeypatch.context() as context:
            context.setattr(build_module, name, replacement)
            with pytest.raises(BuildError, match=message):
                build(stand_in)
            assert left_behind(cache) == []


@pytest.mark.cocotb
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, stand_in: AcceleratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before the Verilog is generated for it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(build_module, "_generate", None)
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        ToolchainError,
        match=rf"^the cache folder '{tmp_path}/file' cannot be written \(Not a directory\): set "
        "LUTRA_CACHE to a folder that can$",
    ):
        build(stand_in)


@pytest.mark.cocotb
def test_fst_without_its_libraries(
    cache: Path, stand_in: AcceleratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_header(jobs: list[Job], **options: object) -> None:
        text = "echo 'x.cpp:1: fatal error: lz4.h: No such file or directory' >&2; exit 1"
        run_jobs([sh(text, jobs[0].output)], environment=os.environ)

    monkeypatch.setattr(build_module, "run_jobs", no_header)
    message = r"^\.fst traces need liblz4 and zlib: install them \(Debian, Ubuntu: apt install "
    with pytest.raises(BuildError, match=message):
        build(stand_in, trace="fst")


@pytest.mark.cocotb
def test_a_killed_compiler(
    cache: Path, stand_in: AcceleratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(jobs: list[Job], **options: object) -> None:
        run_jobs([sh("kill -9 $$", jobs[0].output)], environment=os.environ)

    monkeypatch.setattr(build_module, "run_jobs", killed)
    with pytest.raises(BuildError, match=r"^building verilated was ended by signal 9, perhaps for"):
        build(stand_in)


@pytest.mark.parametrize("name", ["make", "perl"])
def test_a_missing_tool(
    cache: Path, stand_in: AcceleratorConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(
        toolchain.shutil, "which", lambda program: None if program == name else which(program)
    )
    with pytest.raises(ToolchainError, match=rf"^{name} is needed to build the simulator "):
        build(stand_in)


def test_no_compiler(
    cache: Path, stand_in: AcceleratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "absent")
    with pytest.raises(ToolchainError, match=r"^CXX is 'absent', which is not a program: "):
        build(stand_in)

"""The library comes with the package, from the cache or from the compiler; or one line says why."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lutra.devices.cpu import build
from lutra.devices.cpu.build import (
    BuildError,
    compile_in_place,
    compile_library,
    library_path,
)
from lutra.devices.cpu.interface import golden_header, layout, version
from lutra.devices.cpu.library import library, open_library
from lutra_golden.errors import LutraError

GOLDEN = "enum { ANSWER = 42 };"
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and a package without a library."""
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "LIBRARY", "libtest.so")
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "cache"


def compiler(folder: Path, body: str) -> str:
    """A program in the compiler's place."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_targets_of_other_machines_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx2 avx512_vnni\n")
    monkeypatch.setattr(build, "_FEATURES", tmp_path / "cpuinfo")
    assert build._foreign() == ["avxvnni"]
    monkeypatch.setenv("CC", compiler(tmp_path, f'echo "$@" >> {tmp_path}/log; exit 1'))
    key = build._key(GOLDEN, ["avxvnni"])
    assert key != build._key(GOLDEN)
    with pytest.raises(BuildError):
        library_path(GOLDEN)
    compiled = [line for line in (tmp_path / "log").read_text().splitlines() if " -c " in line]
    assert compiled
    assert all("-DLUTRA_WITHOUT_AVXVNNI " in line for line in compiled)
    assert [each.name for each in (tmp_path / "cache" / "cpu").iterdir()] == [key]
    (tmp_path / "cpuinfo").write_text("processor : 0\nFeatures : fp asimd\n")
    assert build._foreign() == []
    monkeypatch.setattr(build, "_FEATURES", tmp_path / "none")
    assert build._foreign() == []


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    message = (
        r"^device cpu needs a C compiler, and there is no no-such-compiler: install one "
        r"\(gcc or clang\), or name it in CC$"
    )
    with pytest.raises(BuildError, match=message):
        library_path(GOLDEN)
    library.cache_clear()
    try:
        with pytest.raises(LutraError, match=message):
            library()
    finally:
        library.cache_clear()


@pytest.mark.parametrize(
    ("named", "why"), [("gcc 'x", "No closing quotation"), (" ", "no program")]
)
def test_a_compiler_that_is_no_command_is_one_line(
    named: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", named)
    with pytest.raises(BuildError) as error:
        library_path(GOLDEN)
    assert str(error.value) == (
        f"device cpu: CC is no command ({why}): give a C compiler, not {named!r}"
    )


def test_a_compiler_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = compiler(tmp_path, "echo ignored >&2; echo 'a.c:1: error: no target' >&2; exit 1")
    monkeypatch.setenv("CC", name)
    with pytest.raises(
        BuildError,
        match=rf"^device cpu: the C compiler {name} refuses the library: a\.c:1: error: no target; "
        "name another one in CC$",
    ):
        library_path(GOLDEN)
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("CC", compiler(tmp_path, "exit 0"))
    with pytest.raises(
        BuildError,
        match=rf"^device cpu cannot write its library to {tmp_path}/file/\S+: Not a directory; set "
        "LUTRA_CACHE to a folder that can be written$",
    ):
        library_path(GOLDEN)


def test_what_was_compiled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source is compiled once; another compiler makes another library."""
    log = tmp_path / "log"
    body = f'echo call >> {log}; while [ "$1" != -o ]; do shift; done; echo library > "$2"'
    monkeypatch.setenv("CC", compiler(tmp_path, body))
    first = library_path(GOLDEN)
    assert first.read_text() == "library\n"
    shares: list[float] = []
    calls = log.read_text().count("call")
    assert calls == 1 + len([path for path in build.sources() if path.suffix == ".c"])
    assert library_path(GOLDEN) == first
    assert log.read_text().count("call") == calls
    assert library_path("enum { ANSWER = 54 };", shares.append) != first
    assert shares == [i / calls for i in range(calls + 1)]
    monkeypatch.setenv("CC", compiler(tmp_path, f"echo; {body}"))
    assert library_path(GOLDEN) != first


def test_several_that_want_it_compile_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    body = f'echo call >> {log}; while [ "$1" != -o ]; do shift; done; sleep 0.1; echo x > "$2"'
    monkeypatch.setenv("CC", compiler(tmp_path, body))
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(library_path, [GOLDEN] * 3))
    assert paths[0].read_text() == "x\n"
    assert len(set(paths)) == 1
    n_sources = len([path for path in build.sources() if path.suffix == ".c"])
    assert log.read_text().count("call") == 1 + n_sources


def test_the_library_that_came_with_the_package_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_FOLDER", tmp_path)
    monkeypatch.setenv("CC", "no-such-compiler")
    (tmp_path / "libtest.so").write_text("library")
    assert library_path(GOLDEN) == tmp_path / "libtest.so"


def test_an_installation_in_place_has_its_library(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the sources are the same; one of other sources goes with the next installation."""
    source, log = tmp_path / "csrc" / "a.c", tmp_path / "log"
    source.parent.mkdir()
    source.write_text("int a;")
    monkeypatch.setattr(build, "_FOLDER", tmp_path)
    body = f'echo >> {log}; while [ "$1" != -o ]; do shift; done; echo library > "$2"'
    monkeypatch.setenv("CC", compiler(tmp_path, body))
    compile_in_place(GOLDEN)
    compile_in_place(GOLDEN)
    found = library_path(GOLDEN)
    assert found.read_text() == "library\n"
    assert found.is_relative_to(tmp_path / "built")
    assert log.read_text() == "\n\n"  # of the source and of the linker, once
    assert not cache.exists()
    source.write_text("int b;")
    assert library_path(GOLDEN).is_relative_to(cache)
    compile_in_place(GOLDEN)
    assert not found.exists()
    assert library_path(GOLDEN).is_relative_to(tmp_path / "built")


def test_a_folder_that_cannot_be_installed_in_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "built").write_text("")
    monkeypatch.setattr(build, "_FOLDER", tmp_path)
    monkeypatch.setenv("CC", compiler(tmp_path, "exit 0"))
    message = rf"^device cpu cannot write its library to {tmp_path}/built/\S+: Not a directory$"
    with pytest.raises(BuildError, match=message):
        compile_in_place(GOLDEN)


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libtest.so"
    path.write_text("no library")
    with pytest.raises(
        LutraError, match=rf"^device cpu cannot load {path}: .*; remove it, then it is compiled ag"
    ):
        open_library(path)


@NEEDS_COMPILER
@pytest.mark.parametrize(
    ("version", "places"),
    [(None, None), ("0", layout()), (version(), [*layout()[:-1], 0]), (version(), layout()[1:])],
)
def test_a_library_of_another_version_is_refused(
    version: str | None, places: list[int] | None, tmp_path: Path
) -> None:
    """Other constants or declarations, or structures whose members lie elsewhere."""
    source, path = tmp_path / "other.c", tmp_path / "libtest.so"
    values = ", ".join(map(str, places or []))
    source.write_text(
        "int nothing;\n"
        if version is None
        else f'const char *lutra_cpu_version(void) {{ return "{version}"; }}\n'
        f"static const int layout[] = {{{values}}};\n"
        "const int *lutra_cpu_layout(int *n) { *n = sizeof layout / 4; return layout; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source], check=True)
    message = rf"^{path} belongs to another version of Lutra: remove it, then it is compiled again$"
    with pytest.raises(LutraError, match=message):
        open_library(path)


@pytest.mark.slow
@NEEDS_COMPILER
def test_the_library_has_no_symbols_but_its_own(tmp_path: Path) -> None:
    compile_library(tmp_path / "libtest.so", golden_header())
    open_library(tmp_path / "libtest.so")
    names = subprocess.run(
        ["nm", "-D", "--defined-only", tmp_path / "libtest.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[2::3]
    assert names
    assert all(name.startswith("lutra_cpu_") for name in names), names


def test_the_build_needs_the_standard_library_only() -> None:
    """The wheel's build loads it alone."""
    code = "import sys; sys.modules['numpy'] = None; exec(open(sys.argv[1]).read())"
    code = code.replace("exec(", "__file__ = sys.argv[1]; exec(")
    subprocess.run([sys.executable, "-I", "-c", code, build.__file__], check=True)


def assert_ended(pids: Path) -> None:
    """Processes whose numbers are in the file are no more."""
    for pid in map(int, pids.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_interrupt_ends_the_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    name = compiler(tmp_path, f"echo $$ >> {started}; exec sleep 600")
    monkeypatch.setenv("CC", name)

    def interrupt() -> None:
        while not started.exists() or not started.read_text().endswith("\n"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        compile_library(tmp_path / "libtest.so", GOLDEN)
    thread.join()
    assert_ended(started)


def test_an_interrupt_while_a_thread_starts_ends_its_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool does not know that thread yet."""
    started = tmp_path / "started"
    monkeypatch.setenv("CC", compiler(tmp_path, f"echo $$ >> {started}; exec sleep 600"))
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        while not started.exists() or not started.read_text().endswith("\n"):
            time.sleep(0.01)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compile_library(tmp_path / "libtest.so", GOLDEN)
    assert_ended(started)

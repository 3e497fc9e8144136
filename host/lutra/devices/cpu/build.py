"""Compiling the C library: ahead into a wheel or an installation in place, or into the cache when
it is first needed.

The build of a wheel loads this file alone, so it imports nothing beyond the standard library but
where it is used as a part of the package.
``golden`` is the text of ``golden.h``, which :mod:`lutra.devices.cpu.interface` makes.
"""

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType

__all__ = [
    "LIBRARY",
    "BuildError",
    "compile_in_place",
    "compile_library",
    "is_compiled",
    "library_path",
    "sources",
]


class BuildError(RuntimeError):
    """There is no compiler, or it cannot build the library; the message is one line."""


_FOLDER = Path(__file__).resolve().parent
_FLAGS = (
    "-std=c11", "-D_GNU_SOURCE", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden",
    "-pthread",
)  # fmt: skip
_NEEDS = {"avx512": "avx512_vnni", "avxvnni": "avx_vnni", "avx2": "avx2"}
"""Sources of targets, and the feature without which they do not run, as Linux calls it."""
_FEATURES = Path("/proc/cpuinfo")
LIBRARY = "liblutra_cpu.so"
"""Name of the library file; a wheel places it next to this module."""
_IN_PLACE = "built"
_LOOK = 0.2  # seconds


def sources() -> list[Path]:
    """Every source and header of the library."""
    return sorted(path for path in (_FOLDER / "csrc").iterdir() if path.suffix in (".c", ".h"))


def _compiler() -> list[str]:
    named = os.environ.get("CC") or "cc"
    try:
        command, why = shlex.split(named), "no program"
    except ValueError as error:
        command, why = [], str(error)
    if not command or not command[0]:
        raise BuildError(f"device cpu: CC is no command ({why}): give a C compiler, not {named!r}")
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"device cpu needs a C compiler, and there is no {command[0]}: install one (gcc or "
            "clang), or name it in CC"
        )
    return command


def _foreign() -> list[str]:
    """Targets that this machine cannot run, which take most of the time of compiling; none where
    the system does not say."""
    try:
        lines = _FEATURES.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    named = next((line for line in lines if line.startswith("flags")), None)
    has = set((named or "").split())
    return [target for target, feature in _NEEDS.items() if named and feature not in has]


def _no_progress(_share: float) -> None:
    pass


def compile_library(
    output: Path,
    golden: str,
    progress: Callable[[float], None] = _no_progress,
    without: Sequence[str] = (),
) -> None:
    """Compile the library with the system's C compiler, a process per source.

    ``progress`` is called with the share that is done; ``without`` names targets to leave out.
    """
    command = _compiler()
    with tempfile.TemporaryDirectory() as folder, _Compilers() as compilers:
        (Path(folder) / "golden.h").write_text(golden, encoding="utf-8")
        files = [path for path in sources() if path.suffix == ".c"]
        objects = [f"{folder}/{path.stem}.o" for path in files]
        jobs = [
            [*command, *_flags(without), f"-I{folder}", "-c", str(path), "-o", to]
            for path, to in zip(files, objects, strict=True)
        ]
        progress(0.0)
        for n_done in compilers.run(jobs):
            progress(n_done / (len(jobs) + 1))
        link = [*command, "-shared", "-pthread", "-o", str(output), *objects]
        for _ in compilers.run([link]):
            progress(1.0)


class _Compilers:
    """Compiler processes, one a core; those that run when the context ends are killed.

    They have as long as they need: an interrupt of the caller ends them.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def __enter__(self) -> "_Compilers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._ended = True
            for process in self._running:
                process.kill()
                # an interrupt while the pool starts a thread leaves one that it does not wait for
                process.wait()
        self._pool.shutdown(cancel_futures=True)

    def run(self, commands: Sequence[list[str]]) -> Iterator[int]:
        """Run all commands, yielding how many are done; BuildError of the first that fails."""
        left = {self._pool.submit(self._run, command) for command in commands}
        n_done = 0
        while left:
            # with an end: an interrupt right before a wait without one is seen when that is over
            done, left = wait(left, timeout=_LOOK, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                n_done += 1
                yield n_done

    def _run(self, command: list[str]) -> None:
        with self._lock:
            if self._ended:
                return
            try:
                process = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
            except OSError as error:
                raise BuildError(
                    f"device cpu: the C compiler {command[0]} fails: {error}"
                ) from None
            self._running.add(process)
        _, errors = process.communicate()
        with self._lock:
            self._running.remove(process)
        if process.returncode:
            lines = errors.strip().splitlines() or ["it says nothing"]
            first = next((line for line in lines if "error" in line), lines[0])
            raise BuildError(
                f"device cpu: the C compiler {command[0]} refuses the library: {first}; name "
                "another one in CC"
            )


def _flags(without: Sequence[str]) -> list[str]:
    return [*_FLAGS, *(f"-DLUTRA_WITHOUT_{target.upper()}" for target in without)]


def _key(golden: str, without: Sequence[str] = ()) -> str:
    """Cache key of a library: its sources, compiler and targets.

    A compiler is known by its file, as asking it for its version takes longer than all else.
    """
    digest = hashlib.sha256(golden.encode())
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    command = _compiler()
    program = Path(shutil.which(command[0]) or command[0]).resolve()
    status = program.stat()
    file = str(program), str(status.st_size), str(status.st_mtime_ns)
    parts = (*_flags(without), *command, *file, sys.platform, platform.machine())
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:20]


def _places(golden: str) -> Iterator[Path]:
    """Where a library may be, the last one where it is compiled to."""
    from lutra_golden.machine import cache_root

    yield _FOLDER / LIBRARY
    key = _key(golden, _foreign())
    yield _FOLDER / _IN_PLACE / key / LIBRARY
    yield cache_root() / "cpu" / key / LIBRARY


def is_compiled(golden: str) -> bool:
    """True if :func:`library_path` compiles nothing."""
    try:
        return any(path.is_file() for path in _places(golden))
    except BuildError:
        return False


def library_path(golden: str, progress: Callable[[float], None] = _no_progress) -> Path:
    """The library that came with the package, that of an installation in place, or one that is
    compiled into the cache now unless it has been.

    ``progress`` is called with the share of compiling that is done.
    """
    path = _FOLDER / LIBRARY
    for path in _places(golden):
        if path.is_file():
            return path
    try:
        _compile_once(path, golden, _foreign(), progress)
    except OSError as error:
        raise BuildError(
            f"device cpu cannot write its library to {path.parent}: {error.strerror}; set "
            "LUTRA_CACHE to a folder that can be written"
        ) from None
    return path


def compile_in_place(golden: str) -> None:
    """Compile the library beside this module, for an installation of a checkout as it lies.

    One of other sources, or of another compiler, is removed.
    """
    without = _foreign()
    root = _FOLDER / _IN_PLACE
    path = root / _key(golden, without) / LIBRARY
    try:
        for other in root.iterdir() if root.is_dir() else ():
            if other != path.parent:
                shutil.rmtree(other, ignore_errors=True)
        if not path.is_file():
            _compile_once(path, golden, without, _no_progress)
    except OSError as error:
        raise BuildError(
            f"device cpu cannot write its library to {path.parent}: {error.strerror}"
        ) from None


def _compile_once(
    path: Path, golden: str, without: Sequence[str], progress: Callable[[float], None]
) -> None:
    """Compile a library that is not there; of several processes that want it, one compiles and the
    others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        (path.parent / "lock").open("w") as lock,
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_file():
            return
        partial = Path(folder) / LIBRARY
        compile_library(partial, golden, progress, without)
        partial.replace(path)

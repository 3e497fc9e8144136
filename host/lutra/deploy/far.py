"""The far side of ``lutra deploy``: puts files in place and runs programs on a board.

Python's standard library only, Python 3.8 and later: :mod:`lutra.deploy.link` sends this source
through SSH and speaks with it. A request is a line of JSON, for ``put`` with bytes behind it; the
answer is a line with ``ok`` or ``error``, behind any number of lines with ``note``.

Everything lies in one folder. A set of files is collected beside those that are in use, and takes
their place by the rename of one link when all of it is there and has its checksums.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, Generator, Sequence, cast

__all__ = ["HELLO", "ROOT", "FarError", "FarSide", "main"]

HELLO = "lutra-far 1"
"""First line of the answers; whatever a login prints comes before."""
ROOT = ".lutra"
"""Folder of everything, in the home folder."""
_PYNQ = "/usr/local/share/pynq-venv/bin/python3"
"""Python of PYNQ's images and of Kria-PYNQ, which has the package."""
_PIECE = 1 << 20
_TEXT_MAX = 300
_LOOK_S, _DRAIN_S = 0.2, 10.0
_SITES = ("site-packages", "dist-packages")
_FACTS = """
import importlib.util, json, sys
from importlib import metadata
sys.path.append("/opt/xilinx/xrt/python")
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
card = None
if importlib.util.find_spec("pyxrt"):
    try:
        import pyxrt
        card = str(pyxrt.device(0).get_info(pyxrt.xrt_info_device.name))
    except Exception as error:
        card = "none: %s" % error
print(json.dumps({
    "path": sys.executable,
    "version": list(sys.version_info[:3]),
    "packages": {name: version(name) for name in ("numpy", "pynq", "pip")},
    "card": card,
    "sites": [path for path in sys.path if path.endswith(SITES)],
}))
""".replace("SITES", repr(_SITES))


class FarError(Exception):
    """A line for the other side."""


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[:4096].decode("utf-8", "replace")
    except OSError:
        return ""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while True:
            data = file.read(_PIECE)
            if not data:
                return digest.hexdigest()
            digest.update(data)


def _sync(path: Path) -> None:
    """Have a file or folder on the disk, whatever happens to the board then."""
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_TEXT_MAX] if lines else "it said nothing"


class FarSide:
    """Carries requests out; ``root`` is the folder of everything."""

    def __init__(
        self,
        root: Path,
        reads: io.BufferedReader,
        note: Callable[[str, str], None],
    ) -> None:
        self._root, self._store, self._reads, self._note = root, root / "store", reads, note

    # -- facts

    def probe(self, python: str | None, tree: str) -> dict[str, Any]:
        """Facts of this machine; ``tree`` is the folder of /proc and /sys, for tests."""
        model, chosen = Path(tree, "proc/device-tree"), "chosen/pynq_board"
        names = [_text(model / "model"), _text(model / chosen), _text(Path(tree, "etc/xocl.txt"))]
        return {
            "system": platform.system(),
            "machine": platform.machine(),
            "kernel": platform.release(),
            "free_bytes": shutil.disk_usage(str(Path.home())).free,
            "names": [name.strip("\0 \n") for name in names if name.strip("\0 \n")],
            "compatible": [each for each in _text(model / "compatible").split("\0") if each],
            "is_root": os.geteuid() == 0,
            "sudo": self._can_sudo(),
            "buffers": sorted(path.name for path in Path(tree, "sys/class/u-dma-buf").glob("*")),
            "far_python": list(sys.version_info[:3]),
            "python": self._python(python),
        }

    @staticmethod
    def _can_sudo() -> bool:
        try:
            null = subprocess.DEVNULL
            done = subprocess.run(["sudo", "-n", "true"], stdin=null, stdout=null, stderr=null)
        except OSError:
            return False
        return done.returncode == 0

    @staticmethod
    def _python(named: str | None) -> dict[str, Any]:
        """Facts of the Python that Lutra will run with."""
        python = named or (_PYNQ if os.access(_PYNQ, os.X_OK) else "python3")
        try:
            done = subprocess.run(
                [python, "-c", _FACTS], stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        except OSError as error:
            raise FarError(f"{python} cannot be run ({error.strerror})") from None
        try:
            return json.loads(done.stdout.strip().split("\n")[-1])
        except ValueError:
            raise FarError(f"{python} does not work: {_last_line(done.stderr)}") from None

    # -- sets of files

    def _path(self, folder: Path, name: str) -> Path:
        """A path in ``folder``, whatever comes through the link."""
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in name:
            raise FarError(f"{name!r} is no path of a set")
        return folder.joinpath(*parts)

    def missing(self, kind: str, digest: str, files: Sequence[Sequence[Any]]) -> list[str]:
        """Files of a set that have to be put; others are here, in this set or the one before."""
        final, part = self._places(kind, digest)
        if all(self._is(self._path(final, name), size, sha) for name, size, sha, _ in files):
            shutil.rmtree(str(part), ignore_errors=True)
            return []
        part.mkdir(parents=True, exist_ok=True)
        return [file[0] for file in files if not self._find(kind, part, file)]

    def _places(self, kind: str, digest: str) -> tuple[Path, Path]:
        if "/" in kind + digest:
            raise FarError(f"{kind}-{digest} is no name of a set")
        return self._store / f"{kind}-{digest}", self._store / f"{kind}-{digest}.part"

    @staticmethod
    def _is(path: Path, size: int, sha: str) -> bool:
        return path.is_file() and path.stat().st_size == size and _sha256(path) == sha

    def _find(self, kind: str, part: Path, file: Sequence[Any]) -> bool:
        """Look for a file where an upload ended before, and in older sets of the kind."""
        name, size, sha, mode = file
        path = self._path(part, name)
        if self._is(path, size, sha):
            return True
        for folder in self._store.glob(f"{kind}-*"):
            old = self._path(folder, name)
            if folder != part and self._is(old, size, sha):
                path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                try:
                    os.link(str(old), str(path))
                except OSError:  # a file system without links
                    shutil.copyfile(str(old), str(path))
                os.chmod(str(path), mode)
                return True
        return False

    def put(self, kind: str, digest: str, file: Sequence[Any]) -> None:
        """Take a file of a set, whose bytes come next."""
        name, size, sha, mode = file
        path = self._path(self._places(kind, digest)[1], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, found = self._store / "incoming", hashlib.sha256()
        try:
            with partial.open("wb") as out:
                left = size
                while left:
                    data = self._reads.read(min(left, _PIECE))
                    if not data:
                        raise EOFError
                    out.write(data)
                    found.update(data)
                    left -= len(data)
                out.flush()
                os.fsync(out.fileno())
            if found.hexdigest() != sha:
                raise FarError(f"{name} arrived with another checksum")
            os.chmod(str(partial), mode)
            os.replace(str(partial), str(path))
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()

    def commit(
        self, kind: str, digest: str, files: Sequence[Sequence[Any]], link: str, target: str
    ) -> None:
        """Put a set whose files are all here in the place of the one before.

        ``link`` then leads to ``target`` in the set, or to the set itself if that is empty.
        """
        final, part = self._places(kind, digest)
        if part.is_dir() or not final.is_dir():
            for name, size, sha, _ in files:
                if not self._is(self._path(part, name), size, sha):
                    raise FarError(f"{name} of {link} is not whole on the disk")
            wanted = {self._path(part, file[0]) for file in files}
            for path in [each for each in part.rglob("*") if each.is_file()]:
                if path not in wanted:
                    path.unlink()
            for folder in [part, *(each for each in part.rglob("*") if each.is_dir())]:
                _sync(folder)
            if final.is_dir():  # the same set, of which a file was spoilt
                os.rename(str(final), f"{final}.spoilt")
            os.rename(str(part), str(final))
        self._point(link, self._path(final, target) if target else final)
        for old in self._store.glob(f"{kind}-*"):
            if old != final:
                shutil.rmtree(str(old), ignore_errors=True)

    def _point(self, link: str, target: Path) -> None:
        """Have ``link`` lead to ``target``, from one moment to the next."""
        path = self._path(self._root, link)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_symlink():
            raise FarError(f"{path} is not of `lutra deploy`: move it away")
        new = path.with_name(path.name + ".new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        os.symlink(os.path.relpath(str(target), str(path.parent)), str(new))
        os.replace(str(new), str(path))
        _sync(path.parent)

    # -- programs

    def environment(
        self,
        python: str,
        wheel: str,
        constraints: Sequence[str],
        wheels: str | None,
        key: str,
        extras: str = "",
    ) -> bool:
        """Install the wheel in the set ``wheel`` beside the packages of ``python``.

        False if that was done before. The environment is whole when the link ``venv`` leads to it.
        """
        folder, link = self._store / f"venv-{key}", self._root / "venv"
        inside = [str(folder / "bin/python")]
        check = [*inside, "-c", "import lutra.commands.cli"]
        if link.is_symlink() and link.resolve() == folder.resolve():
            if self._run(check, _ignore) == 0:
                return False
        shutil.rmtree(str(folder), ignore_errors=True)
        sites = self._python(python)["sites"]
        self._must([python, "-m", "venv", "--without-pip", str(folder)], "no environment")
        own = next(folder.glob("lib/python*/site-packages"))
        # PYNQ and what else is there; an environment in an environment would not see it
        (own / "lutra-beside.pth").write_text("".join(f"{path}\n" for path in sites))
        limits = folder / "constraints.txt"
        limits.write_text("".join(f"{line}\n" for line in constraints))
        command = [
            *inside, "-m", "pip", "install", "--no-input", "--disable-pip-version-check",
            "--progress-bar", "off", "-c", str(limits),
        ]  # fmt: skip
        if wheels is not None:
            command += ["--no-index", "--find-links", str(self._path(self._root, wheels))]
        found = sorted(self._path(self._root, wheel).glob("*.whl"))
        self._must(
            [*command, *(f"{path}{extras}" for path in found)], "pip could not install Lutra"
        )
        self._must(check, "Lutra does not start")
        self._point("venv", folder)
        for old in self._store.glob("venv-*"):
            if old != folder:
                shutil.rmtree(str(old), ignore_errors=True)
        return True

    def _must(self, command: Sequence[str], what: str) -> None:
        lines: list[str] = []

        def hear(stream: str, line: str) -> None:
            self._note(stream, line)
            lines.append(line)

        try:
            code = self._run(command, hear)
        except OSError as error:
            raise FarError(f"{what}: {command[0]} cannot be run ({error.strerror})") from None
        if code:
            errors = [line for line in lines if line.startswith("ERROR")]
            raise FarError(f"{what}: {_last_line(chr(10).join(errors or lines))}")

    def run(self, command: Sequence[str], limit_s: float) -> int:
        """Run a program of the folder above; its lines are notes, its exit status the answer."""
        try:
            return self._run(command, self._note, limit_s)
        except OSError as error:
            raise FarError(f"{command[0]} cannot be run ({error.strerror})") from None

    def _run(
        self, command: Sequence[str], hear: Callable[[str, str], None], limit_s: float = 3600.0
    ) -> int:
        """Run a program to its end, or to that of the link, or until ``limit_s`` have passed."""
        deadline = time.monotonic() + limit_s
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=str(self._root.parent), start_new_session=True,
        )  # fmt: skip
        try:
            readers = [
                threading.Thread(target=_hear, args=(pipe, stream, hear), daemon=True)
                for pipe, stream in ((process.stdout, "out"), (process.stderr, "err"))
            ]
            for reader in readers:
                reader.start()
            while not self._is_over(process):
                if time.monotonic() > deadline:
                    raise FarError(f"{command[0]} is not done after {limit_s:g} s")
            for reader in readers:
                # not for ever: what the program left running may have its pipes
                reader.join(_DRAIN_S)
            return process.returncode
        except BaseException:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_DRAIN_S)  # root's is not ours to kill
            raise

    def _is_over(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait a moment for the end of a program; EOFError at that of the link."""
        if self._gone():
            raise EOFError
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_S)
        return process.returncode is not None

    def _gone(self) -> bool:
        """True at the end of the link; no request comes before the answer to the last one."""
        return bool(select.select([self._reads], [], [], 0)[0]) and not self._reads.peek(1)

    @contextlib.contextmanager
    def alone(self) -> Generator[None, None, None]:
        """Keep a second deployment away."""
        self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (self._root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FarError("another `lutra deploy` is at work here: wait for its end") from None
            yield


def _ignore(_stream: str, _line: str) -> None:
    pass


def _hear(pipe: BinaryIO, stream: str, hear: Callable[[str, str], None]) -> None:
    with contextlib.suppress(OSError):  # nobody is there to hear it
        for line in pipe:
            hear(stream, line.decode("utf-8", "replace").rstrip())


def main() -> int:
    """Answer requests to the end of the link."""
    # what a program prints by mistake must not be taken for an answer
    writes = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(answer: dict[str, Any]) -> None:
        with lock:
            writes.write(json.dumps(answer).encode() + b"\n")
            writes.flush()

    def note(stream: str, line: str) -> None:
        say({"note": line, "stream": stream})

    side = FarSide(Path.home() / ROOT, cast(io.BufferedReader, sys.stdin.buffer), note)
    with lock:
        writes.write(HELLO.encode() + b"\n")
        writes.flush()
    try:
        with side.alone():
            for line in iter(sys.stdin.buffer.readline, b""):
                request = json.loads(line)
                name = request.pop("do")
                if name not in ("probe", "missing", "put", "commit", "environment", "run"):
                    raise FarError(f"{name} is no request: use one version of Lutra")
                say({"ok": getattr(side, name)(**request)})
    except (FarError, OSError, ValueError, TypeError, KeyError) as error:
        say({"error": " ".join(str(error).split())})
        return 1
    except EOFError:
        return 1
    return 0

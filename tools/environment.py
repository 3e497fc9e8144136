"""Create ``.venv``, or another one, with Lutra and the named extras; do nothing if it exists.

Standard library only: it runs before anything is installed. What was installed, and from which
pyproject.toml, is written down last, so that an interrupted installation is taken up again.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "lutra-environment.json"
LOG = VENV / "install.log"
LOG_LINES = 15
STANDS_S = 10.0  # without progress, after which no estimate is worth anything

# packages that come with each extra, roughly: for the estimate alone
N_PACKAGES = {"": 28, "sim": 24, "dev": 60, "pynq": 40}

# what pip does before it collects packages, in words of its log, and what that is here: metadata of
# an installation in place come from a build, which compiles the library (hatch_build.py)
STEPS = {
    "Installing build dependencies": "fetching what it is built with",
    "Preparing editable metadata": "compiling the CPU's kernels",
}

# Lutra's own distribution when it had the name that is another project's on PyPI
OLD_NAME = "lutra"


def main(arguments: list[str]) -> int:
    """Bring the environment up to date; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tools/environment.py")
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--venv", default=VENV.name, help="folder of the environment")
    parser.add_argument("--with", action="append", default=[], dest="packages", metavar="PACKAGE")
    options = parser.parse_args(arguments)
    use(ROOT / options.venv)
    try:
        ensure(set(options.extras), options.packages)
    except EnvironmentFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {VENV.name} cannot be written: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


class EnvironmentFailure(Exception):
    """The environment cannot be built; the message gives the reason and a remedy."""


def use(venv: Path) -> None:
    """Work on the environment in this folder."""
    global VENV, STAMP, LOG
    VENV, STAMP, LOG = venv, venv / STAMP.name, venv / LOG.name


def ensure(extras: set[str], packages: list[str]) -> None:
    """Install the project with ``extras`` and ``packages`` unless they are installed already."""
    installed = read_stamp()
    if installed.get("key") == key(packages) and extras <= set(installed.get("extras", [])):
        return
    check_tools()
    # scripts in .venv name its path, so one that was moved is made anew
    if installed.get("root") != str(ROOT) or not has_pip():
        create_venv()
        write_stamp({"root": str(ROOT)})
    # what an earlier command installed stays
    extras |= set(installed.get("extras", []))
    remove_old_distribution()
    install(sorted(extras), packages)
    write_stamp({"root": str(ROOT), "key": key(packages), "extras": sorted(extras)})


def key(packages: list[str]) -> str:
    """Hash of the inputs: the project's metadata and place, the packages, the interpreter."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return hashlib.sha256(f"{ROOT}\n{sys.version}\n{packages}\n{text}".encode()).hexdigest()


def read_stamp() -> dict[str, Any]:
    """Stamp that :func:`write_stamp` wrote last; empty when there is none."""
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def write_stamp(stamp: dict[str, Any]) -> None:
    """Record the installed state, atomically."""
    STAMP.with_suffix(".tmp").write_text(json.dumps(stamp))
    STAMP.with_suffix(".tmp").replace(STAMP)


def check_tools() -> None:
    """Fail before minutes of downloading where the build after it would."""
    sys.path.insert(0, str(ROOT / "sim"))
    from lutra_sim.rtl.toolchain import ToolchainError, check_tools

    try:
        check_tools()
    except ToolchainError as error:
        raise EnvironmentFailure(error) from error


def has_pip() -> bool:
    """True if ``.venv`` is whole and of this interpreter's version."""
    code = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    with contextlib.suppress(OSError):
        return subprocess.run([python(), "-c", code], capture_output=True).returncode == 0
    return False


def create_venv() -> None:
    """Make an empty ``.venv``."""
    with Progress(f"creating {VENV.name}") as progress:
        shutil.rmtree(VENV, ignore_errors=True)
        command = [sys.executable, "-m", "venv", str(VENV)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
            raise EnvironmentFailure(
                f"`python3 -m venv` failed: {last_line(done.stdout + done.stderr)}; on Debian and "
                f"Ubuntu it needs: apt install {package}"
            )
        progress.finish()


def remove_old_distribution() -> None:
    """Uninstall what has the old name: its modules and its command would hide the new ones."""
    if not any(VENV.glob(f"lib/python*/site-packages/{OLD_NAME}-*.dist-info")):
        return
    command = [python(), "-m", "pip", "uninstall", "--yes", "--disable-pip-version-check", OLD_NAME]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentFailure(
            f"pip could not uninstall {OLD_NAME}, the old name of Lutra in {VENV.name}: "
            f"{last_line(done.stdout + done.stderr)}; remove {VENV.name}, then run the same "
            "command again"
        )


def install(extras: list[str], packages: list[str]) -> None:
    """``pip install -e .[extras] packages`` with a progress line in place of pip's output."""
    command = [python(), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "-e", f"{ROOT}[{','.join(extras)}]", *packages]
    expected = N_PACKAGES[""] + sum(N_PACKAGES.get(extra, 10) for extra in extras)
    n_before = n_installed()
    with Progress(f"installing lutra-fpga[{','.join(extras)}]") as progress, LOG.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            while process.poll() is None:
                text = LOG.read_text(errors="replace")
                progress.show(*installed_share(text, expected, n_installed() - n_before))
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
        if process.returncode == 0:
            progress.finish()
            return
    tail = LOG.read_text(errors="replace").splitlines()[-LOG_LINES:]
    raise EnvironmentFailure(
        "\n".join(
            [
                f"pip could not install lutra-fpga[{','.join(extras)}]; the end of its log, {LOG}:",
                *(f"  {line}" for line in tail),
                "Check the network and the free disk space, then run the same command again.",
            ]
        )
    )


def n_installed() -> int:
    """Number of packages in ``.venv``."""
    return sum(1 for _ in VENV.glob("lib/python*/site-packages/*.dist-info"))


def installed_share(log: str, n_expected: int, n_done: int) -> tuple[float, str]:
    """Progress of pip, from its log and the unpacked packages, and its current activity."""
    if unpacking := re.search(r"^Installing collected packages: (.+)$", log, re.MULTILINE):
        names = unpacking[1].split(", ")
        return 0.6 + 0.4 * min(n_done / len(names), 0.99), f"unpacking {len(names)} packages"
    if re.search(r"^ *Building editable for lutra", log, re.MULTILINE):
        return 0.6, "building the package"
    seen = re.findall(r"^ *(?:Collecting|Downloading|Using cached) ([\w.-]+)", log, re.MULTILINE)
    collected = re.findall(r"^Collecting ", log, re.MULTILINE)
    begun = re.findall(r"^ *(.+?)(?: \(pyproject\.toml\))?: started$", log, re.MULTILINE)
    doing = STEPS.get(begun[-1] if begun else "", "reading pyproject.toml")
    if seen:
        doing = f"fetching {seen[-1].partition('-')[0]}"
    return 0.6 * min(len(collected) / n_expected, 0.99), doing


class Progress:
    """One line about one long step: share done, time passed and time left.

    On a terminal the line is rewritten in place; elsewhere a new one appears every 15 seconds.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._start = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._next_line = 0.0
        self._share = self._moved = 0.0

    def __enter__(self) -> "Progress":
        self.show(0.0, "")
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def show(self, share: float, doing: str) -> None:
        """Say how far it is."""
        passed = time.monotonic() - self._start
        if share > self._share:
            self._share, self._moved = share, passed
        left = self._left(passed)
        what = f"{self._title}: {doing}" if doing else self._title
        text = f"{what}  {share:4.0%}  {clock(passed)}{left}"
        if self._terminal:
            bar = "#" * round(20 * share)
            text = f"[{bar:<20}] {text}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif passed >= self._next_line:
            self._next_line = passed + 15
            print(text, file=sys.stderr, flush=True)

    def _left(self, passed: float) -> str:
        """Estimate of the time left, by the time that the share done has taken; nothing at first,
        and where the step stands."""
        stands = passed - self._moved
        if self._share <= 0.1 or stands > STANDS_S:
            return ""
        left = self._moved * (1 - self._share) / self._share - stands
        return f", about {clock(round(left))} left" if left > 0 else ""

    def finish(self) -> None:
        """Say that it is done."""
        passed = clock(time.monotonic() - self._start)
        start = "\r\033[K" if self._terminal else ""
        print(f"{start}{self._title}  done in {passed}", file=sys.stderr, flush=True)
        self._terminal = False


def clock(seconds: float) -> str:
    """``m:ss``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def python() -> str:
    """The environment's interpreter."""
    return str(VENV / "bin" / "python")


def last_line(text: str) -> str:
    """The last line of ``text`` that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main(sys.argv[1:]))

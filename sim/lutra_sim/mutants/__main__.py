"""Plants faults in the packages and sees whether tests notice: ``python -m lutra_sim.mutants``."""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from lutra_sim.mutants.catalogue import PACKAGES, SURVIVORS
from lutra_sim.mutants.mutant import Mutant, apply
from lutra_sim.rtl.toolchain import cache_folder

__all__ = ["ROOT", "Outcome", "TestRun", "main", "run_tests"]

ROOT = Path(__file__).resolve().parents[3]
"""The checkout: mutants need the tests, which are not installed."""

_FOLDERS = ("hw", "sim", "kernels_gpu", "host", "flows")
_PASSED, _FAILED = 0, 1  # exit status of pytest
# processor time of each process of the tests with a fault: it ends endless loops, nothing else
_CPU_FACTOR, _CPU_LEAST_S = 10, 120
_UNLIMITED_S = 1 << 20
_COMPILER = shlex.join([sys.executable, "-m", "lutra_sim.mutants.objects"])


@dataclass(frozen=True)
class TestRun:
    """Exit status of pytest, its last line, and the processor time of all its processes."""

    status: int
    line: str
    cpu_s: float


@dataclass(frozen=True)
class Outcome:
    """Result of the tests of a mutant; ``problem`` gives the reason if there is none."""

    mutant: Mutant
    caught: bool
    cpu_s: float
    problem: str = ""

    @property
    def word(self) -> str:
        """The outcome in words."""
        if self.problem:
            return f"ERROR: {self.problem}"
        listed = self.mutant.name in SURVIVORS
        if self.caught:
            return "caught: take it off the list of survivors" if listed else "caught"
        return f"survives: {SURVIVORS[self.mutant.name]}" if listed else "SURVIVED"

    @property
    def expected(self) -> bool:
        """True if the fault is caught, or survives and is listed."""
        return self.caught or (not self.problem and self.mutant.name in SURVIVORS)


def run_tests(
    tests: Sequence[str], overlay: Path | None = None, cpu_limit_s: int = _UNLIMITED_S
) -> TestRun:
    """Run ``tests`` with the packages under ``overlay`` in place of the checkout's.

    A process that needs more than ``cpu_limit_s`` of processor time fails. Simulators and compiled
    libraries have a cache of their own, since most are used once.
    """
    roots = [root for root in (overlay, ROOT) if root is not None]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(root / name) for root in roots for name in _FOLDERS),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LUTRA_CACHE": str(cache_folder() / "mutants"),
        "CC": f"{_COMPILER} {os.environ.get('CC') or 'cc'}",
        "LUTRA_REQUIRE_TOOLS": "1",
        "LUTRA_COVERAGE": "0",
    }
    # the shell sets the limit, which every process of the tests inherits
    command = ["sh", "-c", 'ulimit -S -t "$0" && exec "$@"', str(cpu_limit_s)]
    command += [sys.executable, "-W", "ignore", "-m", "pytest", "-x", "-p", "no:cacheprovider"]
    command += ["-n0", *(f"tests/{test}" for test in tests)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = [line for line in output.read().splitlines() if line.strip()]
    cpu_s = usage.ru_utime + usage.ru_stime
    if process.returncode == -signal.SIGXCPU:
        return TestRun(_FAILED, f"no end within {cpu_limit_s} s of processor time", cpu_s)
    return TestRun(process.returncode, lines[-1].strip() if lines else "no output", cpu_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_sim.mutants", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("words", nargs="*", help="only mutants whose name has one of these words")
    parser.add_argument(
        "-p", "--package", action="append", choices=PACKAGES, help="only mutants of this package"
    )
    parser.add_argument("-j", "--jobs", type=int, default=2, help="at a time (%(default)s)")
    options = parser.parse_args(arguments)
    mutants = [
        mutant
        for package in options.package or PACKAGES
        for mutant in PACKAGES[package]
        if not options.words or any(word in mutant.name for word in options.words)
    ]
    if not mutants:
        print(f"error: no mutant's name has {' or '.join(options.words)}", file=sys.stderr)
        return 2
    if options.jobs < 1:
        print(f"error: --jobs must be positive, not {options.jobs}", file=sys.stderr)
        return 2
    try:
        outcomes = _try(mutants, options.jobs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    width = max(len(outcome.mutant.name) for outcome in outcomes)
    for outcome in outcomes:
        print(f"{outcome.mutant.name:<{width}}  {outcome.cpu_s:6.1f} s  {outcome.word}")
    left = [outcome for outcome in outcomes if not outcome.caught]
    cpu_s = sum(outcome.cpu_s for outcome in outcomes)
    print(
        f"\n{len(outcomes) - len(left)} of {len(outcomes)} mutants caught in {cpu_s:.0f} s of "
        "processor time"
    )
    for outcome in left:
        print(f"{outcome.mutant.name}: {outcome.word}")
    return 0 if all(outcome.expected for outcome in outcomes) else 1


def _try(mutants: Sequence[Mutant], jobs: int) -> list[Outcome]:
    """Outcomes in the order of ``mutants``, of which those with the cheapest tests come first.

    The tests run without any fault first: those that fail then, or are not there, would catch
    everything.
    """
    tests = list(dict.fromkeys(mutant.tests for mutant in mutants))
    total, start = len(tests) + len(mutants), time.monotonic()
    sound: dict[tuple[str, ...], TestRun] = {}
    outcomes: dict[str, Outcome] = {}

    def say(text: str) -> None:
        count = len(sound) + len(outcomes)
        left_s = (time.monotonic() - start) / count * (total - count)
        print(f"{count}/{total}  {text}  ({left_s / 60:.0f} min left)", file=sys.stderr, flush=True)

    pool = ThreadPoolExecutor(jobs)
    try:
        runs = {pool.submit(run_tests, names): names for names in tests}
        for future in as_completed(runs):
            sound[runs[future]] = future.result()
            found = future.result()
            say(f"without faults: {', '.join(runs[future])}: {found.line}, {found.cpu_s:.1f} s")
        cheapest = sorted(mutants, key=lambda mutant: sound[mutant.tests].cpu_s)
        futures = [pool.submit(_outcome, mutant, sound[mutant.tests]) for mutant in cheapest]
        for future in as_completed(futures):
            outcome = future.result()
            outcomes[outcome.mutant.name] = outcome
            say(f"{outcome.mutant.name}: {outcome.word}, {outcome.cpu_s:.1f} s")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [outcomes[mutant.name] for mutant in mutants]


def _outcome(mutant: Mutant, sound: TestRun) -> Outcome:
    """Result of the tests of ``mutant``, which ended as ``sound`` without it."""
    if sound.status != _PASSED:
        problem = f"tests do not pass without the fault: {sound.line}"
        return Outcome(mutant, False, 0.0, problem)
    with tempfile.TemporaryDirectory(prefix="lutra-mutant-") as scratch:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / mutant.folder, Path(scratch) / mutant.folder, ignore=ignored)
        try:
            apply(mutant, Path(scratch))
        except ValueError as error:
            return Outcome(mutant, False, 0.0, str(error))
        limit_s = max(_CPU_LEAST_S, int(_CPU_FACTOR * sound.cpu_s))
        run = run_tests(mutant.tests, Path(scratch), limit_s)
    ended = run.status in (_PASSED, _FAILED)
    problem = "" if ended else f"pytest ended with {run.status}: {run.line}"
    return Outcome(mutant, run.status == _FAILED, run.cpu_s, problem)


if __name__ == "__main__":
    sys.exit(main())

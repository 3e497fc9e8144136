"""Plants faults in the RTL and sees whether tests notice: ``python -m lutra_sim.mutants``."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from lutra_sim.mutants.catalogue import MUTANTS, Mutant
from lutra_sim.rtl.toolchain import cache_folder

__all__ = ["ROOT", "Outcome", "apply", "main", "run_tests"]

ROOT = Path(__file__).resolve().parents[3]
"""The checkout: mutants need the tests, which are not installed."""

_HARDWARE = Path("hw/lutra_hw")
_TIMEOUT_S = 900
_PASSED, _FAILED = 0, 1  # exit status of pytest


@dataclass(frozen=True)
class Outcome:
    """Result of the tests of a mutant; ``problem`` gives the reason if there is none."""

    mutant: Mutant
    caught: bool
    seconds: float
    problem: str = ""

    @property
    def word(self) -> str:
        if self.problem:
            return f"ERROR: {self.problem}"
        return "caught" if self.caught else "SURVIVED"


def apply(mutant: Mutant, root: Path) -> None:
    """Change the file of ``mutant`` under ``root``, a copy of the checkout's ``hw``.

    Raises ValueError unless the old text is there exactly once.
    """
    path = root / mutant.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(f"{mutant.file} must have {mutant.old!r} once, not {count} times")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def run_tests(tests: Sequence[str], hardware: Path | None = None) -> tuple[int, str]:
    """Run ``tests`` with the RTL under ``hardware``, or the checkout's; exit status and last line.

    Simulators have a cache of their own, since most are used once.
    """
    paths = [str(hardware)] if hardware else []
    paths += [str(ROOT / folder) for folder in ("hw", "sim", "host", "flows")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LUTRA_CACHE": str(cache_folder() / "mutants"),
        "LUTRA_REQUIRE_TOOLS": "1",
        "LUTRA_COVERAGE": "0",
    }
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-x", "-p", "no:cacheprovider"]
    command += ["-n0", *(f"tests/{test}" for test in tests)]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        # a fault that hangs a test is noticed too
        return _FAILED, f"no end within {_TIMEOUT_S} s"
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return done.returncode, lines[-1].strip() if lines else "no output"


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_sim.mutants", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("words", nargs="*", help="only mutants whose name has one of these words")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="at a time (%(default)s)")
    options = parser.parse_args(arguments)
    mutants = [
        mutant
        for mutant in MUTANTS
        if not options.words or any(word in mutant.name for word in options.words)
    ]
    if not mutants:
        print(f"error: no mutant's name has {' or '.join(options.words)}", file=sys.stderr)
        return 2
    if options.jobs < 1:
        print(f"error: --jobs must be positive, not {options.jobs}", file=sys.stderr)
        return 2
    start = time.monotonic()
    try:
        failing = _baseline(mutants, options.jobs)
        outcomes = _try(mutants, failing, options.jobs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    width = max(len(outcome.mutant.name) for outcome in outcomes)
    for outcome in outcomes:
        print(f"{outcome.mutant.name:<{width}}  {outcome.seconds:6.1f} s  {outcome.word}")
    n_caught = sum(outcome.caught for outcome in outcomes)
    seconds = time.monotonic() - start
    print(f"\n{n_caught} of {len(outcomes)} mutants caught in {seconds:.0f} s")
    return 0 if n_caught == len(outcomes) else 1


def _baseline(mutants: Sequence[Mutant], jobs: int) -> dict[tuple[str, ...], str]:
    """Tests that fail, or are not there, without any fault: they would catch everything."""
    tests = list(dict.fromkeys(mutant.tests for mutant in mutants))
    failing: dict[tuple[str, ...], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run_tests, names): names for names in tests}
        for count, future in enumerate(as_completed(futures), 1):
            status, line = future.result()
            _say(f"{count}/{len(tests)}  without faults: {', '.join(futures[future])}: {line}")
            if status != _PASSED:
                failing[futures[future]] = f"tests do not pass without the fault: {line}"
    return failing


def _try(
    mutants: Sequence[Mutant], failing: dict[tuple[str, ...], str], jobs: int
) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(_outcome, mutant, failing.get(mutant.tests, "")) for mutant in mutants
        ]
        for count, future in enumerate(as_completed(futures), 1):
            outcome = future.result()
            outcomes[outcome.mutant.name] = outcome
            _say(f"{count}/{len(mutants)}  {outcome.mutant.name}: {outcome.word}")
    return [outcomes[mutant.name] for mutant in mutants]


def _outcome(mutant: Mutant, problem: str) -> Outcome:
    start = time.monotonic()
    if problem:
        return Outcome(mutant, False, 0.0, problem)
    with tempfile.TemporaryDirectory(prefix="lutra-mutant-") as scratch:
        copy = Path(scratch) / "hw"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "hw", copy, ignore=ignored)
        try:
            apply(mutant, copy / _HARDWARE.relative_to("hw"))
        except ValueError as error:
            return Outcome(mutant, False, 0.0, str(error))
        status, line = run_tests(mutant.tests, copy)
    problem = "" if status in (_PASSED, _FAILED) else f"pytest ended with {status}: {line}"
    return Outcome(mutant, status == _FAILED, time.monotonic() - start, problem)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Hardware verification as a whole: ``python tools/verify.py [pytest option ...]``.

Runs the proofs, the tests with the benches, and the coverage of the RTL one after the other, each
whatever became of the one before, and prints a table of them at the end.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Part", "Result", "main", "parts", "run", "table"]

ROOT = Path(__file__).resolve().parent.parent
# the proofs are a part of their own
PROOFS = "tests/sim/formal/test_catalogue.py::test_passes"
TESTS = ("tests/hw", "tests/sim", "tests/system")

_CHUNK_BYTES = 1 << 16
# lines of pytest and of the table of proofs
_FAILURE = re.compile(r"(FAILED|ERROR) .*|.* (FAILED|unproven)")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A command, and the pattern of the output line with its outcome."""

    name: str
    command: Sequence[str]
    summary: re.Pattern[str]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Outcome of a part; ``failures`` are the lines that name what failed in it."""

    name: str
    status: int
    wall_s: float
    cpu_s: float
    summary: str
    failures: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """The outcome in a word."""
        return "FAILED" if self.status else "ok"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every part and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python tools/verify.py", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument(
        "-j", "--jobs", type=int, default=2, help="proofs and tests at a time (%(default)s)"
    )
    options, pytest_options = parser.parse_known_args(arguments)
    if options.jobs < 1:
        print(f"error: --jobs must be positive, not {options.jobs}", file=sys.stderr)
        return 2
    coverage = ROOT / "coverage"
    shutil.rmtree(coverage, ignore_errors=True)
    settings = {
        "LUTRA_COVERAGE": "1",
        "LUTRA_COVERAGE_DIR": str(coverage),
        "LUTRA_REQUIRE_TOOLS": "1",
    }
    results = []
    try:
        for part in parts(options.jobs, pytest_options):
            print(f"\n== {part.name}", flush=True)
            results.append(run(part, settings))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"\n{table(results)}", flush=True)
    return 1 if any(result.status for result in results) else 0


def parts(jobs: int, pytest_options: Sequence[str]) -> list[Part]:
    """All parts, in order; coverage comes from the tests before it."""
    python = [sys.executable, "-m"]
    tests = [folder for folder in TESTS if (ROOT / folder).is_dir()]
    return [
        Part(
            name="proofs",
            command=[*python, "lutra_sim.formal", "--jobs", str(jobs)],
            summary=re.compile(r".* checks passed, .*"),
        ),
        Part(
            name="tests and benches",
            command=[
                *(*python, "pytest", "-n", str(jobs), "--dist", "worksteal"),
                *(*tests, "--deselect", PROOFS),
                *pytest_options,
            ],
            summary=re.compile(r".*\d+ (passed|failed|skipped|errors?)\b.* in .*"),
        ),
        Part(
            name="coverage",
            command=[*python, "lutra_sim.rtl.coverage"],
            summary=re.compile(r"total .*"),
        ),
    ]


def run(part: Part, settings: Mapping[str, str]) -> Result:
    """Run ``part`` and pass its output on."""
    start = time.monotonic()
    output = bytearray()
    with subprocess.Popen(
        part.command,
        cwd=ROOT,
        env=os.environ | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        while chunk := os.read(running.stdout.fileno(), _CHUNK_BYTES):
            output += chunk
            sys.stdout.write(chunk.decode(errors="replace"))
            sys.stdout.flush()
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    lines = output.decode(errors="replace").splitlines()
    summaries = [line.strip() for line in lines if part.summary.fullmatch(line.strip())]
    return Result(
        name=part.name,
        status=running.returncode,
        wall_s=time.monotonic() - start,
        cpu_s=usage.ru_utime + usage.ru_stime,
        summary=re.sub(" {2,}", "  ", summaries[-1].strip("= ")) if summaries else "no result",
        failures=tuple(line.strip() for line in lines if _FAILURE.fullmatch(line.strip())),
    )


def table(results: Sequence[Result]) -> str:
    """Every part with its result, then what failed."""
    rows = [("part", "result", "wall s", "CPU s", "")]
    rows += [(r.name, r.word, f"{r.wall_s:.0f}", f"{r.cpu_s:.0f}", r.summary) for r in results]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.rjust(width) if column in (2, 3) else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    for result in results:
        if result.status:
            lines += ["", f"{result.name}: exit status {result.status}"]
            lines += [f"  {failure}" for failure in result.failures]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

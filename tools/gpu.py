"""Check Lutra on this machine's GPU in under ten minutes: ``make gpu``.

Installs the extra, runs the tests of the kernels on the device, tunes, times the kernels and whole
models, and ends with one JSON object: device, versions, what became of each step, and figures, each
with its kind. A step that fails or takes too long does not hide the others. Standard library only:
it runs before anything is installed.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["LIMIT", "STEPS", "Step", "main"]

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
LIMIT = 590
"""Seconds that all steps together may take."""
SHAPES = ["--models", "2b-4t", "--formats", "W1.58", "W4g128"]
"""Shapes to tune and time; the modules' own commands do all of them, which takes far longer."""
BENCH = ["bench", "-m", "random:bitnet-2b-4t", "-dev", "cuda", "-o", "json", "-r", "3"]
Figure = dict[str, str | int | float]


def _measured(name: str, value: float, unit: str, **more: str | int | float) -> Figure:
    return {"name": name, "value": value, "unit": unit, "kind": "measured on hardware", **more}


def _tests(output: str, _folder: Path) -> list[Figure]:
    """Tests by outcome, from pytest's last line."""
    last = next((line for line in reversed(output.splitlines()) if " in " in line), "")
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed)", last)
    return [
        {"name": f"tests {outcome}", "value": int(count), "unit": "tests", "kind": "counted"}
        for count, outcome in found
    ]


def _tuned(_output: str, folder: Path) -> list[Figure]:
    """Shapes that were tuned."""
    table = json.loads((folder / "tuned.json").read_text())
    return [
        {"name": "shapes tuned", "value": len(table["tiles"]), "unit": "shapes", "kind": "counted"}
    ]


def _kernels(_output: str, folder: Path) -> list[Figure]:
    """Times of products, and the rate of a kernel that only reads."""
    result = json.loads((folder / "bench.json").read_text())
    figures = [_measured("reading", result["read_gb_per_s"], "GB/s")]
    for row in result["rows"]:
        name = f"{row['path']} {row['model']} {row['name']} {row['format']} M={row['m']}"
        share = {"read_share": row["read_share"]}
        ratio = {"over_bf16": row["over_bf16"]} if row["over_bf16"] is not None else {}
        figures.append(_measured(name, row["us"], "us", **share, **ratio))
    return figures


def _rates(output: str, _folder: Path) -> list[Figure]:
    """Tokens per second, from ``lutra bench -o json``."""
    return [
        _measured(f"{row['model']} {row['test']}", row["t_s"], "tokens/s", std=row["std"])
        for row in json.loads(output)
    ]


def _none(_output: str, _folder: Path) -> list[Figure]:
    return []


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of at most ``limit`` seconds; ``figures`` are made of its output and files."""

    name: str
    command: Sequence[str]
    limit: int
    figures: Callable[[str, Path], list[Figure]] = _none
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


_PYTHON = str(BIN / "python")
_DESCRIBE = "import json; from lutra_kernels.timing import describe; print(json.dumps(describe()))"

STEPS = (
    Step(
        name="environment",
        command=[sys.executable, "tools/environment.py", "dev", "gpu"],
        limit=240,
    ),
    Step(name="device", command=[_PYTHON, "-c", _DESCRIBE], limit=30),
    Step(
        name="tests",
        command=[
            _PYTHON, "-m", "pytest", "tests/kernels_gpu", "-m", "not slow", "-n", "{jobs}",
            "--dist", "worksteal", "-p", "no:cacheprovider",
        ],
        limit=180,
        figures=_tests,
        environment={"LUTRA_TEST_CUDA": "1"},
    ),
    Step(
        name="tune",
        command=[
            _PYTHON, "-m", "lutra_kernels.tune", *SHAPES, "--tokens", "1", "16", "512",
            "-o", "{folder}/tuned.json",
        ],
        limit=90,
        figures=_tuned,
    ),
    Step(
        name="kernels",
        command=[
            _PYTHON, "-m", "lutra_kernels.bench", *SHAPES, "--tokens", "1", "16", "512",
            "-o", "{folder}/bench.json",
        ],
        limit=90,
        figures=_kernels,
    ),
    Step(
        name="model",
        command=[str(BIN / "lutra"), *BENCH, "-p", "512", "-n", "64"],
        limit=120,
        figures=_rates,
    ),
)  # fmt: skip
"""Steps, in order."""


@dataclass
class _Result:
    ok: bool
    seconds: float
    output: str
    error: str | None


def run(command: Sequence[str], limit: float, environment: Mapping[str, str]) -> _Result:
    """Run a command for at most ``limit`` seconds; what it started ends with it."""
    if limit <= 0:
        return _Result(False, 0.0, "", "not started: the steps before it took all the time")
    start = time.monotonic()
    with (
        tempfile.TemporaryFile("w+", errors="replace") as output,
        tempfile.TemporaryFile("w+", errors="replace") as messages,
    ):
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=output,
                stderr=messages,
                start_new_session=True,
            )
        except OSError as fault:
            return _Result(False, 0.0, "", f"{command[0]} did not start: {fault.strerror}")
        error: str | None = None
        try:
            if status := process.wait(limit):
                error = f"exit status {status}"
        except subprocess.TimeoutExpired:
            error = f"not done after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        texts: list[str] = []
        for file in (output, messages):
            file.seek(0)
            texts.append(file.read())
    if error is not None:
        lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
        error = f"{error}: {lines[-1] if lines else 'no output'}"
    return _Result(error is None, time.monotonic() - start, texts[0], error)


def check(steps: Sequence[Step], limit: float, jobs: int) -> dict[str, Any]:
    """Run all steps; returns what the last line of the output says."""
    start = time.monotonic()
    report: dict[str, Any] = {"ok": True, "device": {}, "steps": {}, "figures": []}
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            left = min(step.limit, limit - (time.monotonic() - start))
            values = {"folder": folder, "jobs": str(jobs)}
            command = [_filled(word, values) for word in step.command]
            print(f"{step.name} ...", file=sys.stderr, flush=True)
            result = run(command, left, step.environment)
            figures: list[Figure] = []
            try:
                figures = step.figures(result.output, Path(folder))
                if step.name == "device" and result.ok:
                    report["device"] = json.loads(result.output.splitlines()[-1])
            except (OSError, ValueError, KeyError, IndexError) as error:
                # a step that failed has made no figures
                if result.ok:
                    result.ok, result.error = False, f"its output cannot be read: {error}"
            done = {"ok": result.ok, "seconds": round(result.seconds, 1), "limit": step.limit}
            if result.error is not None:
                done["error"] = result.error
                failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", result.output, re.MULTILINE)
                if failed:
                    done["failed"] = failed
            report["steps"][step.name] = done
            report["figures"] += [{"step": step.name, **figure} for figure in figures]
            report["ok"] &= result.ok
            outcome = "ok" if result.ok else str(result.error)
            print(f"{step.name}: {result.seconds:.0f} s, {outcome}", file=sys.stderr, flush=True)
    report["seconds"] = round(time.monotonic() - start, 1)
    return report


def _filled(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 2 without a GPU, 1 if a step failed."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument(
        "--jobs", type=int, default=min(8, os.cpu_count() or 1), help="workers of the tests"
    )
    options = parser.parse_args(arguments)
    if not _gpu_count():
        print(
            "error: no CUDA device found: make gpu needs a GPU of compute capability 8.0 or "
            "higher and its driver; make test checks the kernels without one",
            file=sys.stderr,
        )
        return 2
    report = check(STEPS, LIMIT, options.jobs)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


def _gpu_count() -> int:
    sys.path[:0] = [str(ROOT / "kernels_gpu"), str(ROOT / "sim")]
    from lutra_kernels import gpu_count

    return gpu_count()


if __name__ == "__main__":
    sys.exit(main())

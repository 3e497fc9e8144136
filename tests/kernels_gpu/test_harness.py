"""Tests that run in the interpreting process report as tests that run here do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = "tests/kernels_gpu/harness_cases.py"


def _pytest(*arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    environment.pop("LUTRA_TEST_CUDA", None)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_reports(workers: str) -> None:
    if workers != "0":
        pytest.importorskip("xdist")
    output = _pytest(CASES, f"-n{workers}")
    assert "2 failed, 2 passed, 1 skipped, 1 xfailed" in output
    assert "seen before the failure" in output and "assert (1 + 1) == 3" in output
    assert "for this reason" in output
    assert "the interpreting process ended with status 3" in output


def test_one_test_can_be_chosen() -> None:
    assert "1 passed" in _pytest(f"{CASES}::test_comes_after_it", "-n0")
